//! Integration tests, one module per subject.

// The scripted registry, the raw client, the server under test, and tests of these themselves.
mod support;
// House rules for the source.
mod tidy;

// Manifests and blobs as a client receives them: headers, cold and warm.
mod pulling;
// Ranges of blobs, during the download and afterwards.
mod ranges;
// One download with many readers, which may leave, be slow or wait.
mod streaming;
// Wrong bytes, damaged files, and responses that are not manifests.
mod integrity;
// Scrubbing: the search for damage on disk.
mod rules;
mod scrub;
// Which upstream a request addresses, and which upstreams may be contacted.
mod addressing;
// Refused requests and their error responses.
mod refusals;
// HTTP as clients use it.
mod clients;
// TLS to clients, client certificates and passwords.
mod client_access;
// Tokens of issuers as passwords.
mod identity_tokens;
// The keys of these issuers.
mod issuer_keys;
// What tokens must not make possible.
mod token_attacks;
// Notifications to the service manager, and the installed files.
mod service;
// Bearer tokens and their scopes.
mod tokens;
// Two processes on one directory.
mod two_processes;
// Redirects, and what is sent along them.
mod redirects;
// Freshness of tags.
mod tags;
// Upstreams that are down, slow or rate limited.
mod outages;
// Large blobs over several connections.
mod parallel;
// Larders behind Larders.
mod parents;
// Which responses prove that a tag does not exist.
mod missing_content;
// Downloads that break off.
mod resuming;
// Upstreams with harmless oddities.
mod quirks;
// What a complete image consists of: platforms, attestations, foreign layers.
mod completeness;
// Malicious manifests, configs and archives.
mod hostile_documents;
// HTTP as registries and object stores use it.
mod framing;
// Repositories whose registry decides who may pull.
mod private_attacks;
mod private_images;
mod private_larders;
mod private_origins;
// Chains and loops of Larders.
mod loops;
// Tag lists.
mod lists;
// Referrers.
mod referrers;
// `larder load`.
mod loading;
// Images that are kept present on a schedule.
mod image_sync;
mod image_sync_server;
// Prefetching.
mod prefetch;
// Images that nodes check with HEAD only.
mod head_completion;
// Air-gapped mode.
mod air_gap;
// Caches that cannot be written.
mod full_disk;
// Several endpoints of one registry.
mod endpoints;
// Larders that share their caches.
mod peers;
// A bucket behind the caches.
mod bucket;
mod bucket_commands;

mod bucket_faults;
mod bucket_redirects;
// What is removed from it.
mod bucket_sweep;
// Isolation of clients and registries from each other.
mod abuse;
// What browsers, terminals and logs are protected from.
mod browsers;
// Commands next to a running server.
mod checks;
mod commands;
// Pruning, by command and by schedule.
mod pruning;
// Pins.
mod pins;
// Eviction.
mod events;
mod eviction;
// Probes, metrics and the status page.
mod probes;
// The management API: reading.
mod management;
// What it reports about the recent past.
mod management_activity;
// The management API: changes.
mod management_changes;
// The management API: authorization and errors.
mod management_access;
// `larder hosts-toml`.
mod hosts_toml;
// The hello-world image.
mod held_tags;
mod hello;
// The program as a process: arguments, errors, signals.
mod process;
// Reloading the configuration.
mod reload;
// Dashboard, alerts and documentation compared with the metrics.
mod observability;
// The formats and fields of the log.
mod log_formats;
// Documents compared with the code.
mod documents;
// `larder images` and `larder load --from`.
mod images;
// Passwords and tokens from the configuration.
mod credentials;
// Credential helpers.
mod credential_helpers;
// Logins for Amazon ECR.
mod ecr;
// TLS to registries: authorities and client certificates.
mod tls;
// Proxies between Larder and registries.
mod proxies;
// Rate limits, concurrent downloads and quotas of registries.
mod rate_limits;
// Export, and import of what was exported.
mod bundles;
// Import of foreign and damaged bundles, and interrupted imports.
mod imports;
