//! Keeps images present: loads lists of images on a schedule, so that what was evicted comes back, tags follow their
//! registry, and new tags of a pattern are fetched before a client requests them.
//!
//! One thread runs the entries of `sync`, one after the other, with the fetches of the background: clients have
//! priority. What it does next is decided by a table of values (`table.rs`); a pure function computes the time of the
//! next run (`schedule.rs`). Images that an entry keeps present are pinned.
//!
//! This module must not know HTTP, how upstreams are contacted, or the configuration file.

mod entry;
mod pinned;
mod run;
mod schedule;
mod table;
mod thread;

pub use crate::bundle::{ListError, Newest, NewestBy, Wanted};
pub use entry::{Expand, PRELOAD, SyncEntry, read_list};
pub use schedule::{CronSchedule, Schedule};
pub use table::{Requested, SyncStage, SyncStatus};
pub use thread::{ImageSync, RequestError, Settings, Suspension};
