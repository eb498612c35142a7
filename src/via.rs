//! Loop detection: Larder marks its requests with `Via: 1.1 larder-<instance>` (RFC 9110, section 7.6.3).
//!
//! Two Larders that are each other's upstream would wait for each other until one of them times out. So each request to
//! a registry names the Larders that it has passed, and a Larder that finds its own name in a request answers 508. The
//! name is random, is generated when the process starts, and reveals nothing about the machine.
//!
//! The chain follows the work across threads: the HTTP server enters the chain of a client's request, code that queues
//! a job for another thread passes the [`current`] chain along, and the upstream client sends it.
//!
//! A request that joins the download of another request does not add its chain to it, so two downloads could wait for each
//! other. Therefore responses name the Larder as well, and a Larder notes what it waits for at which other one
//! ([`asking`]). If the other one asks it for the same content meanwhile, it answers 508 ([`Via::is_asked_for`]). In a ring
//! of more than two, a timeout ends such downloads.
//!
//! This module must not know what a request is about.

use std::cell::RefCell;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

/// How many Larders a request may pass. No sensible setup chains as many.
const HOPS_MAX: usize = 8;
/// The prefix of every instance name.
const PREFIX: &str = "larder-";
/// The number of hexadecimal digits after the prefix.
const DIGITS: usize = 16;

/// The header by which a Larder tells its peer whom a registry has let pull, for the log of the peer.
pub const USER: &str = "larder-user";
/// The longest value of it, in characters.
const USER_CHARS_MAX: usize = 100;

/// Marks the entry of a Larder that sends a request to its peer.
const PEER: &str = "(peer)";

/// The Larders that a request has passed, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Via {
    hops: Option<Arc<[String]>>,
    /// Whether the last of them is a peer of this one.
    is_from_peer: bool,
    /// Whether the next one is a peer of this one.
    is_to_peer: bool,
    /// Whom the request is for, if a registry has let that user pull.
    user: Option<Arc<str>>,
}

/// A request has returned to this process, or has passed too many Larders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loop {
    /// The Larder that sent the request.
    pub sender: String,
}

thread_local! {
    /// The chain that this thread's current work belongs to.
    static CURRENT: RefCell<Via> = RefCell::default();
}

/// The name of this process.
pub fn instance() -> &'static str {
    static NAME: OnceLock<String> = OnceLock::new();
    NAME.get_or_init(|| {
        // `RandomState` is seeded with random numbers of the operating system.
        let random = RandomState::new().hash_one(RandomState::new().hash_one(std::process::id()));
        format!("{PREFIX}{random:016x}")
    })
}

impl Via {
    /// The Larders in the `Via` header lines of a request, without other intermediaries.
    ///
    /// # Errors
    /// [`Loop`] if this process is one of them, or if there are too many of them.
    pub fn parse<'a>(lines: impl IntoIterator<Item = &'a str>) -> Result<Via, Loop> {
        Via::received(lines, instance())
    }

    fn received<'a>(lines: impl IntoIterator<Item = &'a str>, own: &str) -> Result<Via, Loop> {
        let entries = lines.into_iter().flat_map(|line| line.split(','));
        let (mut hops, mut is_from_peer): (Vec<String>, bool) = (Vec::new(), false);
        for entry in entries {
            let mut words = entry.split_whitespace().skip(1);
            if let Some(name) = words.next().filter(|name| is_larder(name)) {
                hops.push(name.to_owned());
                is_from_peer = words.next() == Some(PEER);
            }
        }
        match hops.last() {
            None => Ok(Via::default()),
            Some(last) if hops.len() > HOPS_MAX || hops.iter().any(|hop| hop == own) => {
                Err(Loop { sender: last.clone() })
            }
            Some(_) => Ok(Via { hops: Some(hops.into()), is_from_peer, ..Via::default() }),
        }
    }

    /// Whether this process waits for a response of one of these Larders about the same content.
    pub fn is_asked_for(&self, what: impl fmt::Display) -> bool {
        let Some(hops) = &self.hops else { return false };
        let (what, asked) = (what.to_string(), asked());
        hops.iter().any(|hop| asked.iter().any(|(of, that)| of == hop && *that == what))
    }

    /// Whether a peer of this Larder has sent the request. It is not passed on to another one.
    pub fn is_from_peer(&self) -> bool {
        self.is_from_peer
    }

    /// Whether another Larder has sent the request.
    pub fn is_from_larder(&self) -> bool {
        self.hops.is_some()
    }

    /// The chain of a request to a peer.
    pub fn to_peer(self) -> Via {
        Via { is_to_peer: true, ..self }
    }

    /// The chain of a request of this user.
    pub fn of_user(self, user: &str) -> Via {
        Via { user: Some(user.into()), ..self }
    }

    /// The value of [`USER`] for a request to a peer: the user, without characters that a header cannot have.
    pub fn user_for_peer(&self) -> Option<String> {
        let user = self.user.as_deref().filter(|_| self.is_to_peer)?;
        Some(user.chars().filter(char::is_ascii_graphic).take(USER_CHARS_MAX).collect())
    }

    /// Runs `work` as part of this chain.
    pub fn enter<T>(self, work: impl FnOnce() -> T) -> T {
        let before = CURRENT.replace(self);
        // Also restored after a panic, because the thread continues with other work.
        let _restore = Restore(before);
        work()
    }
}

/// The value of the `Via` header for a response of this process.
pub fn of_response() -> &'static str {
    static VALUE: OnceLock<String> = OnceLock::new();
    VALUE.get_or_init(|| format!("1.1 {}", instance()))
}

/// The last Larder in the `Via` header lines of a response: the one that sent it.
pub fn sender<'a>(lines: impl IntoIterator<Item = &'a str>) -> Option<String> {
    let entries = lines.into_iter().flat_map(|line| line.split(','));
    let names = entries.filter_map(|entry| entry.split_whitespace().nth(1));
    names.filter(|name| is_larder(name)).last().map(str::to_owned)
}

/// What this process waits for, and at which Larder. Several requests may wait for the same.
static ASKED: Mutex<Vec<(String, String)>> = Mutex::new(Vec::new());

/// Locked for an insertion, a removal or a lookup. There are at most as many entries as fetchers.
fn asked() -> MutexGuard<'static, Vec<(String, String)>> {
    ASKED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes that this process asks a Larder for some content, until the guard is dropped.
pub fn asking(instance: String, what: String) -> Asking {
    let entry = (instance, what);
    asked().push(entry.clone());
    Asking(entry)
}

/// See [`asking`].
pub struct Asking((String, String));

impl Drop for Asking {
    fn drop(&mut self) {
        let mut asked = asked();
        if let Some(at) = asked.iter().position(|entry| *entry == self.0) {
            asked.swap_remove(at);
        }
    }
}

struct Restore(Via);

impl Drop for Restore {
    fn drop(&mut self) {
        CURRENT.set(std::mem::take(&mut self.0));
    }
}

/// The chain that this thread's current work belongs to.
pub fn current() -> Via {
    CURRENT.with_borrow(Via::clone)
}

/// The value of the `Via` header for a request from this process.
impl fmt::Display for Via {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hops = self.hops.iter().flat_map(|hops| hops.iter());
        hops.into_iter().try_for_each(|hop| write!(f, "1.1 {hop}, "))?;
        write!(f, "1.1 {}", instance())?;
        if self.is_to_peer { write!(f, " {PEER}") } else { Ok(()) }
    }
}

fn is_larder(name: &str) -> bool {
    let digits = name.strip_prefix(PREFIX);
    digits.is_some_and(|digits| {
        digits.len() == DIGITS && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const OWN: &str = "larder-00000000000000aa";
    const OTHER: &str = "larder-00000000000000bb";

    #[test]
    fn a_loop_is_detected_among_other_intermediaries() {
        let parse = |lines: &[&str]| Via::received(lines.iter().copied(), OWN);
        for lines in [&[][..], &["1.1 nginx"], &["1.1 larder-x, HTTP/1.1 proxy (larder)", ""]] {
            assert_eq!(parse(lines), Ok(Via::default()), "{lines:?}");
        }
        let passed = parse(&["1.0 proxy", &format!("1.1 {OTHER}")]).unwrap();
        let header = passed.to_string();
        assert_eq!(header, format!("1.1 {OTHER}, 1.1 {}", instance()));
        for lines in [
            [format!("1.1 {OWN}"), String::new()],
            [format!("1.1 {OWN}"), format!("1.1 {OTHER}, 1.1 proxy")],
            [vec![format!("1.1 {OTHER}"); HOPS_MAX + 1].join(","), String::new()],
        ] {
            let lines: Vec<&str> = lines.iter().map(String::as_str).collect();
            assert!(parse(&lines).is_err(), "{lines:?}");
        }
    }

    #[test]
    fn a_request_of_a_peer_is_recognized() {
        let parse = |line: &str| Via::received([line], OWN).unwrap();
        let sent = parse(&format!("1.1 {OTHER}")).to_peer().to_string();
        assert!(sent.ends_with(" (peer)"), "{sent}");
        assert!(parse(&sent.replace(instance(), "larder-00000000000000cc")).is_from_peer());
        assert!(!parse(&format!("1.1 {OTHER} (peer), 1.1 larder-00000000000000cc")).is_from_peer());
        assert!(!Via::default().is_from_peer());
    }

    #[test]
    fn content_is_asked_for_until_the_last_guard_is_dropped() {
        let passed = Via::received([&format!("1.1 {OTHER}")[..]], OWN).unwrap();
        assert!(!passed.is_asked_for("this"));
        let guards = [(); 2].map(|()| asking(OTHER.to_owned(), "this".to_owned()));
        let [first, second] = guards;
        drop(first);
        assert!(passed.is_asked_for("this") && !passed.is_asked_for("that"));
        assert!(!Via::default().is_asked_for("this"));
        drop(second);
        assert!(!passed.is_asked_for("this"));
    }

    #[test]
    fn the_sender_of_a_response_is_the_last_larder() {
        for (lines, expected) in [
            (&[][..], None),
            (&["1.1 nginx"], None),
            (
                &["1.1 larder-00000000000000aa, 1.1 larder-00000000000000bb", "1.1 nginx"],
                Some(OTHER),
            ),
        ] {
            assert_eq!(sender(lines.iter().copied()).as_deref(), expected, "{lines:?}");
        }
    }

    #[test]
    fn a_chain_is_left_even_after_a_panic() {
        let passed = Via::received([&format!("1.1 {OTHER}")[..]], OWN).unwrap();
        passed.clone().enter(|| assert_eq!(current(), passed));
        let panicked = std::panic::catch_unwind(|| passed.enter(|| panic!("at work")));
        assert!(panicked.is_err());
        assert_eq!(current(), Via::default());
    }
}
