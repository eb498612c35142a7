//! Who may pull: the users of an htpasswd file, and their passwords.
//!
//! The file holds bcrypt hashes, which are slow to check by design. So a password is checked once: who has
//! shown a right one is remembered until the file changes, and so are some wrong ones. What has to be
//! checked is checked by one thread, which is all the time that strangers can cost, in an order that
//! clients share fairly (`turns`). Nobody waits in here: a check under way is a [`crate::flight`]. This room must not know HTTP.
//!
//! Passwords are kept nowhere. What is remembered is a digest of user and password under a salt of this
//! process.

mod fair_queue;

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

use crate::certificates::Stamp;
use crate::client_address::ClientAddress;
use crate::flight::{Flights, Follower, Leader};
use crate::oci::{Algorithm, Digest};
use fair_queue::{FairQueue, Next};

/// Wrong passwords remembered: some nodes with an old secret are told so without a check each time.
const REFUSED_MAX: usize = 256;
/// The highest cost of a hash that is accepted: some seconds for each check, twice as many for each step.
const COST_MAX: u32 = 15;
/// The longest password that is checked: bcrypt itself looks at 72 bytes.
const PASSWORD_BYTES_MAX: usize = 1024;

/// `serverAuthConfig`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// A file of users and bcrypt hashes, as `htpasswd -B` writes it.
    pub htpasswd: PathBuf,
}

impl Settings {
    /// Reads the file once, to say what is wrong with it.
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
    watch: Mutex<Watch>,
}

impl Drop for Users {
    fn drop(&mut self) {
        let mut queue = lock(&self.shared.queue);
        // The checks that wait are dropped with it, which tells their clients.
        *queue = Queue { is_closed: true, checks: FairQueue::new() };
        drop(queue);
        self.shared.queue_changed.notify_all();
    }
}

/// The file that is looked at.
struct Watch {
    path: PathBuf,
    stamp: Stamp,
    /// Why the file as it is now is not in force, once that was said.
    refused: Option<String>,
}

struct Shared {
    salt: [u8; 32],
    /// Held for look-ups, never while a password is checked.
    known: Mutex<Known>,
    under_way: Flights<Digest, (), bool, Unchecked>,
    /// Held to add or take a check. No other lock is taken while it is held, but those of flights.
    queue: Mutex<Queue>,
    queue_changed: Condvar,
}

/// The checks that wait for the thread.
struct Queue {
    is_closed: bool,
    checks: FairQueue<Check>,
}

/// What is known of the file's users.
struct Known {
    hashes: Arc<HashMap<String, String>>,
    /// Counts the files that were in force: what was found out by another is not remembered.
    generation: u64,
    /// The right password of a user, as a digest.
    accepted: HashMap<String, Digest>,
    refused: HashSet<Digest>,
    /// The same, the oldest first.
    refused_in_order: VecDeque<Digest>,
}

/// One password to be checked.
struct Check {
    leader: Leader<Digest, (), bool, Unchecked>,
    user: String,
    password: String,
}

/// What is known of a user and a password.
pub enum Verdict {
    /// Whether they may pull.
    Known(bool),
    /// That is being found out.
    Wait(CheckWait),
}

/// Waits for a check.
pub struct CheckWait {
    flight: Follower<(), bool, Unchecked>,
}

impl CheckWait {
    /// Whether they may pull, once that is known.
    pub fn poll(&self, waker: &Waker) -> Poll<Result<bool, Unchecked>> {
        self.flight.poll_outcome(waker)
    }

    /// Waits no longer. `waker` is the one that was polled with.
    pub fn give_up(self, waker: &Waker) {
        self.flight.forget(waker);
    }
}

/// The password was not checked: too many others were to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unchecked;

impl Users {
    /// Reads the file, and starts the thread that checks.
    ///
    /// # Errors
    /// [`HtpasswdError`].
    pub fn load(settings: &Settings) -> Result<Users, HtpasswdError> {
        let path = settings.htpasswd.as_path();
        let stamp = Stamp::of([&path.to_owned()]);
        let hashes = Arc::new(read(path)?);
        let known = Known::new(hashes, 0);
        let mut salt = [0; 32];
        let random = rustls::crypto::ring::default_provider().secure_random;
        random.fill(&mut salt).map_err(|_| HtpasswdError::System {
            source: Arc::new(io::Error::other("the system gives no random bytes")),
        })?;
        let shared = Arc::new(Shared {
            salt,
            known: Mutex::new(known),
            under_way: Flights::new(),
            queue: Mutex::new(Queue { is_closed: false, checks: FairQueue::new() }),
            queue_changed: Condvar::new(),
        });
        let checker = Arc::clone(&shared);
        thread::Builder::new()
            .name("passwords".into())
            .spawn(move || checker.check_all())
            .map_err(|source| HtpasswdError::System { source: Arc::new(source) })?;
        let watch = Mutex::new(Watch { path: path.to_owned(), stamp, refused: None });
        Ok(Users { shared, watch })
    }

    /// Where they were read from.
    pub fn settings(&self) -> Settings {
        Settings { htpasswd: self.watch().path.clone() }
    }

    /// Whether `user` may pull with `password`, which `client` has shown. Does not wait.
    pub fn check(&self, client: ClientAddress, user: &str, password: &str) -> Verdict {
        if password.len() > PASSWORD_BYTES_MAX {
            return Verdict::Known(false);
        }
        let digest = self.shared.digest(user, password);
        if let Some(verdict) = lock(&self.shared.known).recall(user, &digest) {
            return Verdict::Known(verdict);
        }
        let joined = self.shared.under_way.join(&digest, || Unchecked);
        if let Some(leader) = joined.leader {
            let check = Check { leader, user: user.to_owned(), password: password.to_owned() };
            let refused = lock(&self.shared.queue).checks.push(client, user, check);
            self.shared.queue_changed.notify_one();
            // Dropping its leader tells all that have joined it: this client, or another one.
            drop(refused);
        }
        Verdict::Wait(CheckWait { flight: joined.flight })
    }

    /// Reads the file again if it has changed. One that cannot be used leaves the former users in force,
    /// which is said once.
    pub fn look(&self) {
        let mut watch = self.watch();
        // Before the file is read: a change meanwhile is found by the next look.
        let stamp = Stamp::of([&watch.path]);
        if stamp == watch.stamp && watch.refused.is_none() {
            return;
        }
        match read(&watch.path) {
            Ok(hashes) => {
                let count = hashes.len();
                // First: who reads the line may rely on it.
                lock(&self.shared.known).replace(hashes);
                log::info!("{}: {count} users may pull from now on", watch.path.display());
                (watch.stamp, watch.refused) = (stamp, None);
            }
            Err(error) => {
                let text = error.to_string();
                if watch.refused.as_ref() != Some(&text) {
                    log::error!("serverAuthConfig: {text}; the users that were in force stay so");
                    watch.refused = Some(text);
                }
            }
        }
    }

    fn watch(&self) -> MutexGuard<'_, Watch> {
        lock(&self.watch)
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
        // Found by its hash: the digest has a secret salt, so that nothing can be learned from the time.
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
        // A user has no colon, so no two pairs are one text.
        let text = [&self.salt, user.as_bytes(), b":", password.as_bytes()].concat();
        Digest::of(Algorithm::Sha256, &text)
    }

    /// The next check, once there is one; `None` at the end.
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
            // Who looked before a check had ended and joined after it comes here a second time.
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

/// Whether the password is the user's. A name that nobody has takes as long as one that somebody has.
fn verify(hashes: &HashMap<String, String>, user: &str, password: &str) -> bool {
    let hash = hashes.get(user);
    let Some(compared) = hash.or_else(|| hashes.values().next()) else { return false };
    // Its form was looked at when the file was read.
    let is_right = bcrypt::verify(password, compared).unwrap_or(false);
    is_right && hash.is_some()
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

/// Lines `user:hash`, empty ones and comments. A file without users is refused: it is what a full disk or a
/// broken copy leaves.
fn parse(text: &str) -> Result<HashMap<String, String>, (usize, &'static str)> {
    let mut users = HashMap::new();
    for (number, line) in (1..).zip(text.lines()) {
        let line = line.trim();
        if line.is_empty() || line.starts_with('#') {
            continue;
        }
        let Some((user, hash)) = line.split_once(':').filter(|(user, _)| !user.is_empty()) else {
            return Err((number, "a line is user:hash, as `htpasswd -B` writes it"));
        };
        let Ok(parts) = hash.parse::<bcrypt::HashParts>() else {
            return Err((number, "this is no bcrypt hash; `htpasswd -B` makes one"));
        };
        if parts.get_cost() > COST_MAX {
            return Err((
                number,
                "the cost of this hash is above 15, which takes many seconds each time",
            ));
        }
        if users.insert(user.to_owned(), hash.to_owned()).is_some() {
            return Err((number, "this user is listed twice"));
        }
    }
    if users.is_empty() { Err((1, "there are no users in it")) } else { Ok(users) }
}

/// Nothing that can panic runs under these locks, so a poisoned one is as good as any.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Why an htpasswd file cannot be used.
#[derive(Debug, Clone)]
pub enum HtpasswdError {
    /// It cannot be read.
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: Arc<io::Error>,
    },
    /// A line of it means nothing. The line is not quoted: it may hold a password.
    Line {
        /// The file.
        path: PathBuf,
        /// Which, from 1.
        line: usize,
        /// What is wrong, and what is wanted.
        reason: &'static str,
    },
    /// The system has no thread or no random bytes.
    System {
        /// What it said.
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

    /// The lowest cost there is: tests need not be slow.
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
    fn right_passwords_are_let_in_and_checked_once() {
        let site = site(&format!("# nodes\n\nann:{}\nbob:{}\n", hash("a"), hash("b")));
        assert!(site.may("ann", "a") && site.may("bob", "b"));
        assert!(site.is_known("ann", "a") && site.is_known("bob", "b"));
        for (user, password) in [("ann", "b"), ("ann", ""), ("eve", "a"), ("", "a")] {
            assert!(!site.may(user, password), "{user}");
            assert!(site.is_known(user, password), "{user}");
            assert!(!site.may(user, password), "{user}");
        }
        assert!(site.may("ann", "a"), "others' mistakes change nothing");
        assert!(!site.may("ann", &"a".repeat(PASSWORD_BYTES_MAX + 1)));
    }

    #[test]
    fn what_apache_writes_is_understood() {
        // htpasswd -nbB -C 4 demo secret, by Apache's tool.
        let site = site("demo:$2y$04$5TeKT.s9FsTxS3i9dnaT.eeZsnvHkTXDfq6YA/Pb9LXeQk3bD5R2m\n");
        assert!(site.may("demo", "secret") && !site.may("demo", "Secret"));
    }

    #[test]
    fn a_changed_file_forgets_who_was_let_in() {
        let site = site(&format!("ann:{}", hash("old")));
        assert!(site.may("ann", "old") && !site.may("ann", "new"));
        site.put(&format!("ann:{}", hash("new")));
        assert!(site.may("ann", "new") && !site.may("ann", "old"));
        for broken in ["", "ann", "ann:plain"] {
            site.put(broken);
            assert!(site.may("ann", "new"), "{broken:?} is no reason to lock everybody out");
        }
        site.put(&format!("bob:{}", hash("b")));
        assert!(site.may("bob", "b") && !site.may("ann", "new"));
    }

    #[test]
    fn a_file_is_refused_with_its_line() {
        let good = hash("x");
        for (text, line, words) in [
            ("".to_owned(), 1, "no users"),
            ("# only\n".to_owned(), 1, "no users"),
            (format!("a:{good}\nb"), 2, "user:hash"),
            (format!(":{good}"), 1, "user:hash"),
            ("a:$apr1$x$y".to_owned(), 1, "bcrypt"),
            ("a:{SHA}x".to_owned(), 1, "bcrypt"),
            (format!("a:{}", good.replacen("$04$", "$16$", 1)), 1, "cost"),
            (format!("a:{good}\na:{good}"), 2, "twice"),
        ] {
            let (found, reason) = parse(&text).unwrap_err();
            assert!(found == line && reason.contains(words), "{text}: {found} {reason}");
        }
    }

    #[test]
    fn wrong_passwords_are_remembered_within_bounds() {
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

    /// Shows wrong passwords of 80 users and gives back what has to be waited for.
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
    fn every_check_ends_also_those_for_which_there_is_no_place_and_those_at_the_end() {
        let site = site(&format!("ann:{}", hash("a")));
        let waits = guess(&site.users, HERE);
        drop(site);
        let outcomes: Vec<_> = waits.iter().map(outcome).collect();
        assert!(outcomes.contains(&Err(Unchecked)) && !outcomes.contains(&Ok(true)));
    }

    #[test]
    fn guessers_lock_out_nobody_else() {
        let site = site(&format!("ann:{}", hash("a")));
        let waits = guess(&site.users, HERE);
        let Verdict::Wait(wait) = site.users.check(THERE.into(), "ann", "a") else {
            panic!("nobody has shown this password yet")
        };
        assert_eq!(outcome(&wait), Ok(true));
        drop(waits);
    }
}
