//! Which images are pinned because an entry keeps them present.

use std::collections::{BTreeSet, HashSet};

use crate::bundle::Wanted;
use crate::oci::{PartReference, Reference};

/// The images among those that were `pinned` before that an entry still wants: by name, or by a pattern.
pub(super) fn still_wanted(pinned: &BTreeSet<String>, wanted: &[Wanted]) -> BTreeSet<String> {
    let names: HashSet<String> = wanted.iter().map(Wanted::to_string).collect();
    let is_wanted = |image: &&String| {
        names.contains(*image) || wanted.iter().any(|each| is_of_pattern(image, each))
    };
    pinned.iter().filter(is_wanted).cloned().collect()
}

/// The images that a list names without a pattern.
pub(super) fn named(wanted: &[Wanted]) -> impl Iterator<Item = String> {
    let is_image = |each: &&Wanted| matches!(each, Wanted::Image(..));
    wanted.iter().filter(is_image).map(Wanted::to_string)
}

fn is_of_pattern(image: &str, wanted: &Wanted) -> bool {
    let Wanted::Tags(name, pattern) = wanted else { return false };
    PartReference::parse(image).is_ok_and(|image| match image.reference {
        Some(Reference::Tag(tag)) => image.name == *name && pattern.matches(tag.as_str()),
        _ => false,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_stay_pinned_while_an_entry_names_them_or_a_pattern_matches() {
        let list = "quay.io/org/app:/^v1/, alpine:3, quay.io/org/tool:*";
        let wanted = Wanted::parse_list(list, str::to_owned).unwrap();
        let pinned = [
            "quay.io/org/app:v1.2",
            "quay.io/org/app:v2.0",
            "docker.io/library/alpine:3",
            "docker.io/library/alpine:4",
            "quay.io/org/other:v1.2",
            "quay.io/org/tool:x",
            "not an image",
        ];
        let pinned = pinned.map(str::to_owned).into();
        let kept = still_wanted(&pinned, &wanted);
        let expected = ["docker.io/library/alpine:3", "quay.io/org/app:v1.2", "quay.io/org/tool:x"];
        assert_eq!(kept, expected.map(str::to_owned).into());
        assert_eq!(named(&wanted).collect::<Vec<_>>(), ["docker.io/library/alpine:3"]);
    }
}
