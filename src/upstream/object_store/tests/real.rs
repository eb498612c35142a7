//! The client with a real store, on demand:
//! `LARDER_S3_URL=http://key:secret@127.0.0.1:7070/bucket cargo test --lib object_store::tests::real -- --ignored`.
//! The bucket must exist. `LARDER_S3_CA` is the store's authority. Prints what the probe finds.

use std::env;
use std::io::Cursor;

use super::*;

const MIB: usize = 1024 * 1024;

fn real(part_bytes: u64) -> ObjectStore {
    let url = env::var("LARDER_S3_URL").expect("LARDER_S3_URL");
    let (scheme, rest) = url.split_once("://").expect("a scheme");
    let (login, place) = rest.split_once('@').expect("a login");
    let (id, secret) = login.split_once(':').expect("a secret");
    let (host, bucket) = place.split_once('/').expect("a bucket");
    let secret = SecretSource::Literal(Secret::new(secret));
    let fixed = FixedKeys { id: id.into(), secret, session_token: None };
    let settings = ObjectStoreSettings {
        bucket: bucket.into(),
        prefix: format!("test +&{}/", std::process::id()),
        keys: KeySettings { fixed: Some(fixed), ..KeySettings::default() },
        part_bytes,
        tls: TlsSettings {
            ca: env::var_os("LARDER_S3_CA").map(Into::into),
            ..TlsSettings::default()
        },
        ..settings(&format!("{scheme}://{host}"))
    };
    ObjectStore::new(settings, Arc::default())
}

fn bytes_of(object: Object) -> Vec<u8> {
    let (mut reader, mut bytes) = (object.reader, Vec::new());
    reader.read_to_end(&mut bytes).unwrap();
    bytes
}

fn all(store: &ObjectStore, prefix: &str) -> Vec<ListedObject> {
    let (mut objects, mut after) = (Vec::new(), None);
    loop {
        let page = store.list(prefix, after.as_deref()).unwrap();
        objects.extend(page.objects);
        after = page.next;
        if after.is_none() {
            return objects;
        }
    }
}

/// Content that is cancelled after a number of parts.
struct Killed<'a> {
    content: Memory<'a>,
    opened: std::sync::atomic::AtomicUsize,
    after: usize,
}

impl UploadSource for Killed<'_> {
    fn size(&self) -> u64 {
        self.content.size()
    }

    fn sha256(&self) -> Option<[u8; 32]> {
        None
    }

    fn open(&self, from: u64, length: u64) -> io::Result<Box<dyn Read + Send + '_>> {
        self.opened.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        self.content.open(from, length)
    }

    fn is_cancelled(&self) -> bool {
        self.opened.load(std::sync::atomic::Ordering::Relaxed) > self.after
    }
}

#[test]
#[ignore = "needs a store: LARDER_S3_URL"]
fn a_real_store() {
    let store = real(5 * MIB as u64);
    let probe = store.probe("this process");
    println!("{}: {probe:#?}", store.url());
    assert!(probe.error.is_none() && probe.is_readable && probe.is_writable);
    assert!(probe.has_create_if_absent);

    let key = "refs/a b+c/ü&<>'\"=%2F~!*()@:,;$";
    assert!(store.get(key, 0, None).unwrap_err().is_not_found());
    assert!(store.head(key).unwrap_err().is_not_found());
    let Put::Done { etag: Some(etag) } = store.put(key, b"one", Condition::IfAbsent).unwrap()
    else {
        panic!("not written")
    };
    assert_eq!(store.put(key, b"two", Condition::IfAbsent).unwrap(), Put::Exists);
    let Put::Done { .. } = store.put(key, b"two!", Condition::IfMatch(etag.clone())).unwrap()
    else {
        panic!("the ETag has not changed")
    };
    assert_eq!(store.put(key, b"three", Condition::IfMatch(etag.clone())).unwrap(), Put::Exists);
    let object = store.read(key, 10).unwrap();
    assert_eq!(object.bytes, b"two!");
    assert_ne!(object.etag.unwrap(), etag);
    let age = SystemTime::now().duration_since(object.modified).unwrap_or_default();
    assert!(age < Duration::from_secs(60), "{age:?}");
    assert_eq!(store.head(key).unwrap().size, 4);
    let part = store.get(key, 1, Some(3)).unwrap();
    assert_eq!((part.start, part.end, part.size), (1, Some(3), Some(4)));
    assert_eq!(bytes_of(part), b"wo");
    assert_eq!(bytes_of(store.get(key, 4, None).unwrap()), b"");
    let url = store.presigned_get(key, Duration::from_secs(60)).unwrap();
    // Anyone can use it, but only this store's client trusts its authority.
    if url.starts_with("http:") {
        let mut shared = ureq::get(url).call().unwrap();
        assert_eq!(shared.body_mut().read_to_vec().unwrap(), b"two!");
    }

    store.upload("empty", &Memory::of(b""), Condition::None).unwrap();
    assert_eq!(bytes_of(store.get("empty", 0, None).unwrap()), b"");
    let keys: Vec<String> = (0..1_010).map(|n| format!("many/{n:04}")).collect();
    std::thread::scope(|scope| {
        for keys in keys.chunks(300) {
            let store = &store;
            scope.spawn(move || {
                for key in keys {
                    store.put(key, b"x", Condition::None).unwrap();
                }
            });
        }
    });
    let listed: Vec<String> = all(&store, "many/").into_iter().map(|object| object.key).collect();
    assert_eq!(listed, keys);
    assert_eq!(store.delete(&keys).unwrap(), keys.len());
    assert_eq!(all(&store, "many/"), []);
    assert_eq!(store.delete(&["absent".to_owned(), "many/0000".to_owned()]).unwrap(), 2);
    let listed: Vec<String> = all(&store, "").into_iter().map(|object| object.key).collect();
    assert_eq!(listed, ["empty", key]);

    large(&store);
    let left: Vec<String> = all(&store, "").into_iter().map(|object| object.key).collect();
    assert_eq!(store.delete(&left).unwrap(), left.len());
    assert_eq!(all(&store, ""), []);
}

/// Uploads in parts, also after a kill.
fn large(store: &ObjectStore) {
    let content: Vec<u8> = (0..12 * MIB + 345).map(|at| (at * 31 / 7) as u8).collect();
    let opened = std::sync::atomic::AtomicUsize::new(0);
    // Each part is opened twice: for its hash, and to be sent.
    let killed = Killed { content: Memory::of(&content), opened, after: 3 };
    assert!(store.upload("large", &killed, Condition::IfAbsent).is_err());
    assert!(store.head("large").unwrap_err().is_not_found());
    let opened = std::sync::atomic::AtomicUsize::new(0);
    let resumed = Killed { content: Memory::of(&content), opened, after: usize::MAX };
    let Put::Done { .. } = store.upload("large", &resumed, Condition::IfAbsent).unwrap() else {
        panic!("not written")
    };
    let opened = resumed.opened.into_inner();
    println!("parts read after a kill: {opened} (5 if the first part is not sent again)");
    assert_eq!(opened, 5);
    assert_eq!(store.head("large").unwrap().size, content.len() as u64);
    assert!(bytes_of(store.get("large", 0, None).unwrap()) == content);
    let from = 5 * MIB as u64 - 1;
    let part = bytes_of(store.get("large", from, Some(from + 3)).unwrap());
    assert_eq!(Cursor::new(part).into_inner(), content[5 * MIB - 1..5 * MIB + 2]);
    let again = store.upload("large", &Memory::of(&content), Condition::IfAbsent).unwrap();
    assert_eq!(again, Put::Exists);
}

/// Some stores close the connection when they refuse a request, although its body is still on its way.
#[test]
#[ignore = "needs a store: LARDER_S3_URL"]
fn a_real_store_refuses_large_content() {
    let store = real(500 * MIB as u64);
    let content = vec![7; 64 * MIB];
    let upload =
        |store: &ObjectStore| store.upload("a", &Memory::of(&content), Condition::IfAbsent);
    assert!(matches!(upload(&store).unwrap(), Put::Done { .. }));
    assert_eq!(upload(&store).unwrap(), Put::Exists);
    let secret = SecretSource::Literal(Secret::new("wrong"));
    let fixed = FixedKeys { secret, ..store.settings().keys.fixed.clone().unwrap() };
    let keys = KeySettings { fixed: Some(fixed), ..KeySettings::default() };
    let wrong = super::store(ObjectStoreSettings { keys, ..store.settings().clone() });
    let error = upload(&wrong).unwrap_err().to_string();
    assert!(error.contains("the secret access key does not belong"), "{error}");
    assert_eq!(store.delete(&["a".to_owned()]).unwrap(), 1);
}

#[test]
#[ignore = "needs a store: LARDER_S3_URL"]
fn several_threads_upload_one_object_in_parts() {
    let store = real(5 * MIB as u64);
    let content: Vec<u8> = (0..16 * MIB).map(|at| (at * 31 / 7) as u8).collect();
    let upload = || {
        // As other processes: they share nothing.
        let store = super::store(store.settings().clone());
        store.upload("a", &Memory::of(&content), Condition::IfAbsent)
    };
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..6).map(|_| scope.spawn(upload)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    println!("{outcomes:?}");
    let is_written = |outcome: &Result<Put, _>| matches!(outcome, Ok(Put::Done { .. }));
    assert!(outcomes.iter().any(is_written) && outcomes.iter().all(Result::is_ok));
    assert!(bytes_of(store.get("a", 0, None).unwrap()) == content);
    assert_eq!(store.delete(&["a".to_owned()]).unwrap(), 1);
}
