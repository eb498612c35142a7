//! The users of an htpasswd file and their passwords: they decide which clients may pull.
//!
//! The file contains bcrypt hashes, which are slow to check by design. So each password is checked once: correct ones
//! are remembered until the file changes, and so are some wrong ones. One thread does all checks, which bounds the CPU
//! time that strangers can use, and clients share it fairly (`fair_queue`). No call waits for a check: a running
//! check is a [`crate::flight`]. This module must not know HTTP.
//!
//! Passwords are not kept once they are checked. What is remembered is a digest of user and password, with a salt of this
//! process.

mod fair_queue;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzzing;

use std::collections::{HashMap, HashSet, VecDeque};
use std::fmt;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::{Poll, Waker};
use std::thread;
use std::time::Instant;

use subtle::ConstantTimeEq;

use crate::certificates::WatchedFile;
use crate::client_address::ClientAddress;
use crate::flight::{Flights, Follower, Leader};
use crate::oci::{Algorithm, Digest};
use fair_queue::{FairQueue, Next};

/// How many wrong passwords are remembered, so that a few nodes with an old secret do not cost a check each time.
const REFUSED_MAX: usize = 256;
/// The lowest cost of bcrypt. No password matches a hash with a lower one.
const COST_MIN: u32 = 4;
/// The highest accepted cost of a hash: a check takes a few seconds, and each step doubles that.
const COST_MAX: u32 = 15;
/// The longest password that is checked. bcrypt itself uses only 72 bytes.
const PASSWORD_BYTES_MAX: usize = 1024;

/// `serverAuthConfig`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// A file of users and bcrypt hashes, as written by `htpasswd -B`.
    pub htpasswd: PathBuf,
}

impl Settings {
    /// Reads the file once and reports what is wrong with it.
    ///
    /// # Errors
    /// [`HtpasswdError`].
    pub fn check(&self) -> Result<(), HtpasswdError> {
        read(&self.htpasswd).map(drop)
    }
}

/// The users of an htpasswd file.
pub struct Users {
    shared: Arc<Shared>,
    file: Mutex<WatchedFile>,
}

impl Drop for Users {
    fn drop(&mut self) {
        let mut queue = lock(&self.shared.queue);
        // This drops the waiting checks, which ends their flights.
        *queue = Queue { is_closed: true, checks: FairQueue::new() };
        drop(queue);
        self.shared.queue_changed.notify_all();
    }
}

struct Shared {
    salt: [u8; 32],
    /// Held for lookups, never while a password is checked.
    known: Mutex<Known>,
    running: Flights<Digest, (), bool, Unchecked>,
    /// Held to add or take a check. While it is held, only locks of flights are taken.
    queue: Mutex<Queue>,
    queue_changed: Condvar,
}

/// The checks that wait for the checking thread.
struct Queue {
    is_closed: bool,
    checks: FairQueue<Check>,
}

/// What is known of the file's users.
struct Known {
    hashes: Arc<HashMap<String, String>>,
    /// Counts how often the file was loaded. A result that was found with an earlier file is not remembered.
    generation: u64,
    /// The digest of each user's correct password.
    accepted: HashMap<String, Digest>,
    refused: HashSet<Digest>,
    /// The same digests, oldest first.
    refused_in_order: VecDeque<Digest>,
}

/// One password to check.
struct Check {
    leader: Leader<Digest, (), bool, Unchecked>,
    user: String,
    password: String,
}

/// Whether a user and a password are accepted.
pub enum Verdict {
    /// `true` if the user may pull.
    Known(bool),
    /// The password is being checked.
    Wait(CheckWait),
}

/// Waits for a check.
pub struct CheckWait {
    flight: Follower<(), bool, Unchecked>,
}

impl CheckWait {
    /// Whether the user may pull, once that is known.
    pub fn poll(&self, waker: &Waker) -> Poll<Result<bool, Unchecked>> {
        self.flight.poll_outcome(waker)
    }

    /// Stops waiting. `waker` is the one that was passed to `poll`.
    pub fn give_up(self, waker: &Waker) {
        self.flight.forget(waker);
    }
}

/// The password was not checked because too many checks were waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unchecked;

impl Users {
    /// Reads the file and starts the checking thread.
    ///
    /// # Errors
    /// [`HtpasswdError`].
    pub fn load(settings: &Settings) -> Result<Users, HtpasswdError> {
        let (file, hashes) = WatchedFile::open(&settings.htpasswd, read)?;
        let known = Known::new(Arc::new(hashes), 0);
        let mut salt = [0; 32];
        let random = rustls::crypto::ring::default_provider().secure_random;
        random.fill(&mut salt).map_err(|_| HtpasswdError::System {
            source: Arc::new(io::Error::other("the system provides no random bytes")),
        })?;
        let shared = Arc::new(Shared {
            salt,
            known: Mutex::new(known),
            running: Flights::new(),
            queue: Mutex::new(Queue { is_closed: false, checks: FairQueue::new() }),
            queue_changed: Condvar::new(),
        });
        let checker = Arc::clone(&shared);
        thread::Builder::new()
            .name("passwords".into())
            .spawn(move || checker.check_all())
            .map_err(|source| HtpasswdError::System { source: Arc::new(source) })?;
        Ok(Users { shared, file: Mutex::new(file) })
    }

    /// The settings these users were loaded with.
    pub fn settings(&self) -> Settings {
        Settings { htpasswd: lock(&self.file).path().to_owned() }
    }

    /// Whether `user` may pull with `password`, as presented by `client`. Does not block.
    pub fn check(&self, client: ClientAddress, user: &str, password: &str) -> Verdict {
        if password.len() > PASSWORD_BYTES_MAX {
            return Verdict::Known(false);
        }
        let digest = self.shared.digest(user, password);
        if let Some(verdict) = lock(&self.shared.known).recall(user, &digest) {
            return Verdict::Known(verdict);
        }
        let joined = self.shared.running.join(&digest, || Unchecked);
        if let Some(leader) = joined.leader {
            let check = Check { leader, user: user.to_owned(), password: password.to_owned() };
            let has_entry = lock(&self.shared.known).hashes.contains_key(user);
            let listed = has_entry.then_some(user);
            let refused = lock(&self.shared.queue).checks.push(client, listed, check);
            self.shared.queue_changed.notify_one();
            // Dropping its leader fails the flight for all clients that joined it.
            drop(refused);
        }
        Verdict::Wait(CheckWait { flight: joined.flight })
    }

    /// Whether the file has this user.
    pub fn has(&self, user: &str) -> bool {
        lock(&self.shared.known).hashes.contains_key(user)
    }

    /// Reloads the file if it has changed. If it cannot be used, the current users stay, and that is logged once.
    pub fn look(&self) {
        let mut file = lock(&self.file);
        match file.reread(read) {
            None => {}
            Some(Ok(hashes)) => {
                let count = hashes.len();
                // The new users count before the line is logged, so whoever reads the line can rely on it.
                lock(&self.shared.known).replace(hashes);
                log::info!(file:% = file.path().display(), count; "serverAuthConfig: reloaded");
            }
            Some(Err(error)) => log::error!(
                error = error.as_str();
                "serverAuthConfig: cannot reload; keeping the current users"
            ),
        }
    }
}

impl Known {
    fn new(hashes: Arc<HashMap<String, String>>, generation: u64) -> Known {
        Known {
            hashes,
            generation,
            accepted: HashMap::new(),
            refused: HashSet::new(),
            refused_in_order: VecDeque::new(),
        }
    }

    fn recall(&self, user: &str, digest: &Digest) -> Option<bool> {
        if self.accepted.get(user).is_some_and(|accepted| same(accepted, digest)) {
            return Some(true);
        }
        // A hash lookup is not constant-time, but the digest has a secret salt, so its timing reveals nothing.
        self.refused.contains(digest).then_some(false)
    }

    fn remember(&mut self, user: &str, digest: Digest, verdict: bool) {
        if verdict {
            self.accepted.insert(user.to_owned(), digest);
            return;
        }
        if self.refused_in_order.len() == REFUSED_MAX
            && let Some(oldest) = self.refused_in_order.pop_front()
        {
            self.refused.remove(&oldest);
        }
        self.refused.insert(digest);
        self.refused_in_order.push_back(digest);
    }

    fn replace(&mut self, hashes: HashMap<String, String>) {
        *self = Known::new(Arc::new(hashes), self.generation + 1);
    }
}

impl Shared {
    fn digest(&self, user: &str, password: &str) -> Digest {
        // A user name has no colon, so no two pairs give the same text.
        let text = [&self.salt, user.as_bytes(), b":", password.as_bytes()].concat();
        Digest::of(Algorithm::Sha256, &text)
    }

    /// Waits for the next check. Returns `None` once the queue is closed.
    fn next_check(&self) -> Option<(ClientAddress, Check)> {
        let mut queue = lock(&self.queue);
        while !queue.is_closed {
            let now = Instant::now();
            queue = match queue.checks.next(now) {
                Next::Check(client, check) => return Some((client, check)),
                Next::Pause(until) => {
                    let pause = until.saturating_duration_since(now);
                    let waited = self.queue_changed.wait_timeout(queue, pause);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
                Next::Idle => {
                    self.queue_changed.wait(queue).unwrap_or_else(PoisonError::into_inner)
                }
            };
        }
        None
    }

    fn check_all(&self) {
        while let Some((client, check)) = self.next_check() {
            let Check { leader, user, password } = check;
            let digest = *leader.key();
            let (hashes, generation, known) = {
                let known = lock(&self.known);
                (Arc::clone(&known.hashes), known.generation, known.recall(&user, &digest))
            };
            // A client that missed the result of a check and joined after its end starts the same check again.
            let verdict = known.unwrap_or_else(|| verify(&hashes, &user, &password));
            let mut known = lock(&self.known);
            if known.generation == generation && known.recall(&user, &digest).is_none() {
                known.remember(&user, digest, verdict);
            }
            drop(known);
            lock(&self.queue).checks.checked(client, verdict, Instant::now());
            leader.finish(Ok(verdict));
        }
    }
}

/// Whether the password is the user's. Unknown user names take as long as known ones. The queue of an address that guesses
/// many names still reveals which ones exist (`fair_queue`); user names are not secret.
fn verify(hashes: &HashMap<String, String>, user: &str, password: &str) -> bool {
    let hash = hashes.get(user);
    let Some(compared) = hash.or_else(|| hashes.values().next()) else { return false };
    // The file was refused if a hash in it was malformed, so this fails only for wrong passwords.
    let is_correct = bcrypt::verify(password, compared).unwrap_or(false);
    is_correct && hash.is_some()
}

fn same(one: &Digest, other: &Digest) -> bool {
    one.to_string().as_bytes().ct_eq(other.to_string().as_bytes()).into()
}

/// The users of a file, and their hashes.
fn read(path: &Path) -> Result<HashMap<String, String>, HtpasswdError> {
    let text = fs::read_to_string(path).map_err(|source| HtpasswdError::Read {
        path: path.to_owned(),
        source: Arc::new(source),
    })?;
    parse(&text).map_err(|(line, reason)| HtpasswdError::Line {
        path: path.to_owned(),
        line,
        reason,
    })
}

/// Parses lines of the form `user:hash`, and skips empty lines and comments. A file without users is refused, because
/// that is what a full disk or an interrupted copy leaves.
fn parse(text: &str) -> Result<HashMap<String, String>, (usize, &'static str)> {
    let mut users = HashMap::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((user, hash)) = line.split_once(':').filter(|(user, _)| !user.is_empty()) else {
            return Err((number, "expected user:hash, as written by `htpasswd -B`"));
        };
        let Ok(parts) = hash.parse::<bcrypt::HashParts>() else {
            return Err((number, "not a bcrypt hash; create one with `htpasswd -B`"));
        };
        if parts.get_cost() < COST_MIN {
            return Err((number, "the cost of this hash is below 4, the minimum of bcrypt"));
        }
        if parts.get_cost() > COST_MAX {
            return Err((
                number,
                "the cost of this hash is above 15; each check would take many seconds",
            ));
        }
        if users.insert(user.to_owned(), hash.to_owned()).is_some() {
            return Err((number, "duplicate user"));
        }
    }
    if users.is_empty() { Err((1, "the file has no users")) } else { Ok(users) }
}

/// Nothing that can panic runs under these locks, so the data of a poisoned lock is consistent.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why an htpasswd file cannot be used.
#[derive(Debug, Clone)]
pub enum HtpasswdError {
    /// The file cannot be read.
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: Arc<io::Error>,
    },
    /// A line is invalid. The error does not quote it, because it may contain a password.
    Line {
        /// The file.
        path: PathBuf,
        /// The line number, starting at 1.
        line: usize,
        /// What is wrong, and what is expected.
        reason: &'static str,
    },
    /// The system cannot provide a thread or random bytes.
    System {
        /// The system's error.
        source: Arc<io::Error>,
    },
}

impl fmt::Display for HtpasswdError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HtpasswdError::Read { path, source } => {
                write!(f, "cannot read {}: {source}", path.display())
            }
            HtpasswdError::Line { path, line, reason } => {
                write!(f, "{}:{line}: {reason}", path.display())
            }
            HtpasswdError::System { source } => write!(f, "cannot check passwords: {source}"),
        }
    }
}

impl std::error::Error for HtpasswdError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            HtpasswdError::Read { source, .. } | HtpasswdError::System { source } => {
                Some(&**source)
            }
            HtpasswdError::Line { .. } => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr};
    use std::sync::mpsc::{SyncSender, sync_channel};
    use std::task::Wake;

    use super::*;

    const HERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
    const THERE: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));

    /// Hashes with the lowest cost, to keep the tests fast.
    fn hash(password: &str) -> String {
        bcrypt::hash(password, 4).unwrap()
    }

    struct Site {
        _directory: tempfile::TempDir,
        path: PathBuf,
        users: Users,
    }

    fn site(text: &str) -> Site {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("htpasswd");
        fs::write(&path, text).unwrap();
        let users = Users::load(&Settings { htpasswd: path.clone() }).unwrap();
        Site { _directory: directory, path, users }
    }

    struct Bell(SyncSender<()>);

    impl Wake for Bell {
        fn wake(self: Arc<Self>) {
            let _ = self.0.try_send(());
        }
    }

    impl Site {
        fn may(&self, user: &str, password: &str) -> bool {
            let waiting = match self.users.check(HERE.into(), user, password) {
                Verdict::Known(verdict) => return verdict,
                Verdict::Wait(waiting) => waiting,
            };
            let (ring, rung) = sync_channel(1);
            let waker = Waker::from(Arc::new(Bell(ring)));
            loop {
                match waiting.poll(&waker) {
                    Poll::Ready(verdict) => return verdict.unwrap(),
                    Poll::Pending => rung.recv().unwrap(),
                }
            }
        }

        fn is_known(&self, user: &str, password: &str) -> bool {
            matches!(self.users.check(HERE.into(), user, password), Verdict::Known(_))
        }

        fn put(&self, text: &str) {
            let new = self.path.with_extension("new");
            fs::write(&new, text).unwrap();
            fs::rename(new, &self.path).unwrap();
            self.users.look();
        }
    }

    #[test]
    fn correct_passwords_are_accepted_and_checked_once() {
        let site = site(&format!("# nodes\n\nann:{}\nbob:{}\n", hash("a"), hash("b")));
        assert!(site.may("ann", "a") && site.may("bob", "b"));
        assert!(site.is_known("ann", "a") && site.is_known("bob", "b"));
        for (user, password) in [("ann", "b"), ("ann", ""), ("eve", "a"), ("", "a")] {
            assert!(!site.may(user, password), "{user}");
            assert!(site.is_known(user, password), "{user}");
            assert!(!site.may(user, password), "{user}");
        }
        assert!(site.may("ann", "a"), "wrong passwords of others change nothing");
        assert!(!site.may("ann", &"a".repeat(PASSWORD_BYTES_MAX + 1)));
    }

    #[test]
    fn hashes_from_apache_htpasswd_are_accepted() {
        // The output of `htpasswd -nbB -C 4 demo secret` by Apache.
        let site = site("demo:$2y$04$5TeKT.s9FsTxS3i9dnaT.eeZsnvHkTXDfq6YA/Pb9LXeQk3bD5R2m\n");
        assert!(site.may("demo", "secret") && !site.may("demo", "Secret"));
    }

    #[test]
    fn a_changed_file_forgets_accepted_passwords() {
        let site = site(&format!("ann:{}", hash("old")));
        assert!(site.may("ann", "old") && !site.may("ann", "new"));
        site.put(&format!("ann:{}", hash("new")));
        assert!(site.may("ann", "new") && !site.may("ann", "old"));
        for broken in ["", "ann", "ann:plain"] {
            site.put(broken);
            assert!(site.may("ann", "new"), "{broken:?} must not lock everyone out");
        }
        site.put(&format!("bob:{}", hash("b")));
        assert!(site.may("bob", "b") && !site.may("ann", "new"));
    }

    #[test]
    fn an_invalid_file_is_refused_with_the_line_number() {
        let good = hash("x");
        for (text, line, words) in [
            ("".to_owned(), 1, "no users"),
            ("# only\n".to_owned(), 1, "no users"),
            (format!("a:{good}\nb"), 2, "user:hash"),
            (format!(":{good}"), 1, "user:hash"),
            ("a:$apr1$x$y".to_owned(), 1, "bcrypt"),
            ("a:{SHA}x".to_owned(), 1, "bcrypt"),
            (format!("a:{}", good.replacen("$04$", "$16$", 1)), 1, "cost"),
            (format!("a:{}", good.replacen("$04$", "$03$", 1)), 1, "cost"),
            (format!("a:{good}\na:{good}"), 2, "duplicate"),
        ] {
            let (found, reason) = parse(&text).unwrap_err();
            assert!(found == line && reason.contains(words), "{text}: {found} {reason}");
        }
    }

    #[test]
    fn the_number_of_remembered_wrong_passwords_is_bounded() {
        let mut known = Known::new(Arc::default(), 0);
        let digest = |number: usize| Digest::of(Algorithm::Sha256, &number.to_le_bytes());
        for number in 0..REFUSED_MAX + 5 {
            known.remember("ann", digest(number), false);
        }
        assert_eq!((known.refused.len(), known.refused_in_order.len()), (REFUSED_MAX, REFUSED_MAX));
        assert_eq!(known.recall("ann", &digest(4)), None);
        assert_eq!(known.recall("ann", &digest(5)), Some(false));
    }

    /// Waits for the end of a check.
    fn outcome(wait: &CheckWait) -> Result<bool, Unchecked> {
        let (ring, rung) = sync_channel(1);
        let waker = Waker::from(Arc::new(Bell(ring)));
        loop {
            match wait.poll(&waker) {
                Poll::Ready(verdict) => return verdict,
                Poll::Pending => rung.recv().unwrap(),
            }
        }
    }

    /// Tries 500 wrong passwords of 80 users and returns the running checks.
    fn guess(users: &Users, from: IpAddr) -> Vec<CheckWait> {
        let check = |guess: u32| {
            users.check(from.into(), &format!("user{}", guess % 80), &guess.to_string())
        };
        let waits = (0..500).filter_map(|guess| match check(guess) {
            Verdict::Wait(wait) => Some(wait),
            Verdict::Known(_) => None,
        });
        waits.collect()
    }

    #[test]
    fn every_check_ends_even_when_the_queue_is_full_or_closed() {
        let site = site(&format!("ann:{}", hash("a")));
        let waits = guess(&site.users, HERE);
        drop(site);
        let outcomes: Vec<_> = waits.iter().map(outcome).collect();
        assert!(outcomes.contains(&Err(Unchecked)) && !outcomes.contains(&Ok(true)));
    }

    #[test]
    fn guessers_do_not_lock_out_others() {
        let site = site(&format!("ann:{}", hash("a")));
        let waits = guess(&site.users, HERE);
        let Verdict::Wait(wait) = site.users.check(THERE.into(), "ann", "a") else {
            panic!("this password was not checked before")
        };
        assert_eq!(outcome(&wait), Ok(true));
        drop(waits);
    }
}
