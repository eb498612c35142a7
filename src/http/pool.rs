//! The worker threads.
//!
//! This module must not know HTTP: a worker drives a connection as far as it goes, then parks it, queues it again or
//! closes it, as the connection asks.

use super::connection::{Connection, SliceEnd};
use super::poller;
use super::shared::Shared;
use super::table::{Job, Stage};
use super::worker::{Worker, panic_text};
use crate::units::plural;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::{Builder, JoinHandle};

/// Runs queued connections until it is asked to stop.
fn work(shared: &Shared) {
    let mut worker = Worker::new(Arc::clone(&shared.service));
    while let Ok(Job::Serve(connection)) = shared.table.queue().recv() {
        shared.busy_workers.fetch_add(1, Ordering::Relaxed);
        // Calls of handlers catch their own panics; this catches our bugs. The connection is lost, and its guard
        // frees its slot.
        let served = catch_unwind(AssertUnwindSafe(|| serve(shared, &mut worker, connection)));
        if let Err(panic) = served {
            log::error!(error:% = panic_text(&*panic); "a connection was lost to a panic");
        }
        shared.busy_workers.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Drives one connection until it parks or closes, or until its time slice is over and others are queued.
fn serve(shared: &Shared, worker: &mut Worker, mut connection: Box<Connection>) {
    loop {
        worker.begin_slice();
        match connection.drive(worker) {
            SliceEnd::Close => return,
            SliceEnd::Park(parking) => match shared.table.park(connection, parking) {
                Ok(()) => return,
                Err(woken) => connection = woken,
            },
            SliceEnd::Yield => {}
        }
        if !shared.table.queue().is_empty() {
            return shared.table.enqueue(connection);
        }
    }
}

/// The poller and the workers. Dropping them cuts off all connections and joins the threads.
pub(super) struct Threads {
    shared: Arc<Shared>,
    poller: Option<JoinHandle<()>>,
    workers: Vec<JoinHandle<()>>,
}

impl Threads {
    /// Starts the poller and all workers.
    pub(super) fn start(shared: &Arc<Shared>) -> std::io::Result<Self> {
        let mut threads = Self { shared: Arc::clone(shared), poller: None, workers: Vec::new() };
        let polled = Arc::clone(shared);
        let builder = Builder::new().name("http-poller".to_owned());
        threads.poller = Some(builder.spawn(move || poller::run(&polled))?);
        for number in 0..shared.service.settings.workers {
            let shared = Arc::clone(shared);
            let builder = Builder::new().name(format!("http-worker-{number}"));
            threads.workers.push(builder.spawn(move || work(&shared))?);
        }
        Ok(threads)
    }

    /// Waits until all connections have ended, then stops and joins all threads.
    pub(super) fn join(&mut self) {
        self.shared.end_accepting();
        if let Some(poller) = self.poller.take()
            && let Err(panic) = poller.join()
        {
            log::error!(error:% = panic_text(&*panic); "the poller panicked");
        }
        for _ in &self.workers {
            self.shared.table.stop_one_worker();
        }
        let stuck = self.shared.table.open();
        if stuck > 0 {
            let stuck = plural(stuck, "connection");
            log::warn!(count = stuck; "abandoning connections whose handlers have not returned");
            self.workers.clear();
        }
        for worker in self.workers.drain(..) {
            // Workers catch and log their own panics.
            let _ = worker.join();
        }
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        self.shared.advance(Stage::Cutting);
        self.join();
    }
}
