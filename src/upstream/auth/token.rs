//! Bearer tokens (Distribution's "token authentication specification"): each is fetched once for all callers that need
//! it, and used until shortly before it expires.
//!
//! Tokens are cached by the scope that the registry demands. Two requests with different scopes of one repository fetch
//! two tokens and do not wait for each other. No lock is held during a fetch.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use super::challenge::Challenge;
use super::single_flight::SingleFlight;

/// The largest response of a token service, in bytes.
pub(in crate::upstream) const TOKEN_BODY_BYTES_MAX: u64 = 64 * 1024;
/// The lifetime of a token without `expires_in`, as the specification has it, and the shortest that is believed.
const LIFETIME_MIN: Duration = Duration::from_secs(60);
/// The longest lifetime that is believed. A token that is refused earlier is renewed then.
const LIFETIME_MAX: Duration = Duration::from_secs(86_400);
/// A token is renewed this long before it expires, so that it does not expire in transit.
const MARGIN: Duration = Duration::from_secs(10);
/// The most cached tokens; each repository needs one or two. Beyond that, the one that is due first is evicted. Clients
/// can name any number of repositories and must not evict all tokens at once.
const TOKENS_MAX: usize = 256;
/// The most memory for the tokens of a registry, and again for their scopes, in bytes: 256 tokens of 8 KiB.
const BYTES_MAX: usize = 2 * 1024 * 1024;
/// The same for an unlisted registry. Clients can invent a thousand of these, and then choose what their token services
/// send. This is enough for some forty repositories.
const UNLISTED_BYTES_MAX: usize = 64 * 1024;
/// What an entry needs besides its texts, in bytes.
const ENTRY_BYTES: usize = 256;
/// The longest accepted token, in bytes. Other servers refuse longer header lines as well.
const TOKEN_BYTES_MAX: usize = 16 * 1024;

/// What a token is valid for: origin, repository and scope.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::upstream) struct TokenKey {
    pub(in crate::upstream) place: Place,
    /// The scope that the challenge demands. Most registries demand one scope for everything in a repository. Azure's
    /// demands another one for tag lists than for manifests, and each token is valid for its own scope only.
    pub(in crate::upstream) scope: String,
}

/// Where a token is presented, and for which repository.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::upstream) struct Place {
    pub(in crate::upstream) origin: String,
    pub(in crate::upstream) repository: String,
}

impl Place {
    /// The size of its texts.
    fn bytes(&self) -> usize {
        self.origin.len() + self.repository.len()
    }
}

/// The kinds of requests for which registries demand different scopes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(in crate::upstream) enum Need {
    Content,
    TagList,
}

/// A token, and the challenge for which it was fetched, so that it can be renewed before it expires.
#[derive(Clone)]
pub(in crate::upstream) struct Token {
    pub(in crate::upstream) value: String,
    pub(in crate::upstream) challenge: Challenge,
    renew_at: Instant,
}

impl Token {
    /// Parses a token service's response, received at `now`. The lifetime counts from there by the local clock, since
    /// `issued_at` comes from another machine's clock.
    pub(in crate::upstream) fn parse(
        body: &[u8],
        challenge: Challenge,
        now: Instant,
    ) -> Option<Token> {
        // A map instead of a struct: of duplicate members the last one counts, as in Go's clients.
        let answer: Map<String, Value> = serde_json::from_slice(body).ok()?;
        // Both names occur and mean the same.
        let mut values = ["token", "access_token"].iter().map(|name| answer.get(*name));
        let value = values.find_map(|value| value?.as_str().filter(|token| !token.is_empty()))?;
        // The token is sent in a header: one with a line break would inject another header.
        if value.len() > TOKEN_BYTES_MAX || !value.bytes().all(|byte| byte.is_ascii_graphic()) {
            return None;
        }
        let lifetime = answer.get("expires_in").and_then(seconds).unwrap_or_default();
        let lifetime = lifetime.clamp(LIFETIME_MIN, LIFETIME_MAX);
        Some(Token { value: value.to_owned(), challenge, renew_at: now + (lifetime - MARGIN) })
    }

    /// Whether it is due for renewal.
    pub(in crate::upstream) fn is_due(&self, now: Instant) -> bool {
        now >= self.renew_at
    }

    /// The size of its texts.
    fn bytes(&self) -> usize {
        self.value.len() + self.challenge.bytes()
    }
}

/// A number of seconds. Some services send a string or a fraction. Anything else is ignored, and the token is still
/// accepted.
fn seconds(value: &Value) -> Option<Duration> {
    let seconds = value.as_f64().or_else(|| value.as_str()?.trim().parse().ok())?;
    Duration::try_from_secs_f64(seconds).ok()
}

/// A table of at most [`TOKENS_MAX`] entries and `bytes_max` bytes.
struct Table<K, V> {
    /// Each with its size in bytes.
    entries: HashMap<K, (V, usize)>,
    bytes: usize,
    bytes_max: usize,
}

impl<K: Clone + Eq + Hash, V> Table<K, V> {
    fn new(bytes_max: usize) -> Table<K, V> {
        Table { entries: HashMap::new(), bytes: 0, bytes_max }
    }

    fn get(&self, key: &K) -> Option<&V> {
        self.entries.get(key).map(|(value, _)| value)
    }

    fn remove(&mut self, key: &K) {
        self.bytes -= self.entries.remove(key).map_or(0, |(_, bytes)| bytes);
    }

    /// Inserts an entry whose texts have `bytes` bytes, and evicts those with the lowest rank for it. An entry that is
    /// too large for the table is not kept.
    fn insert<R: Ord>(&mut self, key: K, value: V, bytes: usize, rank: impl Fn(&V) -> R) {
        self.remove(&key);
        let bytes = bytes + ENTRY_BYTES;
        if bytes > self.bytes_max {
            return;
        }
        while self.entries.len() >= TOKENS_MAX || self.bytes + bytes > self.bytes_max {
            let lowest = self.entries.iter().min_by_key(|(_, (value, _))| rank(value));
            let Some(lowest) = lowest.map(|(key, _)| key.clone()) else { break };
            self.remove(&lowest);
        }
        self.bytes += bytes;
        self.entries.insert(key, (value, bytes));
    }
}

/// The tokens of one registry.
pub(in crate::upstream) struct Tokens {
    /// Locked for a lookup or a change, never during a fetch.
    tokens: Mutex<Table<TokenKey, Arc<Token>>>,
    /// The scopes that worked, so that a token is presented before the registry demands it. Locked for a lookup or
    /// an insertion, and never together with `tokens`.
    scopes: Mutex<Table<(Place, Need), String>>,
    fetching: SingleFlight<TokenKey>,
}

impl Default for Tokens {
    fn default() -> Tokens {
        Tokens::of_at_most(BYTES_MAX)
    }
}

impl Tokens {
    /// The tokens of a registry that a client may have invented.
    pub(in crate::upstream) fn of_unlisted() -> Tokens {
        Tokens::of_at_most(UNLISTED_BYTES_MAX)
    }

    fn of_at_most(bytes_max: usize) -> Tokens {
        let (tokens, scopes) = (Table::new(bytes_max), Table::new(bytes_max));
        let fetching = SingleFlight::default();
        Tokens { tokens: Mutex::new(tokens), scopes: Mutex::new(scopes), fetching }
    }

    /// The scope that worked for this kind of request, or else for another one to the repository.
    pub(in crate::upstream) fn scope(&self, place: &Place, need: Need) -> Option<String> {
        let scopes = lock(&self.scopes);
        let of = |need| scopes.get(&(place.clone(), need)).cloned();
        of(need).or_else(|| of(Need::Content)).or_else(|| of(Need::TagList))
    }

    /// Whether a scope is known for this kind of request.
    pub(in crate::upstream) fn has_scope(&self, place: &Place, need: Need) -> bool {
        lock(&self.scopes).get(&(place.clone(), need)).is_some()
    }

    /// Records that the registry accepted a token with this scope.
    pub(in crate::upstream) fn note_scope(&self, place: &Place, need: Need, scope: &str) {
        let bytes = place.bytes() + scope.len();
        // Any entry may be evicted: a missing one costs one challenge.
        lock(&self.scopes).insert((place.clone(), need), scope.to_owned(), bytes, |_| ());
    }

    /// The cached token for `key`, due or not.
    pub(in crate::upstream) fn known(&self, key: &TokenKey) -> Option<Arc<Token>> {
        lock(&self.tokens).get(key).cloned()
    }

    /// A token for `key` that is neither due nor `rejected`; fetches one if necessary. Of several callers one
    /// fetches and the others wait.
    pub(in crate::upstream) fn obtain<E>(
        &self,
        key: &TokenKey,
        rejected: Option<&Arc<Token>>,
        now: Instant,
        fetch: impl FnOnce() -> Result<Token, E>,
    ) -> Result<Arc<Token>, E> {
        let _inside = self.fetching.enter(key);
        if let Some(token) = self.known(key).filter(|token| is_usable(token, rejected, now)) {
            return Ok(token);
        }
        // So that no request presents the old token during the fetch, or after it has failed.
        lock(&self.tokens).remove(key);
        let token = Arc::new(fetch()?);
        let bytes = key.place.bytes() + key.scope.len() + token.bytes();
        lock(&self.tokens).insert(key.clone(), Arc::clone(&token), bytes, |token| token.renew_at);
        Ok(token)
    }
}

fn lock<T>(table: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing that can panic runs between the changes of a table.
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_usable(token: &Arc<Token>, rejected: Option<&Arc<Token>>, now: Instant) -> bool {
    !token.is_due(now) && rejected.is_none_or(|rejected| !Arc::ptr_eq(rejected, token))
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn challenge() -> Challenge {
        Challenge::bearer(["Bearer realm=\"https://a/t\""]).unwrap()
    }

    fn parse(body: &str, now: Instant) -> Option<Token> {
        Token::parse(body.as_bytes(), challenge(), now)
    }

    fn key() -> TokenKey {
        let place = Place { origin: "https://a".into(), repository: "b".into() };
        TokenKey { place, scope: "repository:b:pull".into() }
    }

    #[test]
    fn both_names_of_the_token_are_accepted() {
        let now = Instant::now();
        for body in [
            r#"{"token":"abc"}"#,
            r#"{"access_token":"abc","expires_in":300}"#,
            r#"{"token":"","access_token":"abc"}"#,
            r#"{"token":null,"access_token":"abc"}"#,
            r#"{"token":"abc","access_token":"abc","issued_at":"2030-01-01T00:00:00Z"}"#,
        ] {
            assert_eq!(parse(body, now).unwrap().value, "abc", "{body}");
        }
    }

    #[test]
    fn refused_token_responses() {
        for body in [
            "",
            "{}",
            "<html>",
            r#"{"token":""}"#,
            r#"{"token":"a b"}"#,
            r#"{"token":"a\r\nX: y"}"#,
            r#"{"token":7}"#,
            r#"["token"]"#,
        ] {
            assert!(parse(body, Instant::now()).is_none(), "{body}");
        }
    }

    #[test]
    fn a_token_is_renewed_before_it_expires_and_lasts_a_minute_at_least() {
        let now = Instant::now();
        for (body, seconds) in [
            (r#"{"token":"a"}"#, 50),
            (r#"{"token":"a","expires_in":5}"#, 50),
            (r#"{"token":"a","expires_in":-1}"#, 50),
            (r#"{"token":"a","expires_in":300}"#, 290),
            (r#"{"token":"a","expires_in":"300"}"#, 290),
            (r#"{"token":"a","expires_in":" 300.5 "}"#, 290),
            (r#"{"token":"a","expires_in":300.25}"#, 290),
            (r#"{"token":"a","expires_in":3e2}"#, 290),
            (r#"{"token":"a","expires_in":"an hour"}"#, 50),
            (r#"{"token":"a","expires_in":null}"#, 50),
            (r#"{"token":"a","expires_in":{}}"#, 50),
            (r#"{"token":"a","expires_in":"inf"}"#, 50),
            (r#"{"token":"a","expires_in":1e300}"#, 50),
            (r#"{"token":"b","expires_in":9,"token":"a","expires_in":300}"#, 290),
        ] {
            let token = parse(body, now).unwrap();
            assert_eq!(token.value, "a", "{body}");
            assert!(!token.is_due(now + Duration::from_secs(seconds - 1)), "{body}");
            assert!(token.is_due(now + Duration::from_secs(seconds + 1)), "{body}");
        }
    }

    #[test]
    fn twenty_threads_need_one_fetch() {
        let (tokens, now) = (Tokens::default(), Instant::now());
        let (barrier, fetches) = (Barrier::new(20), AtomicUsize::new(0));
        let obtain = || {
            barrier.wait();
            let fetch = || {
                fetches.fetch_add(1, Ordering::SeqCst);
                parse(r#"{"token":"a"}"#, now).ok_or(())
            };
            tokens.obtain(&key(), None, now, fetch).unwrap().value.clone()
        };
        std::thread::scope(|scope| {
            let threads: Vec<_> = (0..20).map(|_| scope.spawn(obtain)).collect();
            assert!(threads.into_iter().all(|thread| thread.join().unwrap() == "a"));
        });
        assert_eq!(fetches.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn tokens_and_scopes_use_bounded_memory_whatever_the_registry_sends() {
        let (tokens, now) = (Tokens::of_unlisted(), Instant::now());
        let large = "x".repeat(TOKEN_BYTES_MAX);
        let challenge = format!("Bearer realm=\"https://a/t\",padding=\"{}\"", "y".repeat(30_000));
        let challenge = Challenge::bearer([challenge.as_str()]).unwrap();
        for number in 0..3 * TOKENS_MAX {
            let place = Place { origin: "https://a".into(), repository: format!("b{number}") };
            let key = TokenKey { scope: "s".repeat(2048), place };
            let body = format!(r#"{{"token":"{}"}}"#, if number % 2 == 0 { "a" } else { &large });
            let token = Token::parse(body.as_bytes(), challenge.clone(), now);
            tokens.obtain(&key, None, now, || token.ok_or(())).unwrap();
            tokens.note_scope(&key.place, Need::Content, &key.scope);
            assert!(tokens.known(&key).is_some() && tokens.has_scope(&key.place, Need::Content));
            let (tokens, scopes) = (lock(&tokens.tokens), lock(&tokens.scopes));
            let held = tokens.entries.values().map(|(token, _)| token.bytes()).sum::<usize>();
            assert!(held <= tokens.bytes && tokens.bytes <= UNLISTED_BYTES_MAX, "{held}");
            let held = scopes.entries.values().map(|(scope, _)| scope.len()).sum::<usize>();
            assert!(held <= scopes.bytes && scopes.bytes <= UNLISTED_BYTES_MAX, "{held}");
        }
    }

    #[test]
    fn the_token_that_is_due_first_is_evicted_and_one_that_is_too_large_is_used_once() {
        let (tokens, now) = (Tokens::of_unlisted(), Instant::now());
        let place = |number| Place { origin: "https://a".into(), repository: format!("b{number}") };
        let key = |number| TokenKey { place: place(number), scope: "pull".into() };
        for number in 0..=TOKENS_MAX {
            let body = format!(r#"{{"token":"a","expires_in":{}}}"#, 10_000 - number);
            tokens.obtain(&key(number), None, now, || parse(&body, now).ok_or(())).unwrap();
        }
        let kept = |number| tokens.known(&key(number)).is_some();
        assert!(kept(0) && kept(TOKENS_MAX) && !kept(TOKENS_MAX - 1));
        let padding = "y".repeat(UNLISTED_BYTES_MAX);
        let padded = format!("Bearer realm=\"https://a/t\",padding=\"{padding}\"");
        let padded = Challenge::bearer([padded.as_str()]).unwrap();
        let fetch = || Token::parse(br#"{"token":"b"}"#, padded, now).ok_or(());
        assert_eq!(tokens.obtain(&key(999), None, now, fetch).unwrap().value, "b");
        assert!(!kept(999) && kept(0), "it evicts no other token");
    }

    #[test]
    fn a_failed_fetch_is_retried_by_the_next_caller() {
        let (tokens, now) = (Tokens::default(), Instant::now());
        assert!(tokens.obtain(&key(), None, now, || Err("down")).is_err());
        let second =
            tokens.obtain(&key(), None, now, || parse(r#"{"token":"b"}"#, now).ok_or("bad"));
        assert_eq!(second.unwrap().value, "b");
    }

    #[test]
    fn a_rejected_token_is_replaced_once() {
        let (tokens, now) = (Tokens::default(), Instant::now());
        let token = |value: &str| parse(&format!(r#"{{"token":"{value}"}}"#), now).ok_or(());
        let first = tokens.obtain(&key(), None, now, || token("a")).unwrap();
        let second = tokens.obtain(&key(), Some(&first), now, || token("b")).unwrap();
        assert_eq!(second.value, "b");
        let third = tokens.obtain(&key(), Some(&first), now, || token("c")).unwrap();
        assert_eq!(third.value, "b", "a caller whose old token was rejected uses the new one");
    }
}
