//! Uploads that fail: when they are repeated, and from when to when they count as failing.

use std::collections::HashSet;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use super::{PAUSE_MAX, PAUSE_MIN, Shared};
use crate::cache::lock;
use crate::store::OutgoingEntry;
use crate::upstream::UpstreamError;

/// How many uploads are remembered that have failed while others succeeded.
const DELAYED_MAX: usize = 16_384;

/// When an upload that has failed is tried again.
pub(super) struct Delay {
    pub(super) until: Instant,
    wait: Duration,
}

impl Delay {
    /// The delay after another failure.
    fn after(before: Option<&Delay>, now: Instant) -> Delay {
        let wait = before.map_or(PAUSE_MIN, |delay| (delay.wait * 2).min(PAUSE_MAX));
        Delay { until: now + wait, wait }
    }
}

/// From the first failure of an upload until everything that has failed is uploaded.
pub(super) struct Outage {
    pub(super) since: SystemTime,
    /// The last failure.
    pub(super) text: String,
    /// Whether an upload has succeeded meanwhile, so that all that have failed were tried again at once.
    has_retried: bool,
}

impl Shared {
    /// Notes that an entry is uploaded. The outage ends when nothing is left that has failed.
    pub(super) fn note_success(&self, entry: &OutgoingEntry, now: SystemTime) {
        let (mut delayed, mut outage) = (lock(&self.delayed), lock(&self.outage));
        delayed.remove(entry);
        match outage.take() {
            None => {}
            Some(ended) if delayed.is_empty() => log_end(&ended, now),
            Some(going_on) => {
                if !going_on.has_retried {
                    // Only once, or objects that the store never accepts would be sent again and again.
                    delayed.values_mut().for_each(|delay| delay.until = Instant::now());
                }
                *outage = Some(Outage { has_retried: true, ..going_on });
            }
        }
    }

    /// Forgets the delays of what is not queued any more, for example because another process has uploaded it. `entries`
    /// may be a part of what is queued.
    pub(super) fn forget_delays(&self, entries: &[OutgoingEntry], count: usize) {
        let (mut delayed, mut outage) = (lock(&self.delayed), lock(&self.outage));
        if entries.len() < count || delayed.is_empty() && !entries.is_empty() {
            return;
        }
        let queued: HashSet<&OutgoingEntry> = entries.iter().collect();
        delayed.retain(|entry, _| queued.contains(entry));
        if entries.is_empty() {
            *outage = None;
        }
    }

    pub(super) fn note_failure(&self, error: &UpstreamError, now: SystemTime) {
        let mut outage = lock(&self.outage);
        // Once for each outage.
        match outage.as_mut() {
            Some(outage) => outage.text = error.to_string(),
            None => {
                log::warn!(
                    files = self.queued.load(Ordering::Relaxed), error:%;
                    "objectStore: uploads fail; they wait"
                );
                *outage = Some(Outage { since: now, text: error.to_string(), has_retried: false });
            }
        }
    }

    /// Notes that an upload is repeated later, while others go on.
    pub(super) fn delay(&self, entry: &OutgoingEntry) {
        let mut delayed = lock(&self.delayed);
        if delayed.len() >= DELAYED_MAX {
            delayed.clear();
        }
        let delay = Delay::after(delayed.get(entry), Instant::now());
        delayed.insert(entry.clone(), delay);
    }
}

fn log_end(outage: &Outage, now: SystemTime) {
    let outage = now.duration_since(outage.since).unwrap_or_default();
    log::info!(outage_ms = outage.as_secs_f64() * 1e3; "objectStore: uploads succeed again");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upload_that_fails_is_repeated_at_least_once_a_minute() {
        let now = Instant::now();
        let mut delay = Delay::after(None, now);
        assert_eq!(delay.wait, PAUSE_MIN);
        for _ in 0..20 {
            delay = Delay::after(Some(&delay), now);
            assert!(delay.wait <= Duration::from_secs(60) && delay.until == now + delay.wait);
        }
        assert_eq!(delay.wait, PAUSE_MAX);
    }
}
