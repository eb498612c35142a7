//! The images that a command line selects.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::CommandError;
use crate::config::{Settings, closest};
use crate::oci::{Choice, ImageName, PartReference, PatternError, Reference};
use crate::store::{IncompleteImage, Store, StoreError, StoredImage};

/// How many tags are named of a repository that has not the one that was asked for.
const TAGS_NAMED: usize = 5;

/// Images that were selected by name, or by a pattern; all of them if nothing was.
pub(super) struct Selected {
    choices: Vec<Choice>,
    /// Each as it was typed.
    texts: Vec<String>,
}

impl Selected {
    /// The images that were typed, and those that match `pattern`: comma-separated regular expressions, the format of
    /// `--pattern` in the server that Larder replaces.
    ///
    /// # Errors
    /// [`CommandError::Usage`] for an invalid image or expression.
    pub(super) fn parse(
        settings: &Settings,
        typed: &[String],
        pattern: Option<&str>,
    ) -> Result<Selected, CommandError> {
        let (mut choices, mut texts) = (choices(settings, typed, &[])?, typed.to_vec());
        for text in pattern.into_iter().flat_map(|texts| texts.split(',')) {
            let parsed = format!("/{text}/").parse().map_err(|error: PatternError| {
                let reason = error.reason();
                CommandError::Usage(format!(
                    "--pattern: {text} is not a regular expression ({reason})"
                ))
            });
            choices.push(Choice::Matching(parsed?));
            texts.push(text.to_owned());
        }
        Ok(Selected { choices, texts })
    }

    /// Whether everything is selected, because nothing was named.
    pub(super) fn is_everything(&self) -> bool {
        self.choices.is_empty()
    }

    pub(super) fn choices(&self) -> &[Choice] {
        &self.choices
    }

    pub(super) fn covers(&self, name: &ImageName, reference: &Reference) -> bool {
        self.is_everything() || self.choices.iter().any(|choice| choice.covers(name, reference))
    }

    /// The cached images that are selected.
    ///
    /// # Errors
    /// [`StoreError::Read`] if images could not be read, so that the list may be incomplete.
    pub(super) fn images(&self, store: &Store) -> Result<Vec<StoredImage>, StoreError> {
        let mut images = all(store)?;
        images.retain(|image| self.covers(&image.name, &image.reference));
        Ok(images)
    }

    /// The images among `all` that are selected.
    pub(super) fn among(&self, all: &[StoredImage]) -> impl Iterator<Item = StoredImage> {
        all.iter().filter(|image| self.covers(&image.name, &image.reference)).cloned()
    }

    /// Whether each selection covers at least one of the images.
    ///
    /// # Errors
    /// [`CommandError::NothingMatches`], with what is similar among `all`.
    pub(super) fn check<'a>(
        &self,
        all: impl Iterator<Item = (&'a ImageName, &'a Reference)> + Clone,
    ) -> Result<(), CommandError> {
        let is_unmatched =
            |choice: &Choice| !all.clone().any(|(name, reference)| choice.covers(name, reference));
        let unmatched: Vec<usize> =
            (0..self.choices.len()).filter(|index| is_unmatched(&self.choices[*index])).collect();
        let Some(first) = unmatched.first() else { return Ok(()) };
        let hint = match &self.choices[*first] {
            Choice::Exact(wanted) if unmatched.len() == 1 => hint(wanted, all),
            _ => None,
        };
        let texts = unmatched.iter().map(|index| self.texts[*index].clone()).collect();
        Err(CommandError::NothingMatches { texts, hint })
    }

    /// As [`Selected::check_in`], but patterns may match nothing: a scheduled command then has nothing to do.
    ///
    /// # Errors
    /// As [`Selected::check_in`].
    pub(super) fn check_names_in(&self, store: &Store) -> Result<(), CommandError> {
        let names = self.choices.iter().zip(&self.texts);
        let names = names.filter(|(choice, _)| matches!(choice, Choice::Exact(_)));
        let (choices, texts) = names.map(|(choice, text)| (choice.clone(), text.clone())).unzip();
        Selected { choices, texts }.check_in(store)
    }

    /// As [`Selected::check`], for the images of a cache directory.
    ///
    /// # Errors
    /// [`CommandError::NothingMatches`]; [`CommandError::Store`] if the images cannot be read.
    pub(super) fn check_in(&self, store: &Store) -> Result<(), CommandError> {
        match self.is_everything() {
            true => Ok(()),
            false => self.check_among(&all(store)?, &[]),
        }
    }

    /// As [`Selected::check`], for cached images and those that are not cached.
    ///
    /// # Errors
    /// [`CommandError::NothingMatches`].
    pub(super) fn check_among(
        &self,
        all: &[StoredImage],
        uncached: &[IncompleteImage],
    ) -> Result<(), CommandError> {
        let uncached: Vec<_> = uncached.iter().filter_map(IncompleteImage::parse).collect();
        let all = all.iter().map(|image| (&image.name, &image.reference));
        self.check(all.chain(uncached.iter().map(|(name, reference, _)| (name, reference))))
    }
}

/// All cached images.
///
/// # Errors
/// [`StoreError::Read`] if images could not be read, so that the list may be incomplete.
pub(super) fn all(store: &Store) -> Result<Vec<StoredImage>, StoreError> {
    let mut images = Vec::new();
    let walked = store.each_image(&mut |image| {
        images.push(image.clone());
        Ok(())
    });
    walked.map_err(|source| StoreError::Read { path: store.root().to_owned(), source })?;
    Ok(images)
}

/// What was probably meant by the name of an image that is not in the cache.
pub(super) fn hint_in(store: &Store, wanted: &PartReference) -> Option<String> {
    let all = all(store).ok()?;
    hint(wanted, all.iter().map(|image| (&image.name, &image.reference)))
}

/// What was probably meant: a tag that the repository has, or a repository with a similar name.
fn hint<'a>(
    wanted: &PartReference,
    all: impl Iterator<Item = (&'a ImageName, &'a Reference)> + Clone,
) -> Option<String> {
    let tags: BTreeSet<String> = all
        .clone()
        .filter(|(name, _)| **name == wanted.name)
        .filter_map(|(_, reference)| match reference {
            Reference::Tag(tag) => Some(tag.to_string()),
            Reference::Digest(_) => None,
        })
        .collect();
    if !tags.is_empty() {
        let named: Vec<&str> = tags.iter().take(TAGS_NAMED).map(String::as_str).collect();
        let more = match tags.len().saturating_sub(TAGS_NAMED) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        return Some(format!("the tags of {} are {}{more}", wanted.name, named.join(", ")));
    }
    // Without the registry, which is the same for most of them and would make all of them similar.
    let names: BTreeSet<String> = all.map(|(name, _)| name.to_string()).collect();
    let short = |name: &str| name.rsplit('/').next().unwrap_or_default().to_owned();
    let shorts: Vec<String> = names.iter().map(|name| short(name)).collect();
    let shorts: Vec<&str> = shorts.iter().map(String::as_str).collect();
    let close = closest(&short(&wanted.name.to_string()), &shorts)?;
    let found = names.iter().zip(&shorts).find(|(_, short)| **short == close);
    found.map(|(name, _)| format!("did you mean {name}?"))
}

/// The given images and those in lists.
///
/// # Errors
/// [`CommandError::Usage`] for an invalid image, and for a list that cannot be read.
pub(super) fn choices(
    settings: &Settings,
    typed: &[String],
    lists: &[PathBuf],
) -> Result<Vec<Choice>, CommandError> {
    let expand = |text: &str| settings.naming.expand(text);
    let parse = |text: &String| expand(text).parse().map_err(CommandError::Usage);
    let mut choices = typed.iter().map(parse).collect::<Result<Vec<Choice>, _>>()?;
    for path in lists {
        let text = read("--list", path)?;
        choices
            .extend(Choice::parse_list_with(&text, expand).map_err(|error| invalid(path, &error))?);
    }
    Ok(choices)
}

/// The text of a file that an option names.
///
/// # Errors
/// [`CommandError::Usage`] if it cannot be read.
pub(super) fn read(flag: &str, path: &Path) -> Result<String, CommandError> {
    let text = |error| format!("cannot read {}: {error}", path.display());
    fs::read_to_string(path).map_err(|error| CommandError::usage(flag, &text(error)))
}

/// The error for a file that contains something else.
pub(super) fn invalid(path: &Path, error: &str) -> CommandError {
    CommandError::Usage(format!("{}: {error}", path.display()))
}
