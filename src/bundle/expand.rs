//! The images that the entries of a list name, with the tags that match the patterns in it.

use std::collections::HashSet;

use serde::Deserialize;

use super::blocking::wait;
use super::failure::Failure;
use super::list::Wanted;
use super::load::{LoadEvent, LoadSettings, Loading, Manner};
use super::newest::{DATED_TAGS_MAX, Newest, NewestBy, newest_by_date, newest_by_version};
use super::outcome::Outcome;
use crate::cache::{Cache, How, ListLookup, ListQuestion};
use crate::oci::{ImageName, Pattern, Reference, Tag, json_reason};
use crate::units::plural;

/// The most pages of a tag list that are read for a pattern. With a hundred tags per page, as is usual, this is
/// more than any repository has.
const TAG_PAGES_MAX: usize = 1000;

/// The most tags that a pattern may match.
const TAGS_MATCHING_MAX: usize = 100_000;

/// A page of a tag list (distribution-spec, "Listing Tags").
#[derive(Deserialize)]
struct Page {
    #[serde(default)]
    tags: Option<Vec<String>>,
}

/// An image to load, or an entry of the list that failed before its images were known.
pub struct Image {
    /// The full reference, or the entry.
    pub(super) reference: String,
    pub(super) wanted: Result<(ImageName, Reference), Outcome>,
}

impl Image {
    /// The full reference; of an entry that failed, the entry.
    pub fn reference(&self) -> &str {
        &self.reference
    }

    /// Whether this is an image, and not an entry that failed.
    pub fn is_known(&self) -> bool {
        self.wanted.is_ok()
    }
}

/// The images that a list names, each of them once. Blocks, if there are patterns.
pub fn expand(
    cache: &Cache,
    wanted: &[Wanted],
    settings: &LoadSettings,
    report: &(dyn Fn(LoadEvent<'_>) + Sync),
) -> Vec<Image> {
    let loading = Loading { cache, settings, report };
    let mut images: Vec<Image> = wanted.iter().flat_map(|each| loading.expand(each)).collect();
    // A list may name an image twice, or by a pattern and by its tag.
    let mut seen = HashSet::new();
    images.retain(|image| seen.insert(image.reference.clone()));
    images
}

impl Loading<'_> {
    /// The images that an entry of the list names.
    fn expand(&self, wanted: &Wanted) -> Vec<Image> {
        match wanted {
            Wanted::Image(name, reference) => vec![Image {
                reference: name.with(reference),
                wanted: Ok((name.clone(), reference.clone())),
            }],
            Wanted::Tags(name, pattern) => {
                let failed = |failure: Failure| {
                    vec![Image { reference: wanted.to_string(), wanted: Err(failure.into()) }]
                };
                let matching = || {
                    let tags = self.tags(name, pattern)?;
                    match self.settings.newest {
                        Some(newest) => self.newest(name, tags, newest),
                        None => Ok(tags),
                    }
                };
                match self.retrying(&wanted.to_string(), matching) {
                    Err(failure) => failed(failure),
                    Ok(tags) if tags.is_empty() => failed("no tag matches".to_owned().into()),
                    Ok(tags) => tags
                        .into_iter()
                        .map(|tag| {
                            let reference = Reference::Tag(tag);
                            Image {
                                reference: name.with(&reference),
                                wanted: Ok((name.clone(), reference)),
                            }
                        })
                        .collect(),
                }
            }
        }
    }

    fn tags(&self, name: &ImageName, pattern: &Pattern) -> Result<Vec<Tag>, Failure> {
        let (mut query, mut found) = (String::new(), Vec::new());
        for _ in 0..TAG_PAGES_MAX {
            let (body, next) = match self.settings.manner {
                Manner::Background => self.cache.current_tags(name, &query)?,
                Manner::Command => {
                    let answer =
                        match self.cache.list(name, ListQuestion::Tags { query: query.clone() })? {
                            ListLookup::Ready(answer) => answer,
                            ListLookup::Wait(waiting) => wait(|waker| waiting.poll(waker))?,
                        };
                    if answer.how == How::Stale {
                        let reason = "the registry cannot list its tags right now";
                        return Err(Failure::from(reason.to_owned()));
                    }
                    (answer.body, answer.next)
                }
            };
            let body = body.read().map_err(|error| format!("the tag list: {error}"))?;
            let page: Page = serde_json::from_slice(&body)
                .map_err(|error| format!("the tag list is not JSON: {}", json_reason(&error)))?;
            let tags = page.tags.into_iter().flatten();
            let matching = tags.filter(|tag| pattern.matches(tag));
            found.extend(matching.filter_map(|tag| tag.parse::<Tag>().ok()));
            if found.len() > TAGS_MATCHING_MAX {
                return Err(format!("more than {TAGS_MATCHING_MAX} tags match").into());
            }
            match next {
                Some(next) if next == query => {
                    return Err("the registry sends the same page of the tag list again"
                        .to_owned()
                        .into());
                }
                Some(next) => query = next,
                None => return Ok(found),
            }
        }
        Err(format!("the tag list has more than {TAG_PAGES_MAX} pages").into())
    }

    fn newest(
        &self,
        name: &ImageName,
        tags: Vec<Tag>,
        newest: Newest,
    ) -> Result<Vec<Tag>, Failure> {
        match newest.by {
            NewestBy::Semver => Ok(newest_by_version(tags, newest.count)),
            NewestBy::Date if tags.len() <= newest.count => Ok(tags),
            NewestBy::Date if tags.len() > DATED_TAGS_MAX => {
                let tags = plural(tags.len(), "tag");
                Err(format!("{tags} match, and at most {DATED_TAGS_MAX} are compared by date")
                    .into())
            }
            NewestBy::Date => {
                let mut dated = Vec::new();
                for tag in tags {
                    match self.cache.created(name, &tag, &self.settings.platforms) {
                        Ok(created) => dated.push((tag, created)),
                        Err(error) => match Failure::from(error) {
                            // The registry lists a tag that it does not have.
                            Failure { retry: None, reason, .. } => {
                                log::info!(
                                    image:% = format_args!("{name}:{tag}"), error = reason.as_str();
                                    "the date of a tag is unknown"
                                );
                            }
                            failure => return Err(failure),
                        },
                    }
                }
                Ok(newest_by_date(dated, newest.count))
            }
        }
    }
}
