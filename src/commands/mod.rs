//! The commands. Each one is a short composition of other modules.

mod access;
mod bucket;
mod check;
mod completions;
mod config_check;
mod config_file;
mod credential_provider;
mod export;
mod hosts_toml;
mod image_sync;
mod images;
mod import;
mod list;
mod load;
mod log_format;
mod log_writer;
mod logging;
mod management_client;
mod manual;
mod offline;
mod oidc;
mod output;
mod peers;
mod pin;
mod progress;
mod prune;
mod references;
mod reload;
mod selection;
mod serve;
mod service;
mod table;
mod tags;
mod verify;
mod webhook;

use std::fmt;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;

use crate::bundle::BundleError;
use crate::certificates::CertificateError;
use crate::cli::{Arguments, Command, Config, ConfigAction};
use crate::config::{self, ConfigError, LogLevel, Overrides};
use crate::http::{ServerError, ServerTlsError};
use crate::oidc::OidcError;
use crate::prune::PruneError;
use crate::store::{self, Store, StoreError};
use crate::units::plural;
use crate::users::HtpasswdError;

use output::{note, printed, say};

/// Runs the command.
///
/// # Errors
/// [`CommandError`], with a text for the operator.
pub fn run(arguments: Arguments) -> Result<(), CommandError> {
    let outcome = carry_out(&arguments);
    // The log lines that led to an error are printed before the error.
    logging::flush();
    outcome
}

fn carry_out(arguments: &Arguments) -> Result<(), CommandError> {
    let settings = || config::load(overrides(arguments)?).map_err(CommandError::from);
    match &arguments.command {
        Command::Serve(_) => serve::serve(overrides(arguments)?),
        Command::List(command) => list::list(&settings()?, command),
        Command::Load(command) => load::load(&settings()?, command),
        Command::Images(command) => images::images(command),
        Command::Prune(command) => prune::prune(&settings()?, command),
        Command::Pin(command) => pin::pin(&settings()?, command),
        Command::Unpin(command) => pin::unpin(&settings()?, command),
        Command::Import(command) => import::import(command, &settings()?),
        Command::Export(command) => export::export(command, &settings()?),
        Command::Verify(command) => verify::verify(&settings()?, command),
        Command::Check(command) => check::check(&settings()?, command),
        Command::Tags(command) => tags::tags(&settings()?, command),
        Command::Access(command) => access::access(&settings()?, command),
        Command::Offline(command) => {
            offline::offline(&settings()?.store, command.switch.as_deref())
        }
        Command::Peers(command) => peers::peers(&settings()?, command),
        Command::Sync(command) => image_sync::sync(&settings()?, command),
        Command::HostsToml(command) => hosts_toml::hosts_toml(&settings()?, command),
        Command::CredentialProvider(command) => credential_provider::credential_provider(command),
        Command::Config(Config { action: ConfigAction::Check(_) }) => {
            config_check::check(&settings()?, arguments.config_file.as_deref())
        }
        Command::Config(Config { action: ConfigAction::Show(_) }) => {
            say(settings()?.to_yaml().trim_end());
            Ok(())
        }
        Command::Completions(command) => completions::completions(&command.shell),
        Command::Man(_) => {
            manual::page();
            Ok(())
        }
        Command::Version(_) => {
            say(concat!("larder ", env!("CARGO_PKG_VERSION")));
            Ok(())
        }
    }
}

/// Opens the cache directory, which must exist: a command that only reads must not create one at a mistyped path.
fn existing_store(settings: &store::Settings) -> Result<Store, CommandError> {
    let root = settings.root.clone();
    match settings.root.join("oci-layout").try_exists() {
        Ok(true) => Ok(Store::open(settings)?),
        Ok(false) => Err(CommandError::NoCache { root }),
        Err(source) if source.kind() == ErrorKind::PermissionDenied => {
            Err(CommandError::Forbidden { root, source })
        }
        Err(_) => Err(CommandError::NoCache { root }),
    }
}

fn overrides(arguments: &Arguments) -> Result<Overrides, CommandError> {
    let level = parsed("--log-level", arguments.log_level.as_deref())?;
    let common = Overrides {
        config_file: arguments.config_file.clone(),
        image_path: arguments.image_path.clone(),
        log_level: level.or(arguments.verbose.then_some(LogLevel::Debug)),
        log_format: parsed("--log-format", arguments.log_format.as_deref())?,
        log_file: arguments.log_file.clone(),
        ..Overrides::default()
    };
    let Command::Serve(serve) = &arguments.command else { return Ok(common) };
    Ok(Overrides {
        port: parsed("--port", serve.port.as_deref())?,
        host: parsed("--host", serve.host.as_deref())?,
        health: parsed("--health", serve.health.as_deref())?,
        metrics: parsed("--metrics", serve.metrics.as_deref())?,
        default_ns: parsed("--default-ns", serve.default_ns.as_deref())?,
        pull_timeout: parsed("--pull-timeout", serve.pull_timeout.as_deref())?,
        air_gapped: serve.air_gapped,
        always_pull_latest: serve.always_pull_latest,
        hello_world: serve.hello_world,
        preload_images: serve.preload_images.clone(),
        os: serve.os.clone(),
        arch: serve.arch.clone(),
        ..common
    })
}

/// The value of an option, if it was given.
///
/// # Errors
/// [`CommandError::Usage`], which names the option.
fn parsed<T: FromStr>(flag: &str, text: Option<&str>) -> Result<Option<T>, CommandError>
where
    T::Err: fmt::Display,
{
    if text == Some("") {
        return Err(CommandError::usage(flag, &"nothing was given"));
    }
    let parsed = text.map(str::parse).transpose();
    parsed.map_err(|error| CommandError::usage(flag, &error))
}

/// Why a command failed.
#[derive(Debug)]
pub enum CommandError {
    /// The command line is invalid.
    Usage(String),
    /// The configuration cannot be used.
    Config(ConfigError),
    /// The TLS files of outgoing connections are unusable.
    Tls {
        /// Their place in the configuration.
        place: String,
        /// The reason.
        source: CertificateError,
    },
    /// The TLS files of the server are unusable.
    ServerTls(ServerTlsError),
    /// The htpasswd file is unusable.
    Users(HtpasswdError),
    /// The issuers of tokens cannot be used.
    Oidc(OidcError),
    /// The directory contains no cache.
    NoCache {
        /// The directory.
        root: PathBuf,
    },
    /// The current user may not read the cache directory.
    Forbidden {
        /// The directory.
        root: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The cache directory cannot be used.
    Store(StoreError),
    /// A check has found what does not work, which was printed before.
    CheckFailed {
        /// How many endpoints cannot be used.
        failed: usize,
        /// How many were checked.
        of: usize,
    },
    /// A server can start with a configuration, but parts of it do not work. Which ones was printed before.
    Flawed {
        /// The file.
        file: String,
        /// The number of errors.
        errors: usize,
    },
    /// Nothing that is there matches what was selected.
    NothingMatches {
        /// The selections, as they were typed.
        texts: Vec<String>,
        /// What was probably meant.
        hint: Option<String>,
    },
    /// Some images could not be loaded. Which ones and why was printed before.
    Incomplete {
        /// The number of images that failed.
        failed: usize,
        /// How many of these cannot succeed when the command is repeated.
        permanent: usize,
        /// The number of requested images.
        of: usize,
    },
    /// No image was found in files.
    NoImages {
        /// The files, and what might help.
        text: String,
    },
    /// Some files could not be read completely. Which ones and why was printed before.
    Unread {
        /// The number of these files.
        failed: usize,
        /// The number of files.
        of: usize,
    },
    /// Verification found problems, which were printed before.
    Unsound {
        /// The number of incomplete images.
        images: usize,
        /// The number of blobs that are damaged or unreadable.
        blobs: usize,
        /// Whether a repair was attempted.
        is_repaired: bool,
    },
    /// The server cannot listen.
    Server(ServerError),
    /// The server cannot listen on an additional port.
    Management {
        /// The configuration keys that set the port.
        keys: &'static str,
        /// The reason.
        source: ServerError,
    },
    /// A bundle cannot be read or written completely.
    Bundle(BundleError),
    /// Images could not be removed.
    Prune(PruneError),
    /// A container client's configuration cannot be read or written.
    ClientFile {
        /// The operation that failed.
        doing: &'static str,
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The log file cannot be opened.
    LogFile {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// A request to the running server failed, or what it was to do; the text says why.
    Running(String),
    /// Another system call failed.
    System {
        /// The operation that failed.
        doing: &'static str,
        /// The system's error.
        source: io::Error,
    },
}

impl CommandError {
    fn usage(flag: &str, error: &dyn fmt::Display) -> CommandError {
        CommandError::Usage(format!("{flag}: {error}"))
    }

    /// The process's exit code: 2 for an invalid command line or configuration, 1 for everything else.
    pub fn exit_code(&self) -> u8 {
        match self {
            CommandError::Usage(_)
            | CommandError::Config(_)
            | CommandError::NoCache { .. }
            | CommandError::Tls { .. }
            | CommandError::ServerTls(_)
            | CommandError::Users(_)
            | CommandError::Oidc(OidcError::Read { .. } | OidcError::Keys { .. }) => 2,
            CommandError::Forbidden { .. }
            | CommandError::Store(_)
            | CommandError::CheckFailed { .. }
            | CommandError::Flawed { .. }
            | CommandError::NothingMatches { .. }
            | CommandError::Incomplete { .. }
            | CommandError::NoImages { .. }
            | CommandError::Unread { .. }
            | CommandError::Unsound { .. }
            | CommandError::Oidc(OidcError::System { .. })
            | CommandError::Server(_)
            | CommandError::Management { .. }
            | CommandError::Bundle(_)
            | CommandError::Prune(_)
            | CommandError::ClientFile { .. }
            | CommandError::LogFile { .. }
            | CommandError::Running(_)
            | CommandError::System { .. } => 1,
        }
    }
}

impl From<ConfigError> for CommandError {
    fn from(error: ConfigError) -> CommandError {
        CommandError::Config(error)
    }
}

impl From<StoreError> for CommandError {
    fn from(error: StoreError) -> CommandError {
        CommandError::Store(error)
    }
}

impl From<ServerError> for CommandError {
    fn from(error: ServerError) -> CommandError {
        CommandError::Server(error)
    }
}

impl From<PruneError> for CommandError {
    fn from(error: PruneError) -> CommandError {
        match error {
            PruneError::Store(error) => CommandError::Store(error),
            error => CommandError::Prune(error),
        }
    }
}

impl From<BundleError> for CommandError {
    fn from(error: BundleError) -> CommandError {
        match error {
            BundleError::Store(error) => CommandError::Store(error),
            error => CommandError::Bundle(error),
        }
    }
}

impl fmt::Display for CommandError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CommandError::Usage(text) | CommandError::Running(text) => f.write_str(text),
            CommandError::Config(error) => error.fmt(f),
            CommandError::Tls { place, source } => write!(f, "{place}: tls: {source}"),
            CommandError::ServerTls(source) => write!(f, "serverTlsConfig: {source}"),
            CommandError::Users(source) => write!(f, "serverAuthConfig: {source}"),
            CommandError::Oidc(source) => write!(f, "serverAuthConfig: {source}"),
            CommandError::NoCache { root } => write!(
                f,
                "there is no cache in {}; set its path with --image-path or imagePath",
                root.display()
            ),
            CommandError::Forbidden { root, source } => write!(
                f,
                "cannot read the cache directory {}: {source}; run the command as root or as the server's user",
                root.display()
            ),
            CommandError::CheckFailed { failed, of } => {
                write!(f, "{failed} of {} cannot be used", plural(*of, "endpoint"))
            }
            CommandError::Flawed { file, errors } => write!(
                f,
                "{file}: a server can start with it, but {} must be corrected",
                plural(*errors, "error")
            ),
            CommandError::NothingMatches { texts, hint } => {
                write!(f, "nothing matches {}", texts.join(", "))?;
                hint.iter().try_for_each(|hint| write!(f, "; {hint}"))
            }
            CommandError::Incomplete { failed, permanent, of } => {
                write!(f, "{failed} of {} could not be loaded; ", plural(*of, "image"))?;
                match permanent {
                    0 => f.write_str("repeat the command to continue"),
                    all if all == failed => f.write_str(
                        "repeating the command cannot help: correct the names, the logins or the configuration",
                    ),
                    some => write!(
                        f,
                        "repeating the command can help with {}, the others need other names, logins or rules",
                        failed - some
                    ),
                }
            }
            CommandError::NoImages { text } => write!(f, "no image was found in {text}"),
            CommandError::Unread { failed, of } => {
                write!(f, "{failed} of {} could not be read completely", plural(*of, "file"))
            }
            CommandError::Unsound { images, blobs, is_repaired } => {
                write!(
                    f,
                    "found {} and {}",
                    plural(*images, "incomplete image"),
                    plural(*blobs, "damaged or unreadable blob")
                )?;
                match is_repaired {
                    true => write!(f, "; repeat the command when the registries are reachable"),
                    false => write!(f, "; --repair fetches missing and damaged content again"),
                }
            }
            CommandError::Store(error) => error.fmt(f),
            CommandError::Server(error @ ServerError::Listen { source, address }) => {
                write!(f, "{error}; {}", listen_remedy(source, *address, "--port", "--host"))
            }
            CommandError::Server(error) => error.fmt(f),
            CommandError::Management {
                keys,
                source: error @ ServerError::Listen { source, address },
            } => {
                write!(f, "{error}; {}", listen_remedy(source, *address, keys, "management.host"))
            }
            CommandError::Management { source, .. } => source.fmt(f),
            CommandError::Bundle(error) => error.fmt(f),
            CommandError::Prune(error) => error.fmt(f),
            CommandError::ClientFile { doing, path, source } => {
                write!(f, "cannot {doing} {}: {source}", path.display())
            }
            CommandError::LogFile { path, source } => write!(
                f,
                "cannot open the log file {}: {source}; set another path with --log-file or logFile",
                path.display()
            ),
            CommandError::System { doing, source } => write!(f, "cannot {doing}: {source}"),
        }
    }
}

/// What to do about an address on which the server cannot listen. `port` and `host` are the options that set them.
fn listen_remedy(error: &io::Error, address: SocketAddr, port: &str, host: &str) -> String {
    match error.kind() {
        ErrorKind::AddrInUse => {
            format!("stop the program that uses the port, or choose another port with {port}")
        }
        ErrorKind::PermissionDenied => format!(
            "ports below 1024 need root or the capability CAP_NET_BIND_SERVICE; choose another port with {port}"
        ),
        ErrorKind::AddrNotAvailable => format!(
            "this machine has no address {}; choose one of its own with {host}, or 0.0.0.0 for all",
            address.ip()
        ),
        _ => format!("choose another address with {host} or {port}"),
    }
}

impl std::error::Error for CommandError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            CommandError::Usage(_)
            | CommandError::Running(_)
            | CommandError::NoCache { .. }
            | CommandError::CheckFailed { .. }
            | CommandError::Flawed { .. }
            | CommandError::NothingMatches { .. }
            | CommandError::Incomplete { .. }
            | CommandError::NoImages { .. }
            | CommandError::Unread { .. }
            | CommandError::Unsound { .. } => None,
            CommandError::Config(error) => Some(error),
            CommandError::Tls { source, .. } => Some(source),
            CommandError::ServerTls(error) => Some(error),
            CommandError::Users(error) => Some(error),
            CommandError::Oidc(error) => Some(error),
            CommandError::Store(error) => Some(error),
            CommandError::Server(error) | CommandError::Management { source: error, .. } => {
                Some(error)
            }
            CommandError::Bundle(error) => Some(error),
            CommandError::Prune(error) => Some(error),
            CommandError::ClientFile { source, .. }
            | CommandError::Forbidden { source, .. }
            | CommandError::LogFile { source, .. }
            | CommandError::System { source, .. } => Some(source),
        }
    }
}
