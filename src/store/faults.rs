//! Failing reads, for tests: in a build that is no test there are none.

use std::io;
use std::path::Path;

/// Which reads fail.
#[derive(Debug, Default)]
pub(super) struct Faults {
    #[cfg(test)]
    failing: std::sync::Mutex<Option<Failing>>,
}

/// Reads of paths that end so fail, after some that succeed.
#[cfg(test)]
#[derive(Debug)]
struct Failing {
    suffix: String,
    spared: usize,
    count: usize,
    errno: i32,
}

impl Faults {
    /// Fails as a test has asked for.
    #[cfg_attr(not(test), expect(clippy::unused_self, reason = "only tests have faults"))]
    pub(super) fn check(&self, path: &Path) -> io::Result<()> {
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

    /// Lets `count` reads of paths that end with `suffix` fail, after `spared` that succeed.
    #[cfg(test)]
    pub(super) fn fail(&self, suffix: &str, spared: usize, count: usize, errno: i32) {
        let suffix = suffix.to_owned();
        *self.failing.lock().unwrap() = Some(Failing { suffix, spared, count, errno });
    }

    /// Whether all failures that were asked for have happened.
    #[cfg(test)]
    pub(super) fn are_spent(&self) -> bool {
        self.failing.lock().unwrap().as_ref().is_some_and(|fault| fault.count == 0)
    }
}
