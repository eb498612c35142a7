//! Keys that are fetched: at the start, when a token needs them, and while the issuer is down.

use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex};
use std::task::{Wake, Waker};
use std::time::{Duration, Instant};

use serde_json::json;

use super::super::*;
use super::{NOW, Signer, at, claims, client, jwks, known, settings};

type Fetched = Result<Vec<u8>, String>;
type Stored = Arc<Mutex<Option<Vec<u8>>>>;

/// An issuer that answers each fetch when the test says so.
struct Fake {
    answers: Receiver<Fetched>,
    begun: Sender<()>,
    stored: Stored,
}

impl KeySource for Fake {
    fn fetch(&self) -> Fetched {
        // The test may have ended.
        let _ = self.begun.send(());
        self.answers.recv().unwrap_or_else(|_| Err("the issuer is down".into()))
    }

    fn stored(&self) -> Option<Vec<u8>> {
        self.stored.lock().unwrap().clone()
    }

    fn store(&self, keys: &[u8]) {
        *self.stored.lock().unwrap() = Some(keys.to_vec());
    }
}

struct Remote {
    issuers: Issuers,
    answer: Sender<Fetched>,
    begun: Receiver<()>,
}

impl Remote {
    fn new(stored: &Stored, previous: Option<&Issuers>) -> Remote {
        let ((answer, answers), (began, begun)) = (channel(), channel());
        let mut fake = Some(Fake { answers, begun: began, stored: Arc::clone(stored) });
        let settings = settings(KeysFrom::Discovery(DiscoverySettings::default()));
        let source = |_: &IssuerUrl, _: &DiscoverySettings| -> Box<dyn KeySource> {
            Box::new(fake.take().expect("one issuer"))
        };
        let issuers = Issuers::load(&settings, previous, source).unwrap();
        let remote = Remote { issuers, answer, begun };
        // The fetch at the start.
        remote.begun.recv().unwrap();
        remote
    }

    /// The verdict `seconds` from now, while the next fetch has this result.
    fn check_with(
        &self,
        token: &str,
        seconds: u64,
        fetched: Fetched,
    ) -> Result<Arc<Identity>, Refusal> {
        let instant = Instant::now() + Duration::from_secs(seconds);
        match self.issuers.check(token, client(), at(NOW), instant).unwrap() {
            Verdict::Known(known) => panic!("no fetch is needed: {known:?}"),
            Verdict::Wait(wait) => {
                self.answer.send(fetched).unwrap();
                wait_for(&wait);
                self.issuers.recheck(token, client(), at(NOW))
            }
        }
    }
}

struct Bell(SyncSender<()>);

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        let _ = self.0.try_send(());
    }
}

fn wait_for(wait: &KeyWait) {
    let (ring, rung) = sync_channel(1);
    let waker = Waker::from(Arc::new(Bell(ring)));
    while wait.poll(&waker).is_pending() {
        rung.recv().unwrap();
    }
}

fn es256(signer: &Signer, kid: &str) -> String {
    signer.token(&json!({"alg": "ES256", "kid": kid}), &claims(json!({})))
}

#[test]
fn an_unknown_key_is_fetched_and_a_withdrawn_key_is_refused() {
    let (old, new) = (Signer::ec256(), Signer::ec256());
    let (stored, old_keys, new_keys) =
        (Stored::default(), jwks(&[old.jwk("old")]), jwks(&[new.jwk("new")]));
    let remote = Remote::new(&stored, None);
    let (old_token, new_token) = (es256(&old, "old"), es256(&new, "new"));
    assert!(remote.check_with(&old_token, 0, Ok(old_keys.clone())).is_ok());
    assert_eq!(stored.lock().unwrap().as_ref(), Some(&old_keys));
    let unknown = known(&remote.issuers, &new_token, NOW).unwrap();
    assert_eq!(unknown.err(), Some(Refusal::UnknownKey), "the last fetch was a moment ago");
    let expired = old.token(&json!({"alg": "ES256", "kid": "x"}), &claims(json!({"exp": 1})));
    let later = Instant::now() + Duration::from_secs(31);
    let verdict = remote.issuers.check(&expired, client(), at(NOW), later).unwrap();
    assert!(matches!(verdict, Verdict::Known(Err(Refusal::Expired))), "no reason for a fetch");
    assert!(known(&remote.issuers, &old_token, NOW).unwrap().is_ok());
    assert!(remote.check_with(&new_token, 31, Ok(new_keys)).is_ok());
    // It has been used, but its key has left the set.
    let withdrawn = known(&remote.issuers, &old_token, NOW).unwrap();
    assert_eq!(withdrawn.err(), Some(Refusal::UnknownKey));
}

#[test]
fn an_issuer_can_withdraw_all_its_keys() {
    let signer = Signer::ec256();
    for withdrawn in [jwks(&[]), jwks(&[json!({"kty": "oct", "k": "c2VjcmV0"})])] {
        let (stored, token) = (Stored::default(), es256(&signer, "k"));
        let remote = Remote::new(&stored, None);
        assert!(remote.check_with(&token, 0, Ok(jwks(&[signer.jwk("k")]))).is_ok());
        let unknown = es256(&signer, "other");
        assert_eq!(remote.check_with(&unknown, 31, Ok(withdrawn)).err(), Some(Refusal::NoKeys));
        assert_eq!(known(&remote.issuers, &token, NOW).unwrap().err(), Some(Refusal::NoKeys));
        let status = &remote.issuers.status()[0];
        assert!(status.keys == 0 && status.failing_since.is_some(), "{status:?}");
        drop(remote);
        let restarted = Remote::new(&stored, None);
        assert_eq!(restarted.issuers.status()[0].keys, 0);
    }
}

#[test]
fn the_last_keys_stay_valid_while_the_issuer_is_down_and_after_a_restart() {
    let signer = Signer::ec256();
    let (stored, token) = (Stored::default(), es256(&signer, "k"));
    let remote = Remote::new(&stored, None);
    assert!(remote.check_with(&token, 0, Ok(jwks(&[signer.jwk("k")]))).is_ok());
    for failed in [Err("down".into()), Ok(b"<html>".to_vec())] {
        let unknown = es256(&signer, "other");
        let refused = remote.check_with(&unknown, 31, failed);
        assert_eq!(refused.err(), Some(Refusal::UnknownKey));
        assert!(known(&remote.issuers, &token, NOW).unwrap().is_ok());
    }
    drop(remote);
    let restarted = Remote::new(&stored, None);
    assert!(known(&restarted.issuers, &token, NOW).unwrap().is_ok(), "before any fetch");
    // A reload with a directory that cannot be written.
    let reloaded = Remote::new(&Stored::default(), Some(&restarted.issuers));
    assert!(known(&reloaded.issuers, &token, NOW).unwrap().is_ok());
}

#[test]
fn without_any_keys_a_token_cannot_be_checked() {
    let signer = Signer::ec256();
    let remote = Remote::new(&Stored::default(), None);
    let token = es256(&signer, "k");
    let refusal = remote.check_with(&token, 0, Err("down".into())).unwrap_err();
    assert!(refusal == Refusal::NoKeys && refusal.is_temporary());
    assert_eq!(known(&remote.issuers, &token, NOW).unwrap().err(), Some(Refusal::NoKeys));
}

#[test]
fn tokens_that_arrive_during_a_fetch_share_it() {
    let signer = Signer::ec256();
    let remote = Remote::new(&Stored::default(), None);
    let token = es256(&signer, "k");
    let check = || match remote.issuers.check(&token, client(), at(NOW), Instant::now()).unwrap() {
        Verdict::Wait(wait) => wait,
        Verdict::Known(known) => panic!("{known:?}"),
    };
    let waits = [check(), check(), check()];
    remote.answer.send(Ok(jwks(&[signer.jwk("k")]))).unwrap();
    waits.iter().for_each(wait_for);
    assert!(remote.issuers.recheck(&token, client(), at(NOW)).is_ok());
    assert!(remote.begun.try_recv().is_err(), "one fetch");
}

#[test]
fn waiting_ends_when_the_issuers_are_replaced() {
    let signer = Signer::ec256();
    let remote = Remote::new(&Stored::default(), None);
    let verdict =
        remote.issuers.check(&es256(&signer, "k"), client(), at(NOW), Instant::now()).unwrap();
    let Verdict::Wait(wait) = verdict else { panic!("the first fetch is running") };
    let Remote { issuers, answer, begun: _begun } = remote;
    drop((issuers, answer));
    wait_for(&wait);
}

#[test]
fn keys_are_fetched_at_once_when_the_operator_asks() {
    let (old, new) = (Signer::ec256(), Signer::ec256());
    let remote = Remote::new(&Stored::default(), None);
    let (old_token, new_token) = (es256(&old, "old"), es256(&new, "new"));
    assert!(remote.check_with(&old_token, 0, Ok(jwks(&[old.jwk("old")]))).is_ok());
    remote.issuers.refresh();
    remote.begun.recv().unwrap();
    let verdict = remote.issuers.check(&new_token, client(), at(NOW), Instant::now()).unwrap();
    let Verdict::Wait(wait) = verdict else { panic!("a fetch is running") };
    remote.answer.send(Ok(jwks(&[new.jwk("new")]))).unwrap();
    wait_for(&wait);
    assert!(remote.issuers.recheck(&new_token, client(), at(NOW)).is_ok());
    assert_eq!(known(&remote.issuers, &old_token, NOW).unwrap().err(), Some(Refusal::UnknownKey));
}
