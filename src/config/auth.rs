//! `registries[].auth` as settings: who Larder is to a registry, and to parts of it.

use std::str::FromStr;
use std::time::Duration;

use super::aws;
use super::file::{AuthEntry, RepositoriesEntry, TokenEntry};
use super::value::{ParseValueError, Span, Text};
use crate::oci::Upstream;
use crate::upstream::{
    Credentials, EcrRegistry, EcrSettings, HelperProgram, HelperSettings, RepositoryPrefix, Secret,
};

/// How long a login of ECR is kept if nobody says otherwise, as in the reference server; it is good for
/// twelve hours.
const ECR_EXPIRY: Duration = Duration::from_secs(6 * 3600);
/// The least that `expiry` may be: below it, logins would be got faster than some services allow.
const EXPIRY_MIN: Duration = Duration::from_secs(60);

/// `auth.credentialHelper`.
#[derive(Debug)]
pub(super) struct Helper(HelperProgram);

impl FromStr for Helper {
    type Err = ParseValueError;

    fn from_str(text: &str) -> Result<Helper, ParseValueError> {
        text.parse().map(Helper).map_err(ParseValueError::new)
    }
}

/// `repositories[].prefix`.
#[derive(Debug)]
pub(super) struct Prefix(RepositoryPrefix);

impl FromStr for Prefix {
    type Err = ParseValueError;

    fn from_str(text: &str) -> Result<Prefix, ParseValueError> {
        let prefix = text.parse().map(Prefix);
        prefix.map_err(|_| {
            ParseValueError::new(
                "a prefix is the beginning of repositories' names in whole components, such as \
                 team-a or team-a/base, without a / at its ends",
            )
        })
    }
}

/// `auth.token.provider`.
#[derive(Debug, Clone, Copy)]
pub(super) enum TokenProvider {
    Ecr,
}

impl FromStr for TokenProvider {
    type Err = ParseValueError;

    fn from_str(text: &str) -> Result<TokenProvider, ParseValueError> {
        match text {
            "ecr" => Ok(TokenProvider::Ecr),
            _ => Err(ParseValueError::new(
                "the only token provider is ecr; others have a credential helper \
                 (auth.credentialHelper)",
            )),
        }
    }
}

/// `auth.token.providerOpts`: `profile=…,region=…`.
#[derive(Debug, Clone, Default)]
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
                    "providerOpts are profile=NAME and region=NAME, each once, with a comma between",
                ));
            }
            *place = Some(value.to_owned());
        }
        Ok(options)
    }
}

/// The credentials for an endpoint that is known as `upstream`.
///
/// # Errors
/// What contradicts itself, or is not set.
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
        let auth = one(&part.auth, upstream)
            .map_err(|reason| format!("repositories: {prefix}: {reason}"))?;
        parts.push((prefix, auth));
    }
    Ok(match parts.is_empty() {
        true => otherwise,
        false => Credentials::ByRepository { parts, otherwise: Box::new(otherwise) },
    })
}

/// Exactly one source of credentials: two could only contradict each other.
fn one(entry: &AuthEntry, upstream: &Upstream) -> Result<Credentials, String> {
    let key = the_key(entry)?;
    let user = || {
        let user = entry.user.clone().filter(|user| !user.is_empty());
        user.ok_or_else(|| format!("auth.{} needs auth.user beside it", key.unwrap_or_default()))
    };
    if let Some(password) = &entry.password {
        return Ok(Credentials::Password { user: user()?, password: Secret::new(password) });
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
        return Err("auth.user needs password, passwordFromEnv or passwordFile beside it".into());
    }
    if let Some(path) = &entry.docker_config {
        return Ok(Credentials::DockerConfig { path: path.clone() });
    }
    if let Some(Text(Helper(program))) = &entry.credential_helper {
        let usual = HelperSettings::of(program.clone());
        let expiry = expiry(&entry.expiry, "auth.expiry", usual.expiry)?;
        return Ok(Credentials::Helper(HelperSettings { expiry, ..usual }));
    }
    match &entry.token {
        Some(TokenEntry { fixed: Some(token), .. }) => Ok(Credentials::Bearer(Secret::new(token))),
        Some(token) if token.provider.is_some() => ecr(token, upstream),
        _ => Ok(Credentials::Anonymous),
    }
}

/// The key that names the source, if there is one; keys that stand beside the wrong one are errors.
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
    let beside = [
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
    match beside.iter().find(|(_, _, is_alone)| *is_alone) {
        Some((alone, needed, _)) => Err(format!("auth.{alone} needs auth.{needed} beside it")),
        None => Ok(key),
    }
}

fn ecr(token: &TokenEntry, upstream: &Upstream) -> Result<Credentials, String> {
    let options = token.provider_opts.as_ref().map(|options| options.0.clone()).unwrap_or_default();
    let (environment, default_region) = aws::environment(|name| std::env::var(name).ok())?;
    let registry = registry(upstream, options.region.as_deref(), default_region.as_deref())?;
    let expiry = expiry(&token.expiry, "auth.token.expiry", ECR_EXPIRY)?;
    let profile = options.profile;
    Ok(Credentials::Ecr(Box::new(EcrSettings { registry, profile, expiry, environment })))
}

/// The name tells the region where it is one of Amazon's; else somebody has to.
fn registry(
    upstream: &Upstream,
    option: Option<&str>,
    default: Option<&str>,
) -> Result<EcrRegistry, String> {
    match (EcrRegistry::of(upstream), option) {
        (Some(named), Some(region)) if named.region() != region => Err(format!(
            "auth.token.providerOpts says region={region}, and the registry is in {}: remove it",
            named.region()
        )),
        (Some(named), _) => Ok(named),
        (None, _) => {
            let region = option.or(default).ok_or(
                "auth.token.provider: ecr needs a region: give providerOpts: region=NAME, or set \
                 AWS_REGION",
            )?;
            let registry = EcrRegistry::in_region(region);
            registry.map_err(|reason| format!("auth.token.provider: ecr: {region}: {reason}"))
        }
    }
}

fn expiry(given: &Option<Text<Span>>, key: &str, usual: Duration) -> Result<Duration, String> {
    match given {
        Some(Text(Span(expiry))) if *expiry < EXPIRY_MIN => {
            Err(format!("{key} is at least {}s", EXPIRY_MIN.as_secs()))
        }
        Some(Text(Span(expiry))) => Ok(*expiry),
        None => Ok(usual),
    }
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
    fn where_the_region_comes_from() {
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
