//! `larder check`: whether registries, parents, the bucket and the issuers of tokens can be used, and what to do if not.

use std::fs;
use std::io::{self, Write};
use std::sync::Arc;

use serde_json::Value;

use super::{CommandError, existing_store, logging, note, printed};
use crate::api::{CheckTarget, check_document};
use crate::cache::{check_with_rules, examine_bucket};
use crate::certificates::IdentityFiles;
use crate::cli;
use crate::client_config::Server;
use crate::config::Settings;
use crate::oci::Reference;
use crate::oidc::{self, IssuerSettings, KeysFrom};
use crate::store::StoredImage;
use crate::upstream::{
    self, Bucket, CheckState, CheckStep, Credentials, Endpoint, EndpointCheck, EndpointKind,
    EndpointSettings, IssuerClient, Registries, RegistrySettings, Scheme, Sources, TlsSettings,
    UpstreamError,
};

/// Why registries are not checked.
const OFFLINE: &str = "registries may not be contacted (airGapped, or larder offline on)";
/// The kind of what needs no explanation.
const REGISTRY: &str = EndpointKind::Registry.as_str();
/// The indentation of a remedy.
const REMEDY: &str = "                              ";

/// Checks the given registries and images, or everything in the configuration, and prints the results.
///
/// # Errors
/// [`CommandError::CheckFailed`] if something cannot be used; [`CommandError::Usage`] for an invalid target.
pub(super) fn check(settings: &Settings, command: &cli::Check) -> Result<(), CommandError> {
    logging::start(settings.log_level.at_least_warn(), settings)?;
    let parse = |text: &String| CheckTarget::parse(text, &settings.naming);
    let targets = command.targets.iter().map(parse).collect::<Result<Vec<CheckTarget>, String>>();
    let targets = targets.map_err(CommandError::Usage)?;
    let mut report = Report::new(command.json);
    if let Some(server) = client(command)? {
        for target in &targets {
            report.add(&target.text, pull(&server, target, settings)?);
        }
        if targets.is_empty() {
            let text = "check: with --server, name an image that this Larder has or may fetch";
            return Err(CommandError::Usage(text.into()));
        }
        return report.finish();
    }
    let is_offline = is_offline(settings);
    if is_offline && !targets.is_empty() {
        return Err(CommandError::Running(OFFLINE.into()));
    }
    let registries = settings.registries();
    for target in &targets {
        report.add(&target.text, check_target(&registries, target, settings));
    }
    if targets.is_empty() && is_offline {
        note(&format!("registries and parents are not checked: {OFFLINE}"));
    }
    if targets.is_empty() && !is_offline {
        for upstream in registries.listed() {
            let target = CheckTarget::registry(upstream);
            report.add(&target.text, check_target(&registries, &target, settings));
        }
        // An image in the cache shows how fast the parents are.
        let example = if settings.upstream.parents.is_empty() { None } else { example(settings) };
        let image = example.as_ref();
        let image =
            image.map(|image| (&image.name.upstream, &image.name.repository, &image.reference));
        for mut parent in registries.check_parents(image) {
            for step in parent.steps.iter_mut().filter(|step| step.state == CheckState::Skipped) {
                if step.name == "image" {
                    step.text =
                        format!("no image is cached that shows the throughput; {}", step.text);
                }
            }
            report.add("parent", vec![parent]);
        }
    }
    if targets.is_empty() {
        if let Some((bucket, (_, tier))) = registries.shared_bucket().zip(settings.bucket.as_ref())
        {
            report.add("objectStore", vec![check_bucket(&bucket, tier.uploads.is_read_only)]);
        }
        for entry in settings.oidc.iter().flat_map(|oidc| &oidc.issuers) {
            report.add("serverAuthConfig.oidc", vec![check_issuer(entry, settings)]);
        }
        if report.all.is_empty() && is_offline {
            return Err(CommandError::Running(OFFLINE.into()));
        }
        if report.all.is_empty() {
            let text = "check: the configuration has no registries, parents, objectStore or serverAuthConfig.oidc; \
                        name registries or images, for example docker.io or docker.io/library/alpine:latest";
            return Err(CommandError::Usage(text.into()));
        }
    }
    report.finish()
}

/// Whether servers with these settings contact no registry.
fn is_offline(settings: &Settings) -> bool {
    settings.cache.air_gapped
        || existing_store(&settings.store).is_ok_and(|store| store.is_offline())
}

/// An image that was pulled by its tag, if the cache has one.
fn example(settings: &Settings) -> Option<StoredImage> {
    let store = existing_store(&settings.store).ok()?;
    let mut found = None;
    // The error ends the walk.
    let _ = store.each_image(&mut |image| match image.reference {
        Reference::Tag(_) => {
            found = Some(image.clone());
            Err(io::ErrorKind::Interrupted.into())
        }
        Reference::Digest(_) => Ok(()),
    });
    found
}

fn check_target(
    registries: &Registries,
    target: &CheckTarget,
    settings: &Settings,
) -> Vec<EndpointCheck> {
    let check = || registries.check(&target.upstream, target.image());
    let checks = check_with_rules(&settings.cache.rules, &target.upstream, target.image(), check);
    checks.unwrap_or_else(|error| refused(target, &error))
}

fn refused(target: &CheckTarget, error: &UpstreamError) -> Vec<EndpointCheck> {
    let steps = vec![CheckStep::of_error("address", error)];
    let url = target.upstream.to_string();
    vec![EndpointCheck { url, kind: REGISTRY, steps }]
}

/// `--server` as an endpoint, with its TLS.
fn client(command: &cli::Check) -> Result<Option<EndpointSettings>, CommandError> {
    let identity = match (&command.client_cert, &command.client_key) {
        (Some(cert), Some(key)) => Some(IdentityFiles { cert: cert.clone(), key: key.clone() }),
        (None, None) => None,
        _ => {
            let text = "check: --client-cert and --client-key must be used together";
            return Err(CommandError::Usage(text.into()));
        }
    };
    let tls = TlsSettings {
        ca: command.ca.clone(),
        identity,
        insecure_skip_verify: command.skip_verify,
        server_name: None,
    };
    let credentials = match (&command.user, &command.password_file) {
        (Some(user), Some(path)) => {
            Credentials::PasswordFile { user: user.clone(), path: path.clone() }
        }
        (None, None) => Credentials::Anonymous,
        _ => {
            let text = "check: --user and --password-file must be used together";
            return Err(CommandError::Usage(text.into()));
        }
    };
    let Some(server) = &command.server else {
        return match tls == TlsSettings::default() && credentials == Credentials::Anonymous {
            true => Ok(None),
            false => {
                let text = "check: the options for TLS and the user need --server";
                Err(CommandError::Usage(text.into()))
            }
        };
    };
    let server: Server = server.parse().map_err(|error| CommandError::usage("--server", &error))?;
    tls.check().map_err(|error| CommandError::usage("--server", &error))?;
    let scheme = if server.is_tls() { Scheme::Https } else { Scheme::Http };
    let endpoint = Endpoint::new(scheme, server.authority());
    let kind = EndpointKind::Larder;
    Ok(Some(EndpointSettings { endpoint, kind, tls, credentials, decides: false }))
}

/// Pulls an image from a Larder alone, as its clients do.
fn pull(
    server: &EndpointSettings,
    target: &CheckTarget,
    settings: &Settings,
) -> Result<Vec<EndpointCheck>, CommandError> {
    let Some(image) = target.image() else {
        let text = format!("check: {} is a registry: with --server, name an image", target.text);
        return Err(CommandError::Usage(text));
    };
    let entry = RegistrySettings {
        upstream: target.upstream.clone(),
        endpoints: vec![server.clone()],
        rate_limit: None,
    };
    let only = upstream::Settings {
        registries: vec![entry],
        timeouts: settings.upstream.timeouts,
        proxies: settings.upstream.proxies.clone(),
        ..upstream::Settings::default()
    };
    let checks = Registries::new(only).check_pull(&target.upstream, image);
    let mut checks = checks.unwrap_or_else(|error| refused(target, &error));
    for check in &mut checks {
        // To its clients, the Larder is the registry, and they may connect to any address.
        check.kind = REGISTRY;
        check.steps.retain(|step| step.name != "address" || step.state == CheckState::Failed);
    }
    Ok(checks)
}

fn check_bucket(bucket: &Bucket, is_read_only: bool) -> EndpointCheck {
    let (_, found) = examine_bucket(&bucket.store, is_read_only);
    let step = match found {
        Ok(capabilities) => CheckStep::passed("bucket", capabilities),
        Err(error) => CheckStep::of_error("bucket", &error),
    };
    let kind = EndpointKind::Bucket.as_str();
    EndpointCheck { url: bucket.store.url(), kind, steps: vec![step] }
}

/// The keys of an issuer, from where the server gets them.
fn check_issuer(entry: &IssuerSettings, settings: &Settings) -> EndpointCheck {
    let (mut check, keys) = match &entry.keys {
        KeysFrom::Discovery(discovery) => {
            let proxies = Arc::new(settings.upstream.proxies.clone());
            IssuerClient::new(entry.issuer.clone(), discovery.clone(), &proxies).check()
        }
        KeysFrom::File(path) => {
            let url = entry.issuer.to_string();
            let mut check = EndpointCheck { url, kind: "issuer", steps: Vec::new() };
            let read = fs::read(path).map_err(|error| {
                let text = format!("cannot read {}: {error}", path.display());
                check.steps.push(CheckStep::failed(
                    "keys",
                    text,
                    "correct keys, or the mode of the file",
                ));
            });
            (check, read.ok())
        }
    };
    check.steps.extend(keys.map(|json| match oidc::describe_keys(&json) {
        Ok(keys) => CheckStep::passed("keys", keys),
        Err(reason) => CheckStep::failed("keys", reason, "correct issuer or keys"),
    }));
    check
}

/// The results so far. Text is printed at once, since a check can take a minute.
struct Report {
    is_json: bool,
    all: Vec<(String, EndpointCheck)>,
    printed: io::Result<()>,
}

impl Report {
    fn new(is_json: bool) -> Report {
        Report { is_json, all: Vec::new(), printed: Ok(()) }
    }

    fn add(&mut self, target: &str, checks: Vec<EndpointCheck>) {
        for check in checks {
            if !self.is_json && self.printed.is_ok() {
                self.printed = print(&mut io::stdout().lock(), target, &check);
            }
            self.all.push((target.to_owned(), check));
        }
    }

    fn finish(self) -> Result<(), CommandError> {
        let failed = self.all.iter().filter(|(_, check)| check.has_failed()).count();
        let of = self.all.len();
        printed(match self.is_json {
            true => {
                let documents: Vec<Value> =
                    self.all.iter().map(|(target, check)| check_document(target, check)).collect();
                writeln!(io::stdout(), "{:#}", Value::from(documents))
            }
            false => self.printed,
        })?;
        if failed > 0 { Err(CommandError::CheckFailed { failed, of }) } else { Ok(()) }
    }
}

fn print(out: &mut dyn Write, target: &str, check: &EndpointCheck) -> io::Result<()> {
    let what = if check.kind == REGISTRY { String::new() } else { format!(" ({})", check.kind) };
    writeln!(out, "{target}: {}{what}", check.url)?;
    for step in &check.steps {
        writeln!(out, "  {:<12}  {:<12}  {}", step.name, step.state.as_str(), step.text)?;
        if let Some(remedy) = &step.remedy {
            writeln!(out, "{REMEDY}{remedy}")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_are_printed_with_remedies() {
        let check = EndpointCheck {
            url: "https://r.example".into(),
            kind: EndpointKind::Larder.as_str(),
            steps: vec![
                CheckStep::passed("name", "192.0.2.1"),
                CheckStep::failed("connection", "refused", "start it"),
            ],
        };
        let mut out = Vec::new();
        print(&mut out, "parent", &check).unwrap();
        let text = String::from_utf8(out).unwrap();
        let expected = "parent: https://r.example (parent)\n  \
                        name          ok            192.0.2.1\n  \
                        connection    failed        refused\n\
                        \x20                             start it\n";
        assert_eq!(text, expected);
        let document = check_document("parent", &check);
        assert_eq!(document["ok"], false);
        assert_eq!(document["steps"][1]["remedy"], "start it");
        assert_eq!(document["steps"][0]["remedy"], Value::Null);
        assert_eq!(CheckState::Skipped.as_str(), "skipped");
    }
}
