//! The pins file.

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
