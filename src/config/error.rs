//! Why a configuration is refused, and where the error is.

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::oci::quoted_up_to;

/// The length of an error. An unknown key is followed by all keys.
const CHARS_MAX: usize = 3000;

/// The configuration cannot be used.
#[derive(Debug)]
pub enum ConfigError {
    /// The file cannot be read (`--config-file`).
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: io::Error,
    },
    /// The file is not valid: a syntax error, an unknown key, a wrong type, or a malformed value.
    Parse {
        /// The file.
        path: PathBuf,
        /// Line and column, counted from 1.
        position: Option<(u64, u64)>,
        /// The problem, and what is allowed.
        reason: String,
    },
    /// Two keys have the same port.
    SamePort {
        /// The keys.
        keys: [&'static str; 2],
        /// The port.
        port: u16,
    },
    /// A value is well formed but not allowed.
    Value {
        /// The key.
        key: &'static str,
        /// The problem, and what is allowed.
        reason: String,
    },
    /// A registry is listed twice.
    Twice {
        /// Its name.
        name: String,
    },
    /// An entry of `registries` contradicts itself.
    Registry {
        /// Its name.
        name: String,
        /// The problem, and the fix.
        reason: String,
    },
    /// An entry of `parents` contradicts itself or another one.
    Parent {
        /// Its URL.
        url: String,
        /// The problem, and the fix.
        reason: String,
    },
    /// `peers` contradicts itself.
    Peers {
        /// The problem, and the fix.
        reason: String,
    },
    /// An entry of `sync` contradicts itself or another one.
    Sync {
        /// Its name.
        name: String,
        /// The problem, and the fix.
        reason: String,
    },
    /// An environment variable has an invalid value.
    Environment {
        /// Its name.
        variable: &'static str,
        /// The problem, and the fix. Does not quote the value, which may contain a password.
        reason: String,
    },
    /// An alias is malformed, or is used for two registries, or is the name of one.
    Alias {
        /// The alias.
        alias: String,
        /// The problem, after the alias.
        reason: &'static str,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // It quotes the file, which may contain anything.
        f.write_str(&quoted_up_to(CHARS_MAX, Words(self)))
    }
}

/// The error as it is.
struct Words<'a>(&'a ConfigError);

impl fmt::Display for Words<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            ConfigError::Read { path, source } => {
                write!(f, "cannot read the configuration file {}: {source}", path.display())
            }
            ConfigError::Parse { path, position: Some((line, column)), reason } => {
                write!(f, "{}:{line}:{column}: {reason}", path.display())
            }
            ConfigError::Parse { path, position: None, reason } => {
                write!(f, "{}: {reason}", path.display())
            }
            ConfigError::SamePort { keys: [one, other], port } => {
                write!(f, "{one} and {other} are both {port}: give them different ports")
            }
            ConfigError::Value { key, reason } => write!(f, "{key}: {reason}"),
            ConfigError::Twice { name } => {
                write!(f, "registries: {name} is listed twice: merge the two entries")
            }
            ConfigError::Registry { name, reason } => write!(f, "registries: {name}: {reason}"),
            ConfigError::Peers { reason } => write!(f, "peers: {reason}"),
            ConfigError::Sync { name, reason } => write!(f, "sync: {name}: {reason}"),
            ConfigError::Parent { url, reason } => write!(f, "parents: {url}: {reason}"),
            ConfigError::Environment { variable, reason } => {
                write!(f, "the environment variable {variable}: {reason}")
            }
            ConfigError::Alias { alias, reason } => {
                write!(f, "registries: the alias {alias} {reason}")
            }
        }
    }
}

impl std::error::Error for ConfigError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            ConfigError::Read { source, .. } => Some(source),
            _ => None,
        }
    }
}
