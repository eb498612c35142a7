//! What all parts of a run share.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::thread;
use std::time::{Duration, Instant};

use crate::faults::Faults;
use crate::registry::Registry;
use crate::report::{Findings, Tally};
use crate::server::Server;
use crate::wire::Tampering;
use crate::world::{Image, World};

/// How many bytes of the log are evidence.
const LOG_TAIL_BYTES: usize = 60_000;

/// What a run does at the moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Everything fails now and then.
    Storm,
    /// Nothing fails, and everything is counted.
    Calm,
    /// No clients.
    Quiet,
}

/// An image that must stay in the cache, because it is pinned. The registry no longer has it.
pub struct Guarded {
    pub image: Arc<Image>,
    pub tag: String,
}

pub struct Soak {
    pub seed: u64,
    pub began: Instant,
    pub world: Arc<World>,
    pub faults: Arc<Faults>,
    pub registry: Arc<Registry>,
    pub server: Server,
    pub findings: Findings,
    pub tally: Tally,
    pub tampering: Tampering,
    pub guarded: Mutex<Vec<Arc<Guarded>>>,
    /// Locked shared by a command on the cache, exclusively while the times of its files are changed.
    pub commands: RwLock<()>,
    /// Temporary files and locks of killed commands. A server removes the locks when it starts, and the files after an
    /// hour.
    pub left_by_commands: Mutex<HashSet<String>>,
    phase: AtomicU8,
    /// Whether clients may begin something.
    is_open: AtomicBool,
    /// How many clients are at work.
    active: AtomicUsize,
    is_over: AtomicBool,
}

impl Soak {
    pub fn new(seed: u64, world: Arc<World>, registry: Arc<Registry>, server: Server) -> Soak {
        let findings = Findings::new(server.site.directory.join("findings"));
        Soak {
            seed,
            began: Instant::now(),
            faults: Arc::clone(&registry.faults),
            world,
            registry,
            server,
            findings,
            tally: Tally::default(),
            tampering: Tampering::none(),
            guarded: Mutex::default(),
            commands: RwLock::default(),
            left_by_commands: Mutex::default(),
            phase: AtomicU8::new(Phase::Quiet as u8),
            is_open: AtomicBool::new(false),
            active: AtomicUsize::new(0),
            is_over: AtomicBool::new(false),
        }
    }

    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::SeqCst) {
            0 => Phase::Storm,
            1 => Phase::Calm,
            _ => Phase::Quiet,
        }
    }

    pub fn begin(&self, phase: Phase) {
        self.phase.store(phase as u8, Ordering::SeqCst);
        self.is_open.store(phase != Phase::Quiet, Ordering::SeqCst);
    }

    /// Lets no client begin, and waits until all have ended. Returns whether they did.
    pub fn close(&self, at_most: Duration) -> bool {
        self.is_open.store(false, Ordering::SeqCst);
        let began = Instant::now();
        while self.active.load(Ordering::SeqCst) > 0 {
            if began.elapsed() > at_most {
                return false;
            }
            thread::sleep(Duration::from_millis(10));
        }
        self.phase.store(Phase::Quiet as u8, Ordering::SeqCst);
        true
    }

    pub fn end(&self) {
        self.is_over.store(true, Ordering::SeqCst);
    }

    pub fn is_over(&self) -> bool {
        self.is_over.load(Ordering::SeqCst)
    }

    /// Runs `work` as a client, once clients may begin; returns false at the end of the run.
    pub fn as_client(&self, work: impl FnOnce()) -> bool {
        loop {
            self.active.fetch_add(1, Ordering::SeqCst);
            // Checked after counting, so that `close` waits for every client that found it open.
            if self.is_open.load(Ordering::SeqCst) {
                break;
            }
            self.active.fetch_sub(1, Ordering::SeqCst);
            if self.is_over() {
                return false;
            }
            thread::sleep(Duration::from_millis(20));
        }
        work();
        self.active.fetch_sub(1, Ordering::SeqCst);
        !self.is_over()
    }

    /// Sleeps, but not beyond the end of the phase.
    pub fn rest(&self, length: Duration) {
        let until = Instant::now() + length;
        while Instant::now() < until && self.is_open.load(Ordering::SeqCst) && !self.is_over() {
            thread::sleep(
                Duration::from_millis(10).min(until.saturating_duration_since(Instant::now())),
            );
        }
    }

    /// Reports a violation, with the ends of the logs.
    pub fn finding(&self, kind: &str, text: &str, evidence: &str) {
        let log = std::fs::read(self.server.log()).unwrap_or_default();
        let tail = &log[log.len().saturating_sub(LOG_TAIL_BYTES)..];
        let evidence = format!(
            "{evidence}\n\n== the server's log (process {})\n{}\n== the registry\n{}",
            self.server.generation(),
            String::from_utf8_lossy(tail),
            self.registry.recent()
        );
        self.findings.add(kind, text, &evidence);
    }
}
