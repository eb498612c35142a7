//! "Did you mean": finds the allowed word that is closest to a misspelled one.

use crate::oci::quoted;

/// How similar two words must be, from 0 to 1 (Jaro-Winkler), for one to be suggested instead of the other.
/// `prt` and `port` have 0.93, `warning` and `warn` 0.91, `auth` and `arch` 0.70.
const SIMILARITY_MIN: f64 = 0.8;

/// The allowed word that is most similar to `word`, if one is similar enough.
pub fn closest<'a>(word: &str, allowed: &[&'a str]) -> Option<&'a str> {
    let similarity =
        |other: &str| strsim::jaro_winkler(&word.to_lowercase(), &other.to_lowercase());
    let all = allowed.iter().map(|other| (similarity(other), *other));
    let best = all.max_by(|(one, _), (other, _)| one.total_cmp(other));
    best.filter(|(similarity, _)| *similarity >= SIMILARITY_MIN).map(|(_, other)| other)
}

/// `prt: did you mean port?`, or the allowed words if none is similar.
pub(super) fn one_of(word: &str, allowed: &[&str]) -> String {
    let close = closest(word, allowed);
    let word = quoted(word);
    match (close, allowed) {
        (Some(close), [_, _, _, _, _, ..]) => format!("{word}: did you mean {close}?"),
        (Some(close), few) => format!("{word}: did you mean {close}? Allowed: {}", few.join(", ")),
        (None, all) => format!("{word}: use one of {}", all.join(", ")),
    }
}
