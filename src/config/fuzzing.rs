//! Fuzz targets: configuration files, and the values in them.

use std::path::Path;
use std::time::{Duration, SystemTime};

use super::auth::{Prefix, TokenProvider};
use super::image_sync::{ImageText, Interval, SyncName};
use super::number::{Count, Port, Timeout};
use super::oidc::{Audience, ClaimPath};
use super::parse::parse;
use super::value::{
    EndpointUrl, FreeSpaceText, Interface, LogFormat, LogLevel, PlatformText, Rate, Size, Span,
    TtlText,
};
use super::{Differences, Overrides, Settings, build};
use crate::api::HostName;
use crate::bundle::Compression;
use crate::client_config::Server;
use crate::events::EventType;
use crate::fuzzing::{assert_is_safe_text, round_trip};
use crate::image_sync::{CronSchedule, Schedule};
use crate::prune::{parse_duration, parse_since, timestamp};
use crate::units;
use crate::upstream::{EcrRegistry, IssuerUrl, RepositoryPrefix};

/// Input: the file.
pub(crate) fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Some(given) = settings(text) else { return };
    assert_eq!(given.differences(&given), Differences::default());
    let shown = given.to_yaml();
    let again = settings(&shown).unwrap_or_else(|| panic!("what is shown is refused:\n{shown}"));
    assert_eq!(again.to_yaml(), shown);
    // Secrets are not shown, so settings with secrets differ.
    if !shown.contains("***") {
        assert_eq!(given.differences(&again), Differences::default(), "{shown}");
    }
}

fn settings(text: &str) -> Option<Settings> {
    let built =
        parse(Path::new("larder.yaml"), text).and_then(|file| build(file, Overrides::default()));
    let checked = built.map_err(|error| {
        let error = error.to_string();
        assert!(!error.is_empty());
        assert_is_safe_text(&error);
    });
    checked.ok()
}

/// Input: one value.
pub(crate) fn values(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Some(Span(duration)) = round_trip::<Span>(text) {
        assert_eq!(parse_duration(text), Ok(duration));
        assert!(!units::duration(duration).is_empty());
    }
    if let Some(Size(bytes)) = round_trip::<Size>(text) {
        assert!(!units::size(bytes).is_empty());
    }
    for result in [
        text.parse::<Count>().err().map(|error| error.to_string()),
        text.parse::<Port>().err().map(|error| error.to_string()),
        text.parse::<Compression>().err(),
        text.parse::<Server>().err().map(|error| error.to_string()),
    ] {
        result.iter().for_each(|error| assert_is_safe_text(error));
    }
    round_trip::<Timeout>(text);
    round_trip::<Interface>(text);
    round_trip::<EventType>(text);
    round_trip::<IssuerUrl>(text);
    round_trip::<Audience>(text);
    round_trip::<ClaimPath>(text);
    round_trip::<Prefix>(text);
    round_trip::<TokenProvider>(text);
    round_trip::<Rate>(text);
    round_trip::<FreeSpaceText>(text);
    round_trip::<TtlText>(text);
    round_trip::<PlatformText>(text);
    round_trip::<LogLevel>(text);
    round_trip::<LogFormat>(text);
    round_trip::<HostName>(text);
    round_trip::<SyncName>(text);
    round_trip::<ImageText>(text);
    round_trip::<Interval>(text);
    if let Some(endpoint) = round_trip::<EndpointUrl>(text) {
        let url = endpoint.to_string();
        assert!(!url.contains(['@', '?', '#']), "{url}");
    }
    let _ = text.parse::<RepositoryPrefix>();
    let _ = EcrRegistry::in_region(text);
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    if let Some(cron) = round_trip::<CronSchedule>(text) {
        let next = Schedule::Cron(cron).next(Some(now), now);
        assert!(next.is_some_and(|next| next > now), "{text}");
    }
    if let Ok(since) = parse_since(text, now) {
        let shown = timestamp(since);
        // Times before the year 0 and after 9999 have no timestamp.
        assert!(shown.is_empty() || parse_since(&shown, now) == Ok(since), "{shown}");
        assert!(!units::ago(since, now).is_empty());
    }
}
