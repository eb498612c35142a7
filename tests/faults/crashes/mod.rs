//! Crashes that lose unsynced writes.
//!
//! A scenario runs the program and records its system calls. At each point of that record the machine may crash. Then
//! the disk contains everything that was synced, and some of the rest: `disk.rs` says what, for two kinds of file
//! systems. For each of several thousand such disks, the content of the cache is checked, a server is started on it
//! without its registry, and then with it.
//!
//! The last tests remove one kind of sync from the records. The checks must find that.
//!
//! `LARDER_CRASHES` is the number of random subsets at each point (default 8).

mod check;
mod disk;
mod record;
mod scenarios;
mod states;
