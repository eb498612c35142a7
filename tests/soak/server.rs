//! The server under test: a process of the release binary, its configuration, its management port.

use std::fs::{self, File};
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use rustix::process::{Pid, Signal, kill_process};

use crate::registry::PASSWORD;
use crate::report::lock;
use crate::wire::{Connection, Reading, Reply, Tampering};

/// A start takes milliseconds, but this machine is busy.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// `drainTimeout`, the 5 s for the last commits, and a busy machine.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(25);
/// The longest `tagTtl` of all configurations.
pub const TAG_TTL_MAX: Duration = Duration::from_secs(3);
pub const TOKEN: &str = "soak-token";
/// How much older the cache becomes while the server is stopped: older than the ten minutes in which nothing is
/// evicted, and than the hour after which files of killed processes are removed.
const AGED_BY: Duration = Duration::from_secs(3700);

/// Settings of glibc's allocator with which resident memory shows what is in use: no free memory is kept for each
/// thread, and all threads share one heap. With its defaults, the caches of 127 threads and 16 heaps fill up for hours,
/// up to 20 MiB, in which no leak of less can be seen. The static binary is built for musl, which ignores this.
const ALLOCATOR: &str = "glibc.malloc.tcache_count=0:glibc.malloc.arena_max=1";

/// The addresses and directories of a run.
#[derive(Clone)]
pub struct Site {
    pub larder: PathBuf,
    pub directory: PathBuf,
    pub address: SocketAddr,
    pub management: SocketAddr,
    pub registry: SocketAddr,
}

/// How long failures are remembered.
pub const NEGATIVE_TTL: Duration = Duration::from_secs(1);

/// A valid configuration.
#[derive(Clone, Copy, Debug)]
pub struct Variant {
    pub cache_megabytes: usize,
    pub tag_ttl_seconds: usize,
    pub downloads: usize,
    pub is_scheduled: bool,
}

impl Variant {
    pub const FIRST: Variant =
        Variant { cache_megabytes: 30, tag_ttl_seconds: 2, downloads: 16, is_scheduled: true };
}

impl Site {
    pub fn cache(&self) -> PathBuf {
        self.directory.join("cache")
    }

    pub fn config(&self) -> PathBuf {
        self.directory.join("larder.yaml")
    }

    /// The configuration of commands, which stays valid while that of the server is not.
    pub fn command_config(&self) -> PathBuf {
        self.directory.join("commands.yaml")
    }

    fn helper(&self) -> PathBuf {
        self.directory.join("docker-credential-soak")
    }

    /// Writes everything that a server needs.
    pub fn prepare(&self) -> io::Result<()> {
        use std::os::unix::fs::PermissionsExt;
        fs::create_dir_all(self.cache())?;
        fs::create_dir_all(self.directory.join("work"))?;
        fs::write(self.directory.join("token"), TOKEN)?;
        let login = format!(r#"{{"Username": "soak", "Secret": "{PASSWORD}"}}"#);
        fs::write(self.helper(), format!("#!/bin/sh\ncat >/dev/null\necho '{login}'\n"))?;
        fs::set_permissions(self.helper(), fs::Permissions::from_mode(0o755))?;
        fs::write(self.command_config(), self.text(&Variant::FIRST))?;
        fs::write(self.config(), self.text(&Variant::FIRST))
    }

    pub fn text(&self, variant: &Variant) -> String {
        let Variant { cache_megabytes, tag_ttl_seconds, downloads, is_scheduled } = variant;
        let (registry, directory) = (self.registry, self.directory.display());
        let (port, management) = (self.address.port(), self.management.port());
        let helper = self.helper();
        format!(
            "port: {port}\nhost: 127.0.0.1\nimagePath: {directory}/cache\n\
             management: {{port: {management}, tokenFile: {directory}/token}}\n\
             cacheSize: {cache_megabytes}MB\ntagTtl: {tag_ttl_seconds}s\nrevalidateTimeout: 1s\n\
             negativeTtl: {}s\npullTimeout: 4000\ndrainTimeout: 3s\nprefetchReferrers: true\n\
             defaultNs: '{registry}'\nworkers: 16\nscrub: {{every: 30m}}\n\
             pruneConfig: {{enabled: {is_scheduled}, type: accessed, duration: 30m, frequency: 5m, count: 5}}\n\
             pin: ['{registry}/pinned/keep:configured*']\n\
             tags: [{{pattern: 'imported*', tagTtl: forever}}]\n\
             registries:\n  - name: '{registry}'\n    scheme: http\n    aliases: [hub]\n    \
             maxDownloads: {downloads}\n    auth: {{credentialHelper: {}, expiry: 60s}}\n",
            NEGATIVE_TTL.as_secs(),
            helper.display()
        )
    }

    /// A command of Larder on the cache.
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.larder);
        command
            .arg("--config-file")
            .arg(self.command_config())
            .args(arguments)
            .stdin(Stdio::null());
        command
    }
}

/// The server, which is killed and started again.
pub struct Server {
    pub site: Site,
    running: Mutex<Option<Running>>,
    /// The number of starts.
    generation: AtomicU64,
    is_up: AtomicBool,
}

struct Running {
    child: Child,
    pid: i32,
}

/// How a server is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    Kill,
    Terminate,
}

/// A point in the life of the server.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Moment {
    generation: u64,
    is_up: bool,
}

impl Server {
    pub fn new(site: Site) -> Server {
        let (generation, is_up) = (AtomicU64::new(0), AtomicBool::new(false));
        Server { site, running: Mutex::default(), generation, is_up }
    }

    pub fn moment(&self) -> Moment {
        let generation = self.generation.load(Ordering::SeqCst);
        Moment { generation, is_up: self.is_up.load(Ordering::SeqCst) }
    }

    /// Whether the server ran without interruption since this moment.
    pub fn has_run_since(&self, moment: Moment) -> bool {
        moment.is_up && self.moment() == moment
    }

    pub fn pid(&self) -> Option<i32> {
        lock(&self.running).as_ref().map(|running| running.pid)
    }

    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::SeqCst)
    }

    pub fn log(&self) -> PathBuf {
        self.site.directory.join(format!("larder-{}.log", self.generation()))
    }

    /// What it prints beside the log, such as panics.
    pub fn stderr(&self) -> PathBuf {
        self.site.directory.join(format!("larder-{}.stderr", self.generation()))
    }

    /// Starts the server and waits until it is ready. Returns how long that took.
    pub fn start(&self) -> Result<Duration, String> {
        let began = Instant::now();
        self.generation.fetch_add(1, Ordering::SeqCst);
        let stderr = File::create(self.stderr()).map_err(|error| error.to_string())?;
        let mut command = Command::new(&self.site.larder);
        command.arg("--config-file").arg(self.site.config()).arg("--log-file").arg(self.log());
        let command =
            command.arg("serve").stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        let command = command.env("GLIBC_TUNABLES", ALLOCATOR);
        let child = command.spawn().map_err(|error| error.to_string())?;
        // Process IDs are below 2^22.
        let pid = i32::try_from(child.id()).map_err(|error| error.to_string())?;
        *lock(&self.running) = Some(Running { child, pid });
        loop {
            if self.get("/readyz").is_ok_and(|reply| reply.status == 200) {
                self.is_up.store(true, Ordering::SeqCst);
                return Ok(began.elapsed());
            }
            if let Some(status) = self.exited() {
                return Err(format!("the server exited with {status} instead of starting"));
            }
            if began.elapsed() > START_TIMEOUT {
                return Err(format!("the server is not ready after {START_TIMEOUT:?}"));
            }
            thread::sleep(Duration::from_millis(5));
        }
    }

    /// The status with which it exited unexpectedly.
    pub fn exited(&self) -> Option<ExitStatus> {
        lock(&self.running).as_mut().and_then(|running| running.child.try_wait().ok().flatten())
    }

    /// Stops the server. Returns its status and how long it took; `None` if it did not stop by itself.
    pub fn stop(&self, stop: Stop) -> (Option<ExitStatus>, Duration) {
        self.is_up.store(false, Ordering::SeqCst);
        let began = Instant::now();
        let Some(mut running) = lock(&self.running).take() else { return (None, began.elapsed()) };
        match stop {
            Stop::Kill => drop(running.child.kill()),
            Stop::Terminate => signal(running.pid, Signal::TERM),
        }
        while began.elapsed() < STOP_TIMEOUT {
            if let Ok(Some(status)) = running.child.try_wait() {
                return (Some(status), began.elapsed());
            }
            thread::sleep(Duration::from_millis(5));
        }
        let _ = running.child.kill();
        let _ = running.child.wait();
        (None, began.elapsed())
    }

    pub fn hang_up(&self) {
        if let Some(pid) = self.pid() {
            signal(pid, Signal::HUP);
        }
    }

    /// GET on the management port.
    pub fn get(&self, target: &str) -> io::Result<Reply> {
        self.manage("GET", target)
    }

    /// A request to the management port, with the token.
    pub fn manage(&self, method: &str, target: &str) -> io::Result<Reply> {
        let headers =
            [("Authorization", format!("Bearer {TOKEN}")), ("Connection", "close".into())];
        let mut connection = Connection::open(self.site.management)?;
        connection.ask(method, target, &headers, Reading::Complete, &Tampering::none())
    }

    /// Makes everything in the cache older. The server must not run: it relies on these times.
    pub fn age_cache(&self) -> io::Result<()> {
        age(&self.site.cache())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop(Stop::Kill);
    }
}

fn signal(pid: i32, signal: Signal) {
    // The child is not reaped before this returns, so the number is its own.
    if let Some(pid) = Pid::from_raw(pid) {
        let _ = kill_process(pid, signal);
    }
}

fn age(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let metadata = entry.metadata()?;
        if metadata.is_dir() {
            age(&entry.path())?;
        } else if metadata.is_file() {
            let time = metadata.modified().unwrap_or_else(|_| SystemTime::now());
            File::options().append(true).open(entry.path())?.set_modified(time - AGED_BY)?;
        }
    }
    Ok(())
}
