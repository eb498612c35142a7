//! Injected read failures for tests. Other builds have none.

use std::io;
use std::path::Path;

/// The reads that fail.
#[derive(Debug, Default)]
pub(in crate::store) struct Faults {
    #[cfg(test)]
    failing: std::sync::Mutex<Option<Failing>>,
}

/// Reads of paths with this suffix fail, after `spared` successful ones.
#[cfg(test)]
#[derive(Debug)]
struct Failing {
    suffix: String,
    spared: usize,
    count: usize,
    errno: i32,
}

impl Faults {
    /// Fails if a test has requested it.
    #[cfg_attr(not(test), expect(clippy::unused_self, reason = "only tests have faults"))]
    pub(in crate::store) fn check(&self, path: &Path) -> io::Result<()> {
        #[cfg(test)]
        {
            let mut failing = self.failing.lock().unwrap();
            let Some(fault) = failing.as_mut() else { return Ok(()) };
            if !path.to_string_lossy().ends_with(&fault.suffix) {
                return Ok(());
            }
            if fault.spared > 0 {
                fault.spared -= 1;
                return Ok(());
            }
            if fault.count > 0 {
                fault.count -= 1;
                return Err(io::Error::from_raw_os_error(fault.errno));
            }
        }
        let _ = path;
        Ok(())
    }

    /// Makes `count` reads of paths that end with `suffix` fail, after `spared` successful ones.
    #[cfg(test)]
    pub(in crate::store) fn fail(&self, suffix: &str, spared: usize, count: usize, errno: i32) {
        let suffix = suffix.to_owned();
        *self.failing.lock().unwrap() = Some(Failing { suffix, spared, count, errno });
    }

    /// Whether all requested failures have happened.
    #[cfg(test)]
    pub(in crate::store) fn are_spent(&self) -> bool {
        self.failing.lock().unwrap().as_ref().is_some_and(|fault| fault.count == 0)
    }
}
