//! Tells nodes from scanners by what they check with HEAD.
//!
//! A node checks the images that it runs: tens of them, a few tags of each repository. A scanner or an update checker
//! checks hundreds or thousands, often all tags of a repository. Its checks must not download what it lists, even if it
//! sends the `User-Agent` of a container runtime.

use std::collections::hash_map::RandomState;
use std::collections::{HashMap, HashSet};
use std::hash::BuildHasher;
use std::time::{Duration, SystemTime};

use crate::cache::bounded::BoundedCache;
use crate::client_address::ClientAddress;
use crate::oci::{ImageName, Reference};

/// The period in which checks are counted.
const WINDOW: Duration = Duration::from_secs(3600);
/// How many images a client may check in a window. A kubelet runs at most 110 pods by default; twice as many images,
/// for pods with several containers and for pods that are replaced.
const IMAGES_MAX: usize = 256;
/// How many tags of one repository.
const TAGS_MAX: usize = 32;
/// From this number of images, or of tags of one repository, a client may turn out to be a scanner. Its images wait
/// until that is known.
const IMAGES_PROMPT: usize = 32;
const TAGS_PROMPT: usize = 8;
/// How many clients are counted.
const CLIENTS_MAX: usize = 1024;

/// What a check means for its image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The client runs the image.
    Node,
    /// The client checks many images. It may be a node that starts, or a scanner that begins.
    Undecided,
    /// The client is a scanner.
    Scanner {
        /// Whether this check has shown it.
        is_new: bool,
    },
}

/// The checks of each client in the current window.
pub(super) struct Checks {
    clients: BoundedCache<Option<ClientAddress>, Window>,
    /// Images and repositories are counted by their hashes, with a key that clients do not know.
    hasher: RandomState,
}

struct Window {
    began: SystemTime,
    images: HashSet<u64>,
    /// The number of checked tags of each repository.
    tags: HashMap<u64, usize>,
    is_scanner: bool,
}

impl Window {
    fn new(began: SystemTime) -> Window {
        Window { began, images: HashSet::new(), tags: HashMap::new(), is_scanner: false }
    }
}

impl Checks {
    pub(super) fn new() -> Checks {
        Checks { clients: BoundedCache::new(CLIENTS_MAX), hasher: RandomState::new() }
    }

    /// Counts the check of an image.
    pub(super) fn count(
        &mut self,
        client: Option<ClientAddress>,
        name: &ImageName,
        reference: &Reference,
        now: SystemTime,
    ) -> Verdict {
        let image = self.hasher.hash_one((name, reference));
        let repository = self.hasher.hash_one(name);
        let is_current =
            |window: &Window| now.duration_since(window.began).is_ok_and(|age| age < WINDOW);
        if !self.clients.get(&client).is_some_and(is_current) {
            self.clients.insert(client, Window::new(now));
        }
        let Some(window) = self.clients.get_mut(&client) else { return Verdict::Undecided };
        if window.is_scanner {
            return Verdict::Scanner { is_new: false };
        }
        let tags = window.tags.entry(repository).or_default();
        if window.images.insert(image) {
            *tags += 1;
        }
        let tags = *tags;
        if window.images.len() > IMAGES_MAX || tags > TAGS_MAX {
            // What it has checked is not needed any more.
            *window = Window { is_scanner: true, ..Window::new(window.began) };
            return Verdict::Scanner { is_new: true };
        }
        match window.images.len() > IMAGES_PROMPT || tags > TAGS_PROMPT {
            true => Verdict::Undecided,
            false => Verdict::Node,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: SystemTime = SystemTime::UNIX_EPOCH;

    fn client(last: u8) -> Option<ClientAddress> {
        Some(std::net::IpAddr::from([192, 0, 2, last]).into())
    }

    fn image(repository: &str, tag: &str) -> (ImageName, Reference) {
        let (upstream, repository) = ("reg.test".parse().unwrap(), repository.parse().unwrap());
        (ImageName { upstream, repository }, tag.parse().unwrap())
    }

    fn verdicts(
        checks: &mut Checks,
        images: impl Iterator<Item = (String, String)>,
    ) -> Vec<Verdict> {
        let mut verdicts: Vec<Verdict> = images
            .map(|(repository, tag)| {
                let (name, reference) = image(&repository, &tag);
                checks.count(client(1), &name, &reference, START)
            })
            .collect();
        verdicts.dedup();
        verdicts
    }

    #[test]
    fn a_node_may_check_its_images_any_number_of_times() {
        let mut checks = Checks::new();
        let images = (0..10_000).map(|number| (format!("app{}", number % 30), "v1".to_owned()));
        assert_eq!(verdicts(&mut checks, images), [Verdict::Node]);
    }

    #[test]
    fn many_images_or_many_tags_of_one_repository_show_a_scanner() {
        use Verdict::{Node, Scanner, Undecided};
        let order = [Node, Undecided, Scanner { is_new: true }, Scanner { is_new: false }];
        let tags = (0..1000).map(|number| ("app".to_owned(), format!("v{number}")));
        assert_eq!(verdicts(&mut Checks::new(), tags), order);
        let images = (0..1000).map(|number| (format!("app{number}"), "latest".to_owned()));
        assert_eq!(verdicts(&mut Checks::new(), images), order);
    }

    #[test]
    fn a_scanner_counts_as_one_for_an_hour_and_affects_no_other_client() {
        let mut checks = Checks::new();
        let tags = (0..100).map(|number| ("app".to_owned(), format!("v{number}")));
        verdicts(&mut checks, tags);
        let (name, reference) = image("other", "v1");
        let mut at = |last, seconds| {
            checks.count(client(last), &name, &reference, START + Duration::from_secs(seconds))
        };
        assert_eq!(at(2, 1), Verdict::Node);
        assert_eq!(at(1, 3599), Verdict::Scanner { is_new: false });
        assert_eq!(at(1, 3600), Verdict::Node);
    }
}
