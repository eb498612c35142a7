//! How often images were pulled since the start, and by which client last.
//!
//! Not stored: an exact number would cost a write to the disk for each pull.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use super::up_to;
use crate::api::access_log::AGENT_CHARS_MAX;
use crate::http::Request;
use crate::oci::{ImageName, Reference};

/// The number of images that are counted. Those that were pulled last are kept.
const IMAGES_MAX: usize = 4096;
/// A pull is several requests for the manifest (HEAD and GET), within this time from one client.
const SAME_PULL: Duration = Duration::from_secs(10);

/// The pulls of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::api) struct Pulls {
    pub(in crate::api) count: u64,
    pub(in crate::api) last: SystemTime,
    pub(in crate::api) client: IpAddr,
    pub(in crate::api) agent: Option<Box<str>>,
}

/// See the description of the module. Locked for a lookup or a change.
#[derive(Default)]
pub(in crate::api) struct PullCounts(Mutex<Images>);

type Images = HashMap<(ImageName, Reference), Pulls>;

impl PullCounts {
    /// Counts a request for a manifest of an image.
    pub(in crate::api) fn note(
        &self,
        name: &ImageName,
        reference: &Reference,
        request: &Request,
        now: SystemTime,
    ) {
        let image = (name.clone(), reference.clone());
        let (client, agent) = (request.peer().ip(), request.header("user-agent"));
        let mut images = self.lock();
        if let Some(pulls) = images.get_mut(&image) {
            let age = now.duration_since(pulls.last).unwrap_or_default();
            if pulls.client == client && age < SAME_PULL {
                return;
            }
            pulls.count += 1;
            (pulls.last, pulls.client) = (now, client);
            let agent = agent.map(|agent| up_to(AGENT_CHARS_MAX, agent));
            if pulls.agent.as_deref() != agent {
                pulls.agent = agent.map(Into::into);
            }
            return;
        }
        if images.len() >= IMAGES_MAX {
            forget_older_half(&mut images);
        }
        let agent = agent.map(|agent| up_to(AGENT_CHARS_MAX, agent).into());
        images.insert(image, Pulls { count: 1, last: now, client, agent });
    }

    pub(in crate::api) fn of(&self, image: &(ImageName, Reference)) -> Option<Pulls> {
        self.lock().get(image).cloned()
    }

    /// The number of pulls, for sorting.
    pub(in crate::api) fn count(&self, image: &(ImageName, Reference)) -> u64 {
        self.lock().get(image).map_or(0, |pulls| pulls.count)
    }

    fn lock(&self) -> MutexGuard<'_, Images> {
        // Every state of a count is valid.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A sort of the complete table, once in so many new images.
fn forget_older_half(images: &mut Images) {
    let mut times: Vec<SystemTime> = images.values().map(|pulls| pulls.last).collect();
    times.sort_unstable();
    let middle = times[times.len() / 2];
    images.retain(|_, pulls| pulls.last > middle);
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn request(client: u8) -> Request {
        let head = "GET /v2/a HTTP/1.1\r\nHost: h\r\nUser-Agent: containerd/2.1\r\n\r\n";
        Request::parse(head, ([10, 0, 0, client], 1).into(), Instant::now()).unwrap()
    }

    fn image(tag: &str) -> (ImageName, Reference) {
        let (upstream, repository) = ("r.test".parse().unwrap(), "a".parse().unwrap());
        (ImageName { upstream, repository }, tag.parse().unwrap())
    }

    fn note(counts: &PullCounts, tag: &str, client: u8, seconds: u64) {
        let (name, reference) = image(tag);
        counts.note(&name, &reference, &request(client), at(seconds));
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn the_requests_of_one_pull_count_once() {
        let counts = PullCounts::default();
        for (client, seconds) in [(1, 0), (1, 3), (2, 4), (1, 5), (1, 20)] {
            note(&counts, "1", client, seconds);
        }
        let pulls = counts.of(&image("1")).unwrap();
        assert_eq!((pulls.count, pulls.last, pulls.client), (4, at(20), [10, 0, 0, 1].into()));
        assert_eq!(pulls.agent.as_deref(), Some("containerd/2.1"));
        assert_eq!((counts.of(&image("2")), counts.count(&image("2"))), (None, 0));
    }

    #[test]
    fn the_table_is_bounded_and_keeps_what_was_pulled_last() {
        let counts = PullCounts::default();
        for number in 0..3 * IMAGES_MAX {
            note(&counts, &number.to_string(), 1, number as u64);
        }
        assert!(counts.lock().len() <= IMAGES_MAX);
        assert_eq!(counts.count(&image(&(3 * IMAGES_MAX - 1).to_string())), 1);
        // All at the same time, as after a clock that stood still.
        (0..2 * IMAGES_MAX).for_each(|number| note(&counts, &format!("b{number}"), 1, 0));
        assert!(counts.lock().len() <= IMAGES_MAX);
    }
}
