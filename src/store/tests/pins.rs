//! The pins file.

use std::collections::{BTreeMap, BTreeSet};

use super::*;

fn texts(all: &[&str]) -> Vec<String> {
    all.iter().map(|each| (*each).to_owned()).collect()
}

#[test]
fn pins_are_lines_that_users_may_edit() {
    let (directory, store) = fresh();
    assert!(store.pins().unwrap().is_empty());
    assert_eq!(store.add_pins(&texts(&["b", "a", "b"])).unwrap(), 2);
    assert_eq!(store.pins().unwrap(), ["a", "b"]);
    assert_eq!(store.add_pins(&texts(&["b"])).unwrap(), 0);

    let path = directory.path().join("pins");
    fs::write(&path, "# ours\n\n a \nc").unwrap();
    assert_eq!(store.pins().unwrap(), ["a", "c"]);
    assert_eq!(store.add_pins(&texts(&["d"])).unwrap(), 1);
    assert_eq!(store.remove_pins(&texts(&["a", "x"])).unwrap(), 1);
    assert_eq!(fs::read_to_string(&path).unwrap(), "# ours\n\nc\nd\n");
    assert_eq!(open(directory.path()).pins().unwrap(), ["c", "d"]);
}

#[test]
fn unreadable_pins_are_an_error() {
    let (directory, store) = fresh();
    let path = directory.path().join("pins");
    std::os::unix::fs::symlink("pins", &path).unwrap();
    assert!(store.pins().is_err(), "the link refers to itself");
    fs::remove_file(&path).unwrap();
    fs::write(&path, b"alpine # f\xfcr immer\n").unwrap();
    assert!(store.pins().is_err(), "it is not UTF-8");
}

#[test]
fn configured_pins_are_saved_and_removed_with_the_configuration() {
    let (_directory, store) = fresh();
    store.note_configured_pins(&[]).unwrap();
    let path = store.root().join("pins-configured");
    assert!(!path.exists(), "nothing is pinned, and nothing is written");
    let pins = ["alpine".to_owned(), "quay.io/*".to_owned()];
    store.note_configured_pins(&pins).unwrap();
    assert_eq!(store.configured_pins().unwrap(), pins);
    assert!(store.pins().unwrap().is_empty(), "configured pins cannot be removed by a command");
    store.note_configured_pins(&pins[1..]).unwrap();
    assert_eq!(store.configured_pins().unwrap(), pins[1..]);
}

#[test]
fn images_that_sync_keeps_present_are_pinned() {
    let (_directory, store) = fresh();
    let images = texts(&["docker.io/library/alpine:3", "quay.io/org/app:v1"]);
    assert!(store.synced_pins_by_entry().unwrap().is_empty());
    let by_entry = BTreeMap::from([
        ("base".to_owned(), BTreeSet::from([images[0].clone()])),
        ("platform".to_owned(), BTreeSet::from([images[1].clone()])),
    ]);
    store.note_synced_pins(&by_entry).unwrap();
    assert_eq!(store.synced_pins().unwrap(), images);
    assert_eq!(store.synced_pins_by_entry().unwrap(), by_entry);
    assert!(store.pins().unwrap().is_empty(), "they cannot be removed by a command");
    let pins = Pins::load(&store, &PinSettings::default()).unwrap();
    let covers = |text: &str| {
        let (name, reference) = crate::oci::PartReference::parse(text).unwrap().or_latest();
        pins.cover(&name, &reference)
    };
    assert!(covers("alpine:3") && covers("quay.io/org/app:v1") && !covers("alpine:4"));
}

#[test]
fn pins_that_do_not_fit_into_their_file_are_left_out() {
    let (_directory, store) = fresh();
    let images = (0..20_000).map(|number| format!("{number:01000}")).collect();
    store.note_synced_pins(&BTreeMap::from([("one".to_owned(), images)])).unwrap();
    let kept = store.synced_pins().unwrap();
    assert!(kept.len() > 16_000 && kept.len() < 17_000, "{}", kept.len());
}

#[test]
fn records_of_sync_survive_a_restart_and_damaged_ones_count_as_none() {
    let (directory, store) = fresh();
    assert!(store.sync_records().is_empty());
    let reasons = vec![("a".to_owned(), "it is gone".to_owned())];
    let record = SyncRecord { name: "one".into(), started: 7, reasons, ..SyncRecord::default() };
    store.put_sync_records(std::slice::from_ref(&record)).unwrap();
    let again = open(directory.path());
    assert_eq!(again.sync_records(), [record]);
    fs::write(store.root().join("usage/sync.json"), "{").unwrap();
    assert!(again.sync_records().is_empty());
}
