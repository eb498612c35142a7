//! `serverAuthConfig.oidc`: the issuers whose tokens are passwords.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};

use super::ConfigError;
use super::file::File;
use super::keys::{Comparison, Section, Unset, Value, not_null, section};
#[cfg(test)]
use super::keys::{Key, Map, Shape};
use super::value::Text;
use crate::oci::{NamePattern, Pattern, Upstream};
use crate::oidc::{self, IssuerSettings, KeysFrom, Rule, SUBJECT};
use crate::upstream::{DiscoverySettings, IssuerUrl, TlsSettings};

/// The most issuers. Each has a thread.
const ISSUERS_MAX: usize = 16;

section! {
    /// An entry of `serverAuthConfig.oidc`.
    OidcEntry {
        /// The URL of the issuer, exactly as in the claim `iss` of its tokens.
        "issuer" issuer: Text<IssuerUrl>;
        /// What the claim `aud` of a token must contain.
        "audience" audience: Text<Audience>;
        /// A file with the public keys of the issuer, a JSON Web Key Set, which is read again when it changes. Without it,
        /// they are fetched from the issuer every hour.
        "keys" keys: Option<PathBuf> = None, default "fetched from the issuer";
        /// PEM file with authorities to trust for the issuer, in addition to the usual roots.
        "ca" ca: Option<PathBuf> = None;
        /// A file with a bearer token that the issuer requires for its keys, read for each fetch.
        "tokenFile" token_file: Option<PathBuf> = None;
        /// The claim that is the user in the log.
        "user" user: Text<ClaimPath> = Text(ClaimPath(SUBJECT.into()));
        /// Which tokens may pull what. The first entry whose claims match applies; without one, a token gets 403.
        "allow" allow: Vec<OidcRuleEntry>;
    }
}

section! {
    /// An entry of `serverAuthConfig.oidc[].allow`.
    OidcRuleEntry {
        /// Claims and patterns for their values, such as `{kubernetes.io.namespace: team-*}`. A claim is a key of the token,
        /// or keys joined by dots; of a list, one element must match.
        "claims" claims: ClaimPatterns = ClaimPatterns::default(), default "every token", parser "not_null";
        /// What these tokens may pull: patterns as in `allow`.
        "repositories" repositories: Repositories = Repositories::default(), default "all", parser "not_null";
    }
}

/// An audience.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Audience(String);

impl FromStr for Audience {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Audience, &'static str> {
        match text.trim().is_empty() {
            true => Err("an audience is a text such as larder"),
            false => Ok(Audience(text.to_owned())),
        }
    }
}

impl fmt::Display for Audience {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The path of a claim.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ClaimPath(String);

impl FromStr for ClaimPath {
    type Err = String;

    fn from_str(text: &str) -> Result<ClaimPath, String> {
        oidc::check_path(text).map(|()| ClaimPath(text.to_owned()))
    }
}

impl fmt::Display for ClaimPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Paths of claims, and patterns for their values. Not empty in a file: an empty value is a mistake that would admit everyone.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[serde(transparent)]
pub(super) struct ClaimPatterns(BTreeMap<String, Text<Pattern>>);

impl<'de> Deserialize<'de> for ClaimPatterns {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<ClaimPatterns, D::Error> {
        let claims = BTreeMap::deserialize(deserializer)?;
        match claims.is_empty() {
            true => Err(D::Error::custom(
                "claims is empty: omit it if every token of the issuer may pull",
            )),
            false => Ok(ClaimPatterns(claims)),
        }
    }
}

/// Patterns for repositories. Not empty in a file, for the same reason.
#[derive(Debug, Clone, PartialEq, Default, Serialize)]
#[serde(transparent)]
pub(super) struct Repositories(Vec<Text<NamePattern>>);

impl<'de> Deserialize<'de> for Repositories {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Repositories, D::Error> {
        let patterns = Vec::deserialize(deserializer)?;
        match patterns.is_empty() {
            true => Err(D::Error::custom(
                "repositories is empty: omit it if these tokens may pull everything",
            )),
            false => Ok(Repositories(patterns)),
        }
    }
}

impl Value for Repositories {
    fn is_unset(&self) -> bool {
        self.0.is_empty()
    }

    #[cfg(test)]
    fn shape() -> Shape {
        Vec::<Text<NamePattern>>::shape()
    }
}

impl Value for ClaimPatterns {
    fn is_unset(&self) -> bool {
        self.0.is_empty()
    }
}

/// The issuers; `None` without any.
///
/// # Errors
/// [`ConfigError::Value`] if an entry contradicts itself or another one.
pub(super) fn settings(file: &File) -> Result<Option<oidc::Settings>, ConfigError> {
    let entries = file.server_auth_config.iter().flat_map(|entry| &entry.oidc);
    let mut issuers: Vec<IssuerSettings> = Vec::new();
    for entry in entries {
        let url = &entry.issuer.0;
        let refuse = |reason: &str| ConfigError::Value {
            key: "serverAuthConfig.oidc",
            reason: format!("{url}: {reason}"),
        };
        if issuers.len() == ISSUERS_MAX {
            return Err(refuse(&format!("at most {ISSUERS_MAX} issuers")));
        }
        if issuers.iter().any(|other| other.issuer == *url) {
            return Err(refuse("the issuer is given twice"));
        }
        issuers.push(issuer(entry).map_err(|reason| refuse(&reason))?);
    }
    Ok((!issuers.is_empty()).then_some(oidc::Settings { issuers }))
}

/// If any tokens are good for some repositories only: the registries that these rules name.
pub(super) fn restricted_to(file: &File) -> Option<BTreeSet<Upstream>> {
    let entries = file.server_auth_config.iter().flat_map(|entry| &entry.oidc);
    let rules = entries.flat_map(|entry| &entry.allow);
    let patterns: Vec<&NamePattern> =
        rules.flat_map(|rule| &rule.repositories.0).map(|pattern| &pattern.0).collect();
    let registries = patterns.iter().filter_map(|pattern| pattern.registry()).cloned();
    (!patterns.is_empty()).then(|| registries.collect())
}

fn issuer(entry: &OidcEntry) -> Result<IssuerSettings, String> {
    if entry.allow.is_empty() {
        return Err("allow has no entries, so no token would be accepted".into());
    }
    let keys = match &entry.keys {
        Some(_) if entry.ca.is_some() || entry.token_file.is_some() => {
            return Err("keys excludes ca and tokenFile, which are for fetching keys".into());
        }
        Some(path) => KeysFrom::File(path.clone()),
        None => KeysFrom::Discovery(DiscoverySettings {
            token_file: entry.token_file.clone(),
            tls: TlsSettings { ca: entry.ca.clone(), ..TlsSettings::default() },
        }),
    };
    Ok(IssuerSettings {
        issuer: entry.issuer.0.clone(),
        audience: entry.audience.0.0.clone(),
        keys,
        user: entry.user.0.0.clone(),
        allow: entry.allow.iter().map(rule).collect::<Result<_, _>>()?,
    })
}

fn rule(entry: &OidcRuleEntry) -> Result<Rule, String> {
    let claim = |(path, pattern): (&String, &Text<Pattern>)| {
        oidc::check_path(path).map(|()| (path.clone(), pattern.0.clone()))
    };
    Ok(Rule {
        claims: entry.claims.0.iter().map(claim).collect::<Result<_, _>>()?,
        repositories: entry.repositories.0.iter().map(|each| each.0.clone()).collect(),
    })
}
