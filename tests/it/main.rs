//! Integration tests, one module a subject.

// The scripted registry, the raw client, the server under test, and their own tests.
mod support;
// House rules, checked by a program.
mod tidy;

// What a client gets: manifests, blobs, their headers, cold and warm.
mod pulling;
// Parts of blobs, while they come and after.
mod ranges;
// One download, many readers; readers that leave, are slow, or wait.
mod streaming;
// Wrong bytes, damaged files, things that are no manifests.
mod integrity;
// Damage on disk, looked for.
mod damage;
// Which upstream a request means, and which may be dialled.
mod addressing;
// What is refused, and how it is said.
mod refusals;
// HTTP as clients really speak it.
mod clients;
// TLS to clients, and their passwords.
mod visitors;
// What a service manager is told, and what is installed.
mod service;
// Tokens, and whose they are.
mod tokens;
// Where redirects may lead.
mod redirects;
// How long a tag is believed.
mod tags;
// Upstreams that are down, slow, or have had enough.
mod outages;
// Who may say that there is no such tag.
mod verdicts;
// Downloads that break off.
mod resuming;
// Upstreams that are odd and yet work.
mod quirks;
// What belongs to an image: platforms, attestations, layers that registries need not have.
mod completeness;
// Manifests, configs and archives that are made to do harm.
mod hostile_documents;
// HTTP as registries and object stores really speak it.
mod framing;
// Larders that ask each other.
mod loops;
// Tag lists.
mod lists;
// Referrers.
mod referrers;
// Lists of images.
mod loading;
// What is fetched before somebody asks.
mod prefetch;
// No upstream at all.
mod air_gap;
// No room to write.
mod full_disk;
// Mirrors, and the registry behind them.
mod endpoints;
// What one client, or one registry, can do to the others.
mod abuse;
// What browsers, terminals and logs get to see.
mod browsers;
// The commands beside the server.
mod commands;
// Images that are removed because somebody says so, or because it is time.
mod pruning;
// Images that are not removed, whatever it is for.
mod pins;
// Images that are removed so that others fit.
mod room;
// Probes, metrics and the page.
mod probes;
// The management API: what there is to see.
mod management;
// The management API: what can be done.
mod operating;
// Who may do it, and what is said to who may not.
mod permission;
// What container clients are told.
mod mirrors;
// An image of Larder's own.
mod hello;
// The program as a process: arguments, errors, signals.
mod process;
// The configuration, read again while it runs.
mod reload;
// Dashboard, alerts and documentation against what is counted.
mod observability;
// What the documents claim.
mod documents;
// Users, passwords, tokens of our own.
mod credentials;
// Programs that know users and passwords.
mod credential_helpers;
// Logins that Amazon hands out.
mod ecr;
// Given authorities and client certificates.
mod tls;
// Proxies on the way to registries.
mod proxies;
// How fast, how many at a time, and how many are left.
mod manners;
// What is exported comes back, byte for byte; and what is left out.
mod bundles;
// Bundles of other tools, damaged ones, and imports that are killed.
mod imports;
