//! Fuzz targets: bundles as archives, bundles as files, and compression.

use std::io::{Read, Write};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::compression::{Compression, Compressor, decompress};
use super::output::{Destination, Form};
use super::source::BundleSource;
use super::{Have, ImportEvent, ImportSettings, OpenOutput, Selection, export, import, select};
use crate::fuzzing::{Scratch, assert_is_safe_text, line};
use crate::oci::{Algorithm, Digest};
use crate::store::{Checked, Store};

/// The most bytes that a target unpacks.
const UNPACKED_MAX: u64 = 32 * 1024 * 1024;

/// Input: a tar archive, compressed or not.
pub(crate) fn bundle_tar(data: &[u8]) {
    // What unpacks to more is left to the target `compression`.
    let unpacked = decompress(data).and_then(|(_, content)| {
        let mut all = Vec::new();
        content.take(UNPACKED_MAX).read_to_end(&mut all).map(|_| all.len() as u64)
    });
    if unpacked.is_ok_and(|bytes| bytes < UNPACKED_MAX) {
        check(data.into());
    }
}

/// Input: files, from which a tar archive is built. A line `> PATH` begins a file, and a line `@ PATH TARGET` is a
/// symbolic link. In paths and contents, `{n}` is the hex of the digest of the n-th file, and `<n>` its size. So a
/// fuzzer that changes a file does not have to find a new digest.
pub(crate) fn bundle_files(data: &[u8]) {
    let (form, rest) = line(data);
    let compression = form.parse().unwrap_or(Compression::None);
    let mut tar = tar::Builder::new(Vec::new());
    for entry in entries(rest) {
        let mut header = tar::Header::new_gnu();
        let added = match entry {
            Entry::File { path, content } => {
                header.set_size(content.len() as u64);
                tar.append_data(&mut header, path, content.as_slice())
            }
            Entry::Link { path, target } => {
                header.set_entry_type(tar::EntryType::Symlink);
                header.set_size(0);
                tar.append_link(&mut header, path, target)
            }
        };
        // Paths that tar cannot represent.
        if added.is_err() {
            return;
        }
    }
    let Ok(tar) = tar.into_inner() else { return };
    check(compress(compression, &tar).into());
}

enum Entry {
    File { path: String, content: Vec<u8> },
    Link { path: String, target: String },
}

fn entries(data: &[u8]) -> Vec<Entry> {
    let (mut entries, mut digests): (Vec<Entry>, Vec<(String, usize)>) = (Vec::new(), Vec::new());
    let mut current: Option<(String, String)> = None;
    let text = String::from_utf8_lossy(data).into_owned() + "\n> ";
    for line in text.lines().chain(["> "]) {
        let is_marker = line.starts_with("> ") || line.starts_with("@ ");
        if is_marker && let Some((path, content)) = current.take() {
            let content = filled(content.strip_suffix('\n').unwrap_or(&content), &digests);
            let hex = Digest::of(Algorithm::Sha256, content.as_bytes()).hex();
            digests.push((hex, content.len()));
            let path = filled(&path, &digests);
            entries.push(Entry::File { path, content: content.into_bytes() });
        }
        if let Some(path) = line.strip_prefix("> ").filter(|path| !path.is_empty()) {
            current = Some((path.to_owned(), String::new()));
        } else if let Some((path, target)) =
            line.strip_prefix("@ ").and_then(|link| link.split_once(' '))
        {
            let target = filled(target, &digests);
            entries.push(Entry::Link { path: filled(path, &digests), target });
        } else if let Some((_, content)) = &mut current {
            content.push_str(line);
            content.push('\n');
        }
    }
    entries
}

/// Replaces the references to digests and sizes.
fn filled(text: &str, digests: &[(String, usize)]) -> String {
    let mut filled = text.to_owned();
    for (number, (hex, size)) in (1..).zip(digests) {
        let (digest, bytes) = (format!("{{{number}}}"), format!("<{number}>"));
        filled = filled.replace(&digest, hex).replace(&bytes, &size.to_string());
    }
    filled
}

/// Imports a bundle, and checks what the cache then contains.
fn check(tar: Arc<[u8]>) {
    let scratch = Scratch::new();
    let store = scratch.store("first");
    let source = BundleSource::Memory { name: "fuzz", tar };
    let first = imported(&store, &source);
    assert_is_sound(&store);
    let names = names(&store);
    if first.is_some() {
        // Another import of the same bundle changes nothing.
        assert_eq!(imported(&store, &source), first);
        assert_eq!(self::names(&store), names);
    }
    // What is exported can be imported, under the same names.
    let plan = select(&store, &Selection::default()).expect("the cache can be read");
    assert!(plan.missing.is_empty(), "a name without its content: {:?}", plan.missing);
    let path = scratch.path().join("bundle.tar");
    let destination = Destination::File(path.clone());
    let form = Form { destination, compression: Compression::None };
    let output = OpenOutput::open(form).expect("it can be created");
    export(&store, &plan.images, &Have::default(), output, &mut |_| {})
        .expect("the cache can be exported");
    let other = scratch.store("second");
    imported(&other, &BundleSource::File(path)).expect("an export can be imported");
    assert_is_sound(&other);
    assert_eq!(self::names(&other), names);
}

/// Imports a bundle. Returns the number of images.
fn imported(store: &Store, source: &BundleSource) -> Option<usize> {
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1);
    let settings = ImportSettings { name: None, now, is_private: &|_| false };
    let summary = import(store, source, &settings, &mut |event| match event {
        ImportEvent::Imported { reference, platforms, .. } => {
            assert_is_safe_text(reference);
            platforms.iter().for_each(|platform| assert_is_safe_text(platform));
        }
        ImportEvent::Incomplete { missing, .. } => assert!(!missing.is_empty()),
        ImportEvent::Refused { reason, .. } => assert_is_safe_text(reason),
        ImportEvent::Progress { bytes } => assert!(*bytes > 0),
    });
    summary.ok().map(|summary| summary.images)
}

/// Every blob matches its digest, and every name has all of its content.
fn assert_is_sound(store: &Store) {
    let mut buffer = vec![0; 4096];
    for (digest, _) in store.blobs().expect("the cache can be read") {
        let checked = store.check_blob(&digest, &mut buffer, &mut |_| true);
        assert!(matches!(checked, Checked::Sound), "{digest}: {checked:?}");
    }
    let visited = store.each_image(&mut |image| {
        let graph = store.graph_of(image);
        assert!(super::completeness::is_complete(&graph), "{}", image.full_reference());
        Ok(())
    });
    visited.expect("the cache can be read");
}

fn names(store: &Store) -> Vec<(String, Digest)> {
    let mut names = Vec::new();
    let visited = store.each_image(&mut |image| {
        names.push((image.full_reference(), image.digest));
        Ok(())
    });
    visited.expect("the cache can be read");
    names.sort();
    names
}

/// Input: compressed content, which is also compressed itself.
pub(crate) fn compression(data: &[u8]) {
    for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
        let packed = compress(compression, data);
        let unpacked = decompress(&*packed).and_then(|(_, mut content)| {
            let mut all = Vec::new();
            content.read_to_end(&mut all).map(|_| all)
        });
        // Content that looks compressed is unpacked, whatever it is.
        let looks_compressed = compression == Compression::None && is_compressed(data);
        assert!(looks_compressed || unpacked.is_ok_and(|unpacked| unpacked == data));
    }
    let Ok((_, content)) = decompress(data) else { return };
    let _ = std::io::copy(&mut content.take(UNPACKED_MAX), &mut std::io::sink());
}

fn is_compressed(data: &[u8]) -> bool {
    decompress(data).is_ok_and(|(compression, _)| compression != Compression::None)
}

fn compress(compression: Compression, content: &[u8]) -> Vec<u8> {
    let mut compressor = Compressor::new(compression, Vec::new());
    compressor.write_all(content).expect("memory is never full");
    compressor.finish().expect("memory is never full")
}
