//! The file of pins.

use super::*;

fn texts(all: &[&str]) -> Vec<String> {
    all.iter().map(|each| (*each).to_owned()).collect()
}

#[test]
fn pins_are_lines_that_people_may_edit_as_well() {
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
fn pins_that_cannot_be_read_are_said() {
    let (directory, store) = fresh();
    let path = directory.path().join("pins");
    std::os::unix::fs::symlink("pins", &path).unwrap();
    assert!(store.pins().is_err(), "it leads to itself");
    fs::remove_file(&path).unwrap();
    fs::write(&path, b"alpine # f\xfcr immer\n").unwrap();
    assert!(store.pins().is_err(), "it is no UTF-8");
}

#[test]
fn what_a_configuration_pins_is_noted_and_forgotten_with_it() {
    let (_directory, store) = fresh();
    store.note_configured_pins(&[]).unwrap();
    let path = store.root().join("pins-configured");
    assert!(!path.exists(), "nothing is pinned, and nothing is written");
    let pins = ["alpine".to_owned(), "quay.io/*".to_owned()];
    store.note_configured_pins(&pins).unwrap();
    assert_eq!(store.configured_pins().unwrap(), pins);
    assert!(store.pins().unwrap().is_empty(), "they are nobody's to take off");
    store.note_configured_pins(&pins[1..]).unwrap();
    assert_eq!(store.configured_pins().unwrap(), pins[1..]);
}
