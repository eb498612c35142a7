//! System calls that fail: for each call of a scenario, a run in which that call fails.
//!
//! A scenario runs once without a fault, which lists its calls. Then it runs once for each call and each error. During
//! the fault, requests may fail, but no client may receive wrong bytes, the program may not panic or hang, and a server
//! may not exit. After it, the same pull works, everything that was in the cache is still there, and `larder verify`
//! finds no damage.
//!
//! `LARDER_FAULTS` is the number of runs per scenario, spread evenly over all of them, or `all`. `LARDER_FAULT` is a part
//! of a fault's description: only those faults run.

mod plan;
mod run;
mod scenarios;

use std::path::Path;
use std::sync::{Arc, Mutex};

/// A watch that sees nothing.
fn unwatched() -> Arc<Mutex<plan::Plan>> {
    Arc::new(Mutex::new(plan::Plan::new(Path::new("/"), plan::Armed::No, None)))
}
