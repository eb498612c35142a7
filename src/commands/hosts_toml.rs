//! `larder hosts-toml`: the mirror configuration of container clients, printed or put where they look.
//!
//! What is written is written whole, and over nothing that somebody else has written.

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
use crate::config::Settings;
use crate::mirror::{
    Client, DIAL_TIMEOUT, Document, Fallback, MARK, Mirror, MirrorError, Registry, Server, Trust,
};
use crate::oci::Upstream;
use crate::prune::parse_duration;
use crate::upstream::{RegistrySettings, Scheme};

/// With `--stay`, how often it is looked whether what was written is still there: what sets up a node may do
/// so again.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);
/// What a file is called that was there before and was written over by `--force`, or added to.
const KEPT_SUFFIX: &str = ".before-larder";

/// Prints what a client has to be told, or writes it.
///
/// # Errors
/// [`CommandError`] for what was typed wrong, what that client cannot be told, and what the disk refuses.
pub(super) fn hosts_toml(settings: &Settings, typed: &cli::HostsToml) -> Result<(), CommandError> {
    let client = typed.client.as_deref().unwrap_or("containerd");
    let client: Client = client.parse().map_err(|error| CommandError::usage("--for", &error))?;
    if client == Client::Docker && !typed.registry.is_empty() {
        let text =
            "hosts-toml: Docker mirrors docker.io and no other registry; leave out --registry";
        return Err(CommandError::Usage(text.into()));
    }
    let mirror = mirror(settings, typed)?;
    let documents = mirror.documents(client).map_err(refused)?;
    if client == Client::Docker && (mirror.trust.ca.is_some() || mirror.trust.identity.is_some()) {
        note(
            &"Docker finds ca.crt, client.cert and client.key in /etc/docker/certs.d/HOST:PORT: copy them there",
        );
    }
    let Some(place) = &typed.write else {
        if typed.stay || typed.force {
            let text = "hosts-toml: --stay and --force go with --write";
            return Err(CommandError::Usage(text.into()));
        }
        print(client, &documents);
        return Ok(());
    };
    let placing = Placing { client, mirror: &mirror, documents: &documents, place, typed };
    // Watched before anything is written: who reads that it was may end this at once.
    let end = typed.stay.then(until_signal).transpose()?;
    if placing.put_all()? == 0 {
        note(&format!("{}: as it should be", place.display()));
    }
    note(&client.heeds());
    match end {
        Some(end) => placing.stay(&end),
        None => Ok(()),
    }
}

fn refused(error: MirrorError) -> CommandError {
    CommandError::Usage(format!("hosts-toml: {error}"))
}

/// Several files with their names before them, one as it is.
fn print(client: Client, documents: &[Document]) {
    for (index, document) in documents.iter().enumerate() {
        if let (Some(path), true) = (&document.path, documents.len() > 1) {
            let gap = if index == 0 { "" } else { "\n" };
            say(&format!("{gap}# ---- {}/{path}", client.usual_place()));
        }
        say(document.text.trim_end());
    }
}

/// What was typed, and what the configuration says about the registries.
fn mirror(settings: &Settings, typed: &cli::HostsToml) -> Result<Mirror, CommandError> {
    let mut servers: Vec<Server> = Vec::new();
    for server in &typed.servers {
        let server = server.parse().map_err(refused)?;
        // TOML takes no table twice.
        if !servers.contains(&server) {
            servers.push(server);
        }
    }
    if servers.is_empty() {
        servers.push(this_server(settings));
    }
    let mut registries: Vec<Registry> =
        settings.upstream.registries.iter().map(|entry| listed(settings, entry)).collect();
    for name in &typed.registry {
        let name: Upstream =
            name.parse().map_err(|error| CommandError::usage("--registry", &error))?;
        if !registries.iter().any(|registry| registry.name == name) {
            registries.push(Registry::named(name));
        }
    }
    let dial_timeout = typed.dial_timeout.as_deref().map(parse_duration).transpose();
    Ok(Mirror {
        servers,
        registries,
        trust: trust(typed)?,
        dial_timeout: dial_timeout
            .map_err(|error| CommandError::usage("--dial-timeout", &error))?
            .unwrap_or(DIAL_TIMEOUT),
        fallback: if typed.no_fallback { Fallback::None } else { Fallback::Registry },
    })
}

/// The server that this configuration is for, as it is reached from its own machine.
fn this_server(settings: &Settings) -> Server {
    let (ip, port) = (settings.listen.ip(), settings.listen.port());
    let authority = match ip.is_unspecified() {
        true => format!("localhost:{port}"),
        false => settings.listen.to_string(),
    };
    Server::new(settings.tls.is_some(), authority)
}

fn listed(settings: &Settings, entry: &RegistrySettings) -> Registry {
    let name = entry.upstream.clone();
    let alias = settings.naming.aliases_of(&name).first().map(|alias| (*alias).to_owned());
    // Of its endpoints, the one that is the registry itself; the others are Larder's own mirrors.
    let itself = entry.endpoints.iter().find(|each| each.endpoint.authority == name.as_str());
    let is_plain = itself.is_some_and(|each| each.endpoint.scheme == Scheme::Http);
    Registry { alias, is_plain, name }
}

fn trust(typed: &cli::HostsToml) -> Result<Trust, CommandError> {
    let identity = match (&typed.client_cert, &typed.client_key) {
        (Some(cert), Some(key)) => Some((cert.clone(), key.clone())),
        (None, None) => None,
        _ => {
            let text = "hosts-toml: --client-cert and --client-key go together";
            return Err(CommandError::Usage(text.into()));
        }
    };
    Ok(Trust { ca: typed.ca.clone(), identity, is_unverified: typed.skip_verify })
}

/// What is written, and where.
struct Placing<'a> {
    client: Client,
    mirror: &'a Mirror,
    documents: &'a [Document],
    place: &'a Path,
    typed: &'a cli::HostsToml,
}

impl Placing<'_> {
    /// Writes what is not as it should be, after it was looked at all of it whether it may be: half of a
    /// configuration is none. Says how many files that were.
    fn put_all(&self) -> Result<usize, CommandError> {
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
            Some(path) => self.place.join(path),
            // A directory, of drop-ins say, whether it is there already or not.
            None if self.place.is_dir() || self.place.extension() != usual.extension() => {
                self.place.join(usual.file_name().unwrap_or_default())
            }
            None => self.place.to_owned(),
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
                let path = self.path(document);
                Err(CommandError::Usage(format!(
                    "{} is not Larder's, and stays as it is, and so does all else; put into it what \
                     larder hosts-toml prints, or say --force, which keeps it as …{KEPT_SUFFIX}",
                    path.display()
                )))
            }
            _ => Ok(document.text.clone()),
        }
    }

    /// Stays until SIGTERM or SIGINT, and writes again what was removed or changed meanwhile.
    fn stay(&self, end: &Receiver<()>) -> Result<(), CommandError> {
        loop {
            match end.recv_timeout(LOOK_INTERVAL) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
            }
            self.put_all()?;
        }
    }
}

/// Says when SIGTERM or SIGINT has come.
fn until_signal() -> Result<Receiver<()>, CommandError> {
    let unwatched = |source| CommandError::System { doing: "watch for signals", source };
    let mut signals = Signals::new([SIGTERM, SIGINT]).map_err(unwatched)?;
    let (ended, end) = sync_channel(1);
    let watch = move || {
        signals.forever().next();
        // Nobody listens only where the process ends anyway.
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

/// Keeps what was there the first time; what it is kept as is never written over.
fn keep(path: &Path) -> Result<(), CommandError> {
    let mut kept = path.as_os_str().to_owned();
    kept.push(KEPT_SUFFIX);
    match fs::hard_link(path, &kept) {
        Err(source) if source.kind() != ErrorKind::AlreadyExists => {
            Err(CommandError::ClientFile { doing: "keep a copy of", path: path.into(), source })
        }
        Err(_) => Ok(()),
        Ok(()) => {
            note(&format!("{}: what was there is kept", Path::new(&kept).display()));
            Ok(())
        }
    }
}

/// Clients read at any moment, and see the former text or the new one.
fn replace(path: &Path, text: &str) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    // In containers all processes have the same number.
    let since_epoch = UNIX_EPOCH.elapsed().map_or(0, |elapsed| elapsed.as_nanos());
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}-{since_epoch}.new", std::process::id()));
    let temporary = Path::new(&temporary);
    let written = write_as(path, temporary, text).and_then(|()| fs::rename(temporary, path));
    written.inspect_err(|_| {
        // A leftover would only be in the way.
        let _ = fs::remove_file(temporary);
    })
}

/// For those whom the former text was for, which may say passwords: Docker's proxies have some.
fn write_as(former: &Path, path: &Path, text: &str) -> io::Result<()> {
    let mut file = File::create_new(path)?;
    if let Ok(former) = fs::metadata(former) {
        // Who may not give files away is their owner already.
        let _ = fchown(&file, Some(former.uid()), Some(former.gid()));
        file.set_permissions(former.permissions())?;
    }
    file.write_all(text.as_bytes())?;
    // Else it may be empty after a power cut, and the former one gone.
    file.sync_all()
}
