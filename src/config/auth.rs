//! `registries[].auth` as settings: the credentials for a registry, and for parts of it.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use super::aws;
use super::file::RepositoriesEntry;
use super::keys::{Comparison, Section, Unset, Value, section};
#[cfg(test)]
use super::keys::{Key, Map, Shape};
use super::value::{Hidden, ParseValueError, Span, Text};
use crate::oci::Upstream;
use crate::upstream::{
    Credentials, EcrRegistry, EcrSettings, HelperProgram, HelperSettings, RepositoryPrefix, Secret,
};

/// How long an ECR login is used by default, as in the reference server; Amazon's logins are valid for twelve
/// hours.
const ECR_EXPIRY: Duration = Duration::from_secs(6 * 3600);
/// The minimum of `expiry`: more frequent logins would exceed the rate limits of some services.
const EXPIRY_MIN: Duration = Duration::from_secs(60);

/// `repositories[].prefix`.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Prefix(RepositoryPrefix);

impl Prefix {
    pub(super) fn prefix(&self) -> &RepositoryPrefix {
        &self.0
    }
}

impl FromStr for Prefix {
    type Err = ParseValueError;

    fn from_str(text: &str) -> Result<Prefix, ParseValueError> {
        let prefix = text.parse().map(Prefix);
        prefix.map_err(|_| {
            ParseValueError::new(
                "a prefix is one or more whole components at the start of a repository's name, such as \
                 team-a or team-a/base, without a / at either end",
            )
        })
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// `auth.token.provider`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum TokenProvider {
    Ecr,
}

impl FromStr for TokenProvider {
    type Err = ParseValueError;

    fn from_str(text: &str) -> Result<TokenProvider, ParseValueError> {
        match text {
            "ecr" => Ok(TokenProvider::Ecr),
            _ => Err(ParseValueError::new(
                "the only token provider is ecr; for others, use a credential helper \
                 (auth.credentialHelper)",
            )),
        }
    }
}

impl fmt::Display for TokenProvider {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ecr")
    }
}

/// `auth.token.providerOpts`: `profile=…,region=…`.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct ProviderOptions {
    profile: Option<String>,
    region: Option<String>,
}

impl FromStr for ProviderOptions {
    type Err = ParseValueError;

    fn from_str(text: &str) -> Result<ProviderOptions, ParseValueError> {
        let mut options = ProviderOptions::default();
        for option in text.split(',').map(str::trim).filter(|option| !option.is_empty()) {
            let given = option.split_once('=').map(|(name, value)| (name.trim(), value.trim()));
            let (place, value) = match given {
                Some(("profile", value)) => (&mut options.profile, value),
                Some(("region", value)) => (&mut options.region, value),
                _ => (&mut options.region, ""),
            };
            if value.is_empty() || place.is_some() {
                return Err(ParseValueError::new(
                    "providerOpts are profile=NAME and region=NAME, each at most once, separated by a comma",
                ));
            }
            *place = Some(value.to_owned());
        }
        Ok(options)
    }
}

impl fmt::Display for ProviderOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let profile = self.profile.iter().map(|profile| format!("profile={profile}"));
        let region = self.region.iter().map(|region| format!("region={region}"));
        f.write_str(&profile.chain(region).collect::<Vec<String>>().join(","))
    }
}

section! {
    /// `registries[].auth`.
    AuthEntry {
        /// The user, for `Basic` and for token services.
        "user" user: Option<String> = None;
        /// The password.
        "password" password: Option<Text<Hidden>> = None;
        /// The environment variable that contains the password.
        "passwordFromEnv" password_from_env: Option<String> = None;
        /// A file that contains the password, read when needed; a line break at its end is ignored.
        "passwordFile" password_file: Option<PathBuf> = None;
        /// A Docker `config.json`, such as a mounted Kubernetes image pull secret, read when needed.
        "dockerConfig" docker_config: Option<PathBuf> = None;
        /// A credential helper: the `x` of a program `docker-credential-x` in `PATH`, or an absolute path.
        "credentialHelper" credential_helper: Option<Text<HelperProgram>> = None;
        /// How long the helper's answer is used; at least `60s`.
        "expiry" expiry: Option<Text<Span>> = None, default "10m";
        /// A bearer token.
        "token" token: Option<TokenEntry> = None;
    }
}

section! {
    /// `registries[].auth.token`.
    TokenEntry {
        /// The token, sent as it is.
        "static" fixed: Option<Text<Hidden>> = None;
        /// `ecr`: get the login from Amazon's registry service.
        "provider" provider: Option<Text<TokenProvider>> = None;
        /// `profile=NAME,region=NAME`, both optional.
        "providerOpts" provider_opts: Option<Text<ProviderOptions>> = None;
        /// How long that login is used, unless Amazon limits it further; at least `60s`.
        "expiry" expiry: Option<Text<Span>> = None, default "6h";
    }
}

/// Sets the default `expiry` of logins that expire.
pub(super) fn set_expiry(auth: &mut AuthEntry) {
    if let Some(Text(program)) = &auth.credential_helper {
        let default = HelperSettings::of(program.clone()).expiry;
        auth.expiry.get_or_insert(Text(Span(default)));
    }
    if let Some(token) = auth.token.as_mut().filter(|token| token.provider.is_some()) {
        token.expiry.get_or_insert(Text(Span(ECR_EXPIRY)));
    }
}

/// The credentials for an endpoint whose identity is `upstream`. [`set_expiry`] was called for each entry.
///
/// # Errors
/// The reason, for entries that contradict themselves and for environment variables that are not set.
pub(super) fn credentials(
    upstream: &Upstream,
    auth: Option<&AuthEntry>,
    repositories: &[RepositoriesEntry],
) -> Result<Credentials, String> {
    let otherwise = auth.map(|auth| one(auth, upstream)).transpose()?.unwrap_or_default();
    let mut parts: Vec<(RepositoryPrefix, Credentials)> = Vec::new();
    for part in repositories {
        let prefix = part.prefix.0.0.clone();
        if parts.iter().any(|(before, _)| *before == prefix) {
            return Err(format!("repositories: the prefix {prefix} is given twice: keep one"));
        }
        let Some(auth) = &part.auth else { continue };
        let auth =
            one(auth, upstream).map_err(|reason| format!("repositories: {prefix}: {reason}"))?;
        parts.push((prefix, auth));
    }
    Ok(match parts.is_empty() {
        true => otherwise,
        false => Credentials::ByRepository { parts, otherwise: Box::new(otherwise) },
    })
}

/// The credentials of one entry, from exactly one source.
fn one(entry: &AuthEntry, upstream: &Upstream) -> Result<Credentials, String> {
    let key = the_key(entry)?;
    let user = || {
        let user = entry.user.clone().filter(|user| !user.is_empty());
        user.ok_or_else(|| format!("auth.{} needs auth.user", key.unwrap_or_default()))
    };
    if let Some(Text(password)) = &entry.password {
        return Ok(Credentials::Password { user: user()?, password: password.0.clone() });
    }
    if let Some(variable) = &entry.password_from_env {
        let password = std::env::var(variable).map_err(|_| {
            format!("auth.passwordFromEnv: the environment variable {variable} is not set")
        })?;
        return Ok(Credentials::Password { user: user()?, password: Secret::new(password) });
    }
    if let Some(path) = &entry.password_file {
        return Ok(Credentials::PasswordFile { user: user()?, path: path.clone() });
    }
    if entry.user.is_some() {
        return Err("auth.user needs password, passwordFromEnv or passwordFile".into());
    }
    if let Some(path) = &entry.docker_config {
        return Ok(Credentials::DockerConfig { path: path.clone() });
    }
    if let Some(Text(program)) = &entry.credential_helper {
        let expiry = expiry(entry.expiry.as_ref(), "auth.expiry")?;
        return Ok(Credentials::Helper(HelperSettings {
            expiry,
            ..HelperSettings::of(program.clone())
        }));
    }
    match &entry.token {
        Some(TokenEntry { fixed: Some(Text(token)), .. }) => {
            Ok(Credentials::Bearer(token.0.clone()))
        }
        Some(token) if token.provider.is_some() => ecr(token, upstream),
        _ => Ok(Credentials::Anonymous),
    }
}

/// The key that names the source, if any. Two sources are an error, and so is a key without the source that
/// it belongs to.
fn the_key(entry: &AuthEntry) -> Result<Option<&'static str>, String> {
    let token = entry.token.as_ref();
    let (fixed, provider) = (
        token.is_some_and(|token| token.fixed.is_some()),
        token.is_some_and(|token| token.provider.is_some()),
    );
    let sources = [
        ("password", entry.password.is_some()),
        ("passwordFromEnv", entry.password_from_env.is_some()),
        ("passwordFile", entry.password_file.is_some()),
        ("dockerConfig", entry.docker_config.is_some()),
        ("credentialHelper", entry.credential_helper.is_some()),
        ("token.static", fixed),
        ("token.provider", provider),
    ];
    let mut given = sources.iter().filter(|(_, is)| *is).map(|(name, _)| *name);
    let key = given.next();
    if let (Some(one), Some(another)) = (key, given.next()) {
        return Err(format!("auth has both {one} and {another}: keep one"));
    }
    let dependent = [
        ("expiry", "credentialHelper", entry.expiry.is_some() && entry.credential_helper.is_none()),
        (
            "token.providerOpts",
            "token.provider",
            token.is_some_and(|token| token.provider_opts.is_some()) && !provider,
        ),
        (
            "token.expiry",
            "token.provider",
            token.is_some_and(|token| token.expiry.is_some()) && !provider,
        ),
    ];
    match dependent.iter().find(|(_, _, is_alone)| *is_alone) {
        Some((alone, needed, _)) => Err(format!("auth.{alone} needs auth.{needed}")),
        None => Ok(key),
    }
}

fn ecr(token: &TokenEntry, upstream: &Upstream) -> Result<Credentials, String> {
    let options = token.provider_opts.as_ref().map(|options| options.0.clone()).unwrap_or_default();
    let (environment, default_region) = aws::environment(|name| std::env::var(name).ok())?;
    let registry = registry(upstream, options.region.as_deref(), default_region.as_deref())?;
    let expiry = expiry(token.expiry.as_ref(), "auth.token.expiry")?;
    let profile = options.profile;
    Ok(Credentials::Ecr(Box::new(EcrSettings { registry, profile, expiry, environment })))
}

/// The registry with its region, from the name if it is one of Amazon's, or else from the options or the
/// environment.
fn registry(
    upstream: &Upstream,
    option: Option<&str>,
    default: Option<&str>,
) -> Result<EcrRegistry, String> {
    match (EcrRegistry::of(upstream), option) {
        (Some(named), Some(region)) if named.region() != region => Err(format!(
            "auth.token.providerOpts has region={region}, but the registry is in {}: remove it",
            named.region()
        )),
        (Some(named), _) => Ok(named),
        (None, _) => {
            let region = option.or(default).ok_or(
                "auth.token.provider: ecr needs a region: add providerOpts: region=NAME, or set \
                 AWS_REGION",
            )?;
            let registry = EcrRegistry::in_region(region);
            registry.map_err(|reason| format!("auth.token.provider: ecr: {region}: {reason}"))
        }
    }
}

fn expiry(given: Option<&Text<Span>>, key: &str) -> Result<Duration, String> {
    let long_enough = given.map(|text| text.0.0).filter(|expiry| *expiry >= EXPIRY_MIN);
    long_enough.ok_or_else(|| format!("{key} must be at least {}s", EXPIRY_MIN.as_secs()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn provider_options() {
        let options: ProviderOptions = "profile=dev, region = eu-west-1".parse().unwrap();
        assert_eq!(options.profile.as_deref(), Some("dev"));
        assert_eq!(options.region.as_deref(), Some("eu-west-1"));
        assert!("".parse::<ProviderOptions>().is_ok());
        for text in ["profile", "profile=", "role=x", "region=a-1,region=b-1", "=x"] {
            assert!(text.parse::<ProviderOptions>().is_err(), "{text}");
        }
    }

    #[test]
    fn region_comes_from_name_options_or_environment() {
        let ours: Upstream = "123456789012.dkr.ecr.eu-central-1.amazonaws.com".parse().unwrap();
        let other: Upstream = "registry.example.com".parse().unwrap();
        for (upstream, option, default, expected) in [
            (&ours, None, None, Ok("eu-central-1")),
            (&ours, None, Some("us-east-1"), Ok("eu-central-1")),
            (&ours, Some("eu-central-1"), None, Ok("eu-central-1")),
            (&ours, Some("us-east-1"), None, Err("remove it")),
            (&other, Some("us-east-1"), Some("us-east-2"), Ok("us-east-1")),
            (&other, None, Some("us-east-2"), Ok("us-east-2")),
            (&other, None, None, Err("AWS_REGION")),
            (&other, Some("x/y"), None, Err("such as eu-central-1")),
        ] {
            match (registry(upstream, option, default), expected) {
                (Ok(registry), Ok(region)) => assert_eq!(registry.region(), region),
                (Err(error), Err(words)) => assert!(error.contains(words), "{error}"),
                other => panic!("{option:?} {default:?}: {other:?}"),
            }
        }
    }
}
