//! What is wrong with a configuration, and where.

use std::fmt;
use std::io;
use std::path::PathBuf;

/// The configuration cannot be used.
#[derive(Debug)]
pub enum ConfigError {
    /// The file cannot be read (`--config-file`).
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not valid: syntax, an unknown key, a wrong type, a value out of its grammar.
    Parse {
        /// The file.
        path: PathBuf,
        /// Line and column, from 1.
        position: Option<(u64, u64)>,
        /// What is wrong and what is allowed.
        reason: String,
    },
    /// The serving port and another port are the same.
    SamePort {
        /// The keys.
        keys: [&'static str; 2],
        /// The port.
        port: u16,
    },
    /// A value that makes no sense.
    Value {
        /// The key.
        key: &'static str,
        /// What is wrong.
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
        /// What is wrong and what is wanted.
        reason: String,
    },
    /// A variable of the environment cannot be used.
    Environment {
        /// Its name.
        variable: &'static str,
        /// What is wrong and what is wanted. Does not quote the value, which may hold a password.
        reason: String,
    },
    /// An alias means two registries, or hides one.
    Alias {
        /// The alias.
        alias: String,
        /// What is wrong with it.
        reason: &'static str,
    },
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
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
