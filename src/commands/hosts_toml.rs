//! `larder hosts-toml`: prints or writes the mirror configuration of container clients.
//!
//! Files are replaced atomically. Files that Larder did not write are not overwritten without `--force`, unless they
//! have only what Larder writes, as the chart's notes show it.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{MetadataExt, fchown};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::thread;
use std::time::{Duration, UNIX_EPOCH};

use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

use super::{CommandError, note, say};
use crate::cli;
use crate::client_config::{
    AUDIENCE, Client, DIAL_TIMEOUT, Document, Fallback, MARK, Mirror, MirrorError, Registry,
    Server, Trust,
};
use crate::config::Settings;
use crate::oci::Upstream;
use crate::prune::parse_duration;
use crate::upstream::{RegistrySettings, Scheme};

/// With `--stay`, the interval between checks of the written files: node provisioning may run again and
/// overwrite them.
const CHECK_INTERVAL: Duration = Duration::from_secs(60);
/// The suffix of the copy of an existing file that is overwritten or added to.
const KEPT_SUFFIX: &str = ".before-larder";

/// Prints or writes the configuration of a client.
///
/// # Errors
/// [`CommandError`] for an invalid command line, settings that the client does not support, and I/O errors.
pub(super) fn hosts_toml(settings: &Settings, typed: &cli::HostsToml) -> Result<(), CommandError> {
    let client = typed.client.as_deref().unwrap_or("containerd");
    let client: Client = client.parse().map_err(|error| CommandError::usage("--for", &error))?;
    if client == Client::Docker && !typed.registry.is_empty() {
        let text = "hosts-toml: Docker can mirror docker.io only; omit --registry";
        return Err(CommandError::Usage(text.into()));
    }
    if client != Client::Kubelet && typed.audience.is_some() {
        let text = "hosts-toml: --audience is for --for kubelet";
        return Err(CommandError::Usage(text.into()));
    }
    let mirror = mirror(settings, typed)?;
    let documents = mirror.documents(client).map_err(refused)?;
    if client == Client::Docker && (mirror.trust.ca.is_some() || mirror.trust.identity.is_some()) {
        note(
            &"Docker reads certificates from /etc/docker/certs.d/HOST:PORT: copy them there as ca.crt, client.cert and client.key",
        );
    }
    let Some(target) = &typed.write else {
        if typed.stay || typed.force {
            let text = "hosts-toml: --stay and --force require --write";
            return Err(CommandError::Usage(text.into()));
        }
        print(client, &documents);
        return Ok(());
    };
    let writer = ConfigWriter { client, mirror: &mirror, documents: &documents, target, typed };
    // Signals are handled before the first write: whoever sees a written file may send one at once.
    let end = typed.stay.then(until_signal).transpose()?;
    if writer.write_changed()? == 0 {
        note(&format!("{}: up to date", target.display()));
    }
    note(&client.when_it_takes_effect());
    match end {
        Some(end) => writer.stay(&end),
        None => Ok(()),
    }
}

fn refused(error: MirrorError) -> CommandError {
    CommandError::Usage(format!("hosts-toml: {error}"))
}

/// Prints the files, each below its name if there are several.
fn print(client: Client, documents: &[Document]) {
    for (index, document) in documents.iter().enumerate() {
        if let (Some(path), true) = (&document.path, documents.len() > 1) {
            let gap = if index == 0 { "" } else { "\n" };
            say(&format!("{gap}# ---- {}/{path}", client.usual_place()));
        }
        say(document.text.trim_end());
    }
}

/// The settings from the command line, and the registries from the configuration.
fn mirror(settings: &Settings, typed: &cli::HostsToml) -> Result<Mirror, CommandError> {
    let mut servers: Vec<Server> = Vec::new();
    for server in &typed.servers {
        let server = server.parse().map_err(refused)?;
        // TOML forbids duplicate tables.
        if !servers.contains(&server) {
            servers.push(server);
        }
    }
    if servers.is_empty() {
        servers.push(this_server(settings));
    }
    let mut registries = listed_registries(settings);
    for name in &typed.registry {
        let name: Upstream =
            name.parse().map_err(|error| CommandError::usage("--registry", &error))?;
        if !registries.iter().any(|registry| registry.name == name) {
            registries.push(Registry::named(name));
        }
    }
    let dial_timeout = typed.dial_timeout.as_deref().map(parse_duration).transpose();
    if dial_timeout == Ok(Some(Duration::ZERO)) {
        return Err(CommandError::usage(
            "--dial-timeout",
            &"0 is too short; use a duration such as 1s",
        ));
    }
    Ok(Mirror {
        servers,
        registries,
        trust: trust(typed)?,
        dial_timeout: dial_timeout
            .map_err(|error| CommandError::usage("--dial-timeout", &error))?
            .unwrap_or(DIAL_TIMEOUT),
        fallback: if typed.no_fallback { Fallback::None } else { Fallback::Registry },
        audience: typed.audience.clone().unwrap_or_else(|| AUDIENCE.into()),
    })
}

/// The server of this configuration, as seen from its own machine.
fn this_server(settings: &Settings) -> Server {
    let (ip, port) = (settings.listen.ip(), settings.listen.port());
    let authority = match ip.is_unspecified() {
        true => format!("localhost:{port}"),
        false => settings.listen.to_string(),
    };
    Server::new(settings.tls.is_some(), authority)
}

/// The registries of the configuration.
pub(super) fn listed_registries(settings: &Settings) -> Vec<Registry> {
    settings.upstream.registries.iter().map(|entry| listed(settings, entry)).collect()
}

fn listed(settings: &Settings, entry: &RegistrySettings) -> Registry {
    let name = entry.upstream.clone();
    let alias = settings.naming.aliases_of(&name).first().map(|alias| (*alias).to_owned());
    // The endpoint that is the registry itself; the other endpoints are mirrors that Larder uses.
    let itself = entry.endpoints.iter().find(|each| each.endpoint.authority == name.as_str());
    let is_plain = itself.is_some_and(|each| each.endpoint.scheme == Scheme::Http);
    Registry { alias, is_plain, name }
}

fn trust(typed: &cli::HostsToml) -> Result<Trust, CommandError> {
    let identity = match (&typed.client_cert, &typed.client_key) {
        (Some(cert), Some(key)) => Some((cert.clone(), key.clone())),
        (None, None) => None,
        _ => {
            let text = "hosts-toml: --client-cert and --client-key must be used together";
            return Err(CommandError::Usage(text.into()));
        }
    };
    Ok(Trust { ca: typed.ca.clone(), identity, is_unverified: typed.skip_verify })
}

/// Writes the files of a client.
struct ConfigWriter<'a> {
    client: Client,
    mirror: &'a Mirror,
    documents: &'a [Document],
    target: &'a Path,
    typed: &'a cli::HostsToml,
}

impl ConfigWriter<'_> {
    /// Writes the files whose content differs, and returns their number. Checks first that all of them may be
    /// written, so that no incomplete configuration is left.
    fn write_changed(&self) -> Result<usize, CommandError> {
        let mut wanted = Vec::new();
        for document in self.documents {
            let path = self.path(document);
            let before = read(&path)?;
            let text = self.text(document, before.as_deref())?;
            wanted.extend((before.as_deref() != Some(&*text)).then_some((path, before, text)));
        }
        let count = wanted.len();
        for (path, before, text) in wanted {
            if before.is_some_and(|before| !before.starts_with(MARK)) {
                keep(&path)?;
            }
            replace(&path, &text).map_err(|source| CommandError::ClientFile {
                doing: "write",
                path: path.clone(),
                source,
            })?;
            note(&format!("{}: written", path.display()));
        }
        Ok(count)
    }

    fn path(&self, document: &Document) -> PathBuf {
        let usual = Path::new(self.client.usual_place());
        match &document.path {
            Some(path) => self.target.join(path),
            // A directory, e.g. for drop-in files, which may not exist yet.
            None if self.target.is_dir() || self.target.extension() != usual.extension() => {
                self.target.join(usual.file_name().unwrap_or_default())
            }
            None => self.target.to_owned(),
        }
    }

    fn text(&self, document: &Document, before: Option<&str>) -> Result<String, CommandError> {
        match (self.client, before) {
            (Client::Docker, Some(before)) => {
                let path = self.path(document);
                let refused = |error| format!("hosts-toml: {}: {error}", path.display());
                self.mirror.daemon_json(before).map_err(|error| CommandError::Usage(refused(error)))
            }
            (_, Some(before)) if !before.starts_with(MARK) && !self.typed.force => {
                match self.mirror.lost(self.client, document, before) {
                    None => Ok(document.text.clone()),
                    Some(reason) => Err(self.refuses(document, &reason)),
                }
            }
            _ => Ok(document.text.clone()),
        }
    }

    fn refuses(&self, document: &Document, reason: &str) -> CommandError {
        CommandError::Usage(format!(
            "{} was not written by Larder ({reason}); no file was changed. Add the output of larder \
             hosts-toml to it, or overwrite it with --force, which keeps a copy as …{KEPT_SUFFIX}",
            self.path(document).display()
        ))
    }

    /// Runs until SIGTERM or SIGINT, and restores files that are removed or changed.
    fn stay(&self, end: &Receiver<()>) -> Result<(), CommandError> {
        loop {
            match end.recv_timeout(CHECK_INTERVAL) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            self.write_changed()?;
        }
    }
}

/// A channel that receives a message on SIGTERM or SIGINT.
fn until_signal() -> Result<Receiver<()>, CommandError> {
    let unwatched = |source| CommandError::System { doing: "watch for signals", source };
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(unwatched)?;
    let (ended, end) = sync_channel(1);
    let watch = move || {
        signals.forever().next();
        // The receiver is gone only if the process is about to end.
        let _ = ended.send(());
    };
    thread::Builder::new().name("signals".into()).spawn(watch).map_err(unwatched)?;
    Ok(end)
}

fn read(path: &Path) -> Result<Option<String>, CommandError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(source) => Err(CommandError::ClientFile { doing: "read", path: path.into(), source }),
    }
}

/// Keeps a copy of the original file. An existing copy is never overwritten.
fn keep(path: &Path) -> Result<(), CommandError> {
    let mut kept = path.as_os_str().to_owned();
    kept.push(KEPT_SUFFIX);
    match fs::hard_link(path, &kept) {
        Err(source) if source.kind() != ErrorKind::AlreadyExists => {
            Err(CommandError::ClientFile { doing: "keep a copy of", path: path.into(), source })
        }
        Err(_) => Ok(()),
        Ok(()) => {
            note(&format!("{}: copy of the previous file", Path::new(&kept).display()));
            Ok(())
        }
    }
}

/// Replaces a file atomically: clients that read it see either the old or the new text.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    // The process ID is not unique: it is often 1 in containers.
    let since_epoch = UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.as_nanos());
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}-{since_epoch}.new", std::process::id()));
    let temporary = Path::new(&temporary);
    let written = write_as(path, temporary, text).and_then(|()| fs::rename(temporary, path));
    written.inspect_err(|_| {
        // Removes the temporary file, as far as possible.
        let _ = fs::remove_file(temporary);
    })
}

/// Writes the new file with the owner and mode of the old one, which may contain passwords (of proxies, in
/// Docker's case).
fn write_as(old: &Path, path: &Path, text: &str) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    if let Ok(old) = fs::metadata(old) {
        // Only root may change the owner; for others, it is the same already.
        let _ = fchown(&file, Some(old.uid()), Some(old.gid()));
        file.set_permissions(old.permissions())?;
    }
    file.write_all(text.as_bytes())?;
    // Without this, the file may be empty after a power failure, and the old one gone.
    file.sync_all()
}
