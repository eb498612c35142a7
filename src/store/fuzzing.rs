//! Fuzz targets: files in the cache directory that are damaged, or that somebody has written.

use std::fs;
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use super::*;
use crate::fuzzing::{Scratch, line};
use crate::oci::{Algorithm, Digest, ImageName, Tag, Upstream};
use crate::prune::timestamp;
use crate::units::ago;

const MAX_BYTES: u64 = 1 << 30;

/// Input: a line with the kind of the file, and its content.
pub(crate) fn records(data: &[u8]) {
    let (kind, content) = line(data);
    let scratch = Scratch::new();
    let place = Place::new(&scratch);
    match kind.as_str() {
        "tag" => place.tag(content),
        "manifest" => place.manifest(content),
        "list" => place.list(content),
        "note" => place.note(content),
        "pins" => place.pins(content),
        "summary" | "images" => place.usage(&kind, content),
        "image" => place.image(content),
        "details" => place.details(content),
        "traffic" => place.traffic(content),
        _ => {}
    }
}

/// Input: a line with the size of the partial download and the position of a damaged byte, and the content of the blob.
pub(crate) fn resume(data: &[u8]) {
    let (numbers, content) = line(data);
    let mut numbers = numbers.split(' ').map(|number| number.parse::<usize>().unwrap_or(0));
    let size = numbers.next().unwrap_or(0).min(content.len());
    let damaged = numbers.next().unwrap_or(usize::MAX);
    let scratch = Scratch::new();
    let place = Place::new(&scratch);
    let digest = Digest::of(Algorithm::Sha256, content);
    let mut partial = content[..size].to_vec();
    partial.iter_mut().skip(damaged).take(1).for_each(|byte| *byte ^= 0xff);
    let is_damaged = partial != content[..size];
    place.write(place.layout().partial(&place.name.upstream, &digest), &partial);
    let resumed = place.ingest(&digest, content);
    assert_eq!(resumed, !is_damaged, "{size} of {} bytes", content.len());
    // A damaged partial is gone, and the second attempt begins at the first byte.
    assert!(resumed || place.ingest(&digest, content));
    let blob = place.store.blob(&digest, Some(content.len() as u64)).expect("it is in the store");
    let mut stored = Vec::new();
    (&*blob.file).read_to_end(&mut stored).expect("it can be read");
    if stored.is_empty() {
        stored = vec![0; content.len()];
        blob.file.read_exact_at(&mut stored, 0).expect("it can be read");
    }
    assert!(stored == content, "other bytes than those of the digest");
    assert!(place.store.partial_files().is_empty());
}

/// A cache directory with one image name.
struct Place {
    store: Store,
    name: ImageName,
    tag: Tag,
}

impl Place {
    fn new(scratch: &Scratch) -> Place {
        let upstream: Upstream = "quay.io".parse().expect("valid");
        let name = ImageName::new(upstream, "team/app".parse().expect("valid"));
        Place { store: scratch.store("cache"), name, tag: "v1".parse().expect("valid") }
    }

    fn layout(&self) -> &Layout {
        &self.store.inner.layout
    }

    fn write(&self, path: PathBuf, content: &[u8]) {
        fs::create_dir_all(path.parent().expect("it is below the root")).expect("it is ours");
        fs::write(path, content).expect("it is ours");
    }

    fn tag(&self, content: &[u8]) {
        self.write(self.layout().tag(&self.name, &self.tag), content);
        let found =
            self.store.find_tag(&self.name, &self.tag, Access::Look).expect("it is readable");
        if let Some(record) = found {
            assert_is_shown(record.fetched);
            assert_is_shown(record.checked);
            record.gone.into_iter().for_each(assert_is_shown);
            self.store.put_tag(&self.name, &self.tag, &record).expect("it is writable");
            assert_eq!(self.store.tag(&self.name, &self.tag, Access::Look), Some(record));
        }
        self.walk();
    }

    fn manifest(&self, content: &[u8]) {
        let digest = Digest::of(Algorithm::Sha256, b"x");
        self.write(self.layout().manifest(&self.name, &digest), content);
        let found = self.store.find_manifest(&self.name, &digest, Access::Look);
        if let Some(record) = found.expect("it is readable") {
            assert_is_shown(record.fetched);
            self.store.put_manifest(&self.name, &digest, &record).expect("it is writable");
            assert_eq!(self.store.manifest(&self.name, &digest, Access::Look), Some(record));
        }
        self.walk();
    }

    fn list(&self, content: &[u8]) {
        const KEY: &str = "tags?";
        self.write(self.layout().list(&self.name, KEY), content);
        let Some(record) = self.store.list(&self.name, KEY) else { return };
        let body = record.body.read().expect("its length was checked");
        assert!(content.ends_with(&body));
        // A list of a repository without images is not stored.
        self.write(self.layout().tag(&self.name, &self.tag), b"{}");
        let is_put = self.store.put_list(&self.name, KEY, &record, MAX_BYTES);
        if is_put.expect("it is writable") {
            let again = self.store.list(&self.name, KEY).expect("it was stored");
            assert_eq!(again.body.read().ok(), Some(body));
            assert_eq!((again.checked, &again.next), (record.checked, &record.next));
            assert_eq!(again.filters_applied, record.filters_applied);
        }
    }

    fn note(&self, content: &[u8]) {
        let digest = Digest::of(Algorithm::Sha256, content);
        self.write(self.layout().partial(&self.name.upstream, &digest), b"partial");
        self.write(self.layout().partial_note(&self.name.upstream, &digest), content);
        let partials = self.store.partials();
        assert!(partials.len() <= 1 && partials.iter().all(|(_, each)| *each == digest));
        let files = self.store.partial_files();
        assert_eq!(files.len(), 1, "it can be removed, whatever the note says");
        assert_eq!(self.store.remove_partial(&files[0]).expect("it is writable"), Some(7));
        assert!(self.store.partials().is_empty());
    }

    fn pins(&self, content: &[u8]) {
        self.write(self.layout().pins(), content);
        let Ok(before) = self.store.pins() else { return };
        let settings = PinSettings::default();
        let is_valid = Pins::load(&self.store, &settings).is_ok();
        let ours = vec!["quay.io/team/app".to_owned(), "docker.io/*".to_owned()];
        let is_known = |pin: &String| before.contains(pin);
        let count = ours.iter().filter(|pin| !is_known(pin)).count();
        assert_eq!(self.store.add_pins(&ours).expect("it is writable"), count);
        let after = self.store.pins().expect("it is readable");
        assert!(before.iter().chain(&ours).all(|pin| after.contains(pin)), "a pin is lost");
        assert_eq!(after.len(), before.len() + count);
        if let Ok(pins) = Pins::load(&self.store, &settings) {
            assert!(
                is_valid && pins.cover(&self.name, &crate::oci::Reference::Tag(self.tag.clone()))
            );
        } else {
            assert!(!is_valid, "a valid pin makes the others invalid");
        }
        self.store.remove_pins(&ours).expect("it is writable");
        let left = self.store.pins().expect("it is readable");
        assert!(before.iter().all(|pin| ours.contains(pin) || left.contains(pin)));
        assert!(!left.iter().any(|pin| ours.contains(pin)));
    }

    fn usage(&self, kind: &str, content: &[u8]) {
        let path = match kind {
            "summary" => self.layout().usage_summary(),
            _ => self.layout().usage_images(),
        };
        self.write(path, content);
        let _ = self.store.usage();
        self.store.each_usage(&mut |_| true);
        self.store.each_repository_usage(&mut |_| true);
        // The next walk corrects it, whatever it was.
        self.store
            .ingest_bytes(&Digest::of(Algorithm::Sha256, b"{}"), b"{}")
            .expect("it is writable");
        let disk = self.store.count_disk(&mut || true).expect("nothing stops it");
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_900_000_000);
        let walked = self.store.walk_usage(&disk, &|| now, &mut || true);
        assert!(walked.expect("it is readable").is_some());
        self.store.each_usage(&mut |_| panic!("the cache has no image"));
    }

    /// A manifest that is stored as the manifest of a tag.
    fn image(&self, content: &[u8]) {
        let digest = Digest::of(Algorithm::Sha256, content);
        self.store.ingest_bytes(&digest, content).expect("it is writable");
        let media_type = crate::oci::MediaType::OCI_MANIFEST;
        let media_type = crate::oci::MediaType::parse(media_type).expect("valid");
        let now = SystemTime::now();
        let size = content.len() as u64;
        let record = TagRecord::new(digest, media_type, size, now, now);
        self.store.put_tag(&self.name, &self.tag, &record).expect("it is writable");
        self.walk();
        assert_eq!(self.store.read(&digest, size).as_deref(), Some(content));
    }

    /// The config of an image, as the management port shows it.
    fn details(&self, content: &[u8]) {
        let digest = Digest::of(Algorithm::Sha256, content);
        self.store.ingest_bytes(&digest, content).expect("it is writable");
        let config = crate::oci::Descriptor::new(digest, content.len() as u64);
        let Some(details) = self.store.image_details(&config) else { return };
        let texts = details.entrypoint.iter().chain(&details.command).chain(&details.ports);
        let texts = texts.chain(&details.user).chain(&details.working_directory);
        let labels = details.labels.iter().flat_map(|(name, value)| [name, value]);
        for text in texts.chain(&details.platform).chain(&details.created).chain(labels) {
            assert!(!text.contains(char::is_control) && text.len() < 20_000, "{text:?}");
        }
    }

    /// The record of past traffic. What can be read is what is written again.
    fn traffic(&self, content: &[u8]) {
        self.write(self.layout().traffic(), content);
        let record = self.store.traffic();
        self.store.put_traffic(&record).expect("it is writable");
        assert_eq!(self.store.traffic(), record);
    }

    /// Everything that reads all names. None of it may remove what a name refers to.
    fn walk(&self) {
        let mut images = Vec::new();
        let collect = &mut |image: &StoredImage| {
            images.push((image.full_reference(), image.digest));
            Ok(())
        };
        self.store.each_image(collect).expect("it is readable");
        for (_, digest) in &images {
            self.store.graph(&self.name, crate::oci::Descriptor::new(*digest, 0));
        }
        self.store.write_index().expect("it is writable");
        let index = fs::read(self.layout().index()).expect("it was written");
        serde_json::from_slice::<serde::de::IgnoredAny>(&index).expect("index.json is JSON");
        if let Ok(Some(catalogue)) = self.store.catalogue(&mut || true) {
            assert!(
                catalogue.references().iter().all(|count| *count > 0),
                "a number without a name"
            );
        }
        let disk = self.store.count_disk(&mut || true).expect("nothing stops it");
        let now = SystemTime::now();
        self.store.walk_usage(&disk, &|| now, &mut || true).expect("it is writable");
    }

    /// Finishes a download. Returns whether the content was right.
    fn ingest(&self, digest: &Digest, content: &[u8]) -> bool {
        let size = content.len() as u64;
        match self.store.ingest(&self.name.upstream, digest, Some(size)).expect("it is writable") {
            Begin::Writing(mut ingest) => {
                let mut buffer = [0; 7];
                while ingest.partial().hash_next(&mut buffer).expect("it is readable") {}
                let from = usize::try_from(ingest.bytes_written()).expect("it is short");
                ingest.write(&content[from..]).expect("it is writable");
                match ingest.verify(Some(size)) {
                    Ok(verified) => verified.commit().map(drop).expect("it is writable"),
                    Err(_) => return false,
                }
                true
            }
            other => panic!("it is being written: {other:?}"),
        }
    }
}

/// A time from a record is shown by commands and the management API.
fn assert_is_shown(time: SystemTime) {
    let _ = (timestamp(time), ago(time, SystemTime::now()));
}
