//! The thread on which large documents are read and parsed, one at a time.
//!
//! The allocator gives each thread memory of its own and hardly returns any, so parsing on every fetcher and worker would
//! leave some MiB with each. A job must not wait for another document, or for the network.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use crate::oci::MANIFEST_BYTES_MAX;

type Job = Box<dyn FnOnce(&mut Vec<u8>) + Send>;

/// The thread for large documents. It starts with the first one and ends with the store.
#[derive(Debug, Default)]
pub(in crate::store) struct LargeDocuments {
    jobs: Mutex<Option<Sender<Job>>>,
}

impl LargeDocuments {
    /// Reads a part of a file on the thread, and calls `done` there.
    pub(super) fn read(
        &self,
        file: &Arc<File>,
        start: u64,
        length: usize,
        done: impl FnOnce(io::Result<&[u8]>) + Send + 'static,
    ) {
        let file = Arc::clone(file);
        self.run(Box::new(move |buffer| {
            if buffer.len() < length {
                *buffer = vec![0; length];
            }
            let bytes = &mut buffer[..length];
            done(file.read_exact_at(bytes, start).map(|()| &*bytes));
        }));
    }

    /// Runs a job with the buffer of the thread.
    fn run(&self, job: Job) {
        let mut jobs = self.jobs.lock().unwrap_or_else(PoisonError::into_inner);
        if jobs.is_none() {
            *jobs = start_thread();
        }
        match &*jobs {
            // Cannot fail: the thread runs for as long as there is a sender.
            Some(sender) => drop(sender.send(job)),
            None => {
                drop(jobs);
                job(&mut Vec::new());
            }
        }
    }
}

/// Starts the thread. `None` if the system has no more threads.
fn start_thread() -> Option<Sender<Job>> {
    let (sender, jobs) = mpsc::channel::<Job>();
    let run = move || {
        let mut buffer = Vec::new();
        for job in jobs {
            // A panic affects only its own document. The buffer is overwritten anyway.
            let _ = catch_unwind(AssertUnwindSafe(|| job(&mut buffer)));
            if buffer.len() > MANIFEST_BYTES_MAX {
                buffer = Vec::new();
            }
        }
    };
    thread::Builder::new().name("documents".into()).spawn(run).ok().map(|_| sender)
}
