//! `larder sync`: prints what the running server keeps present, and makes it load that now.

use std::io::{self, Write};
use std::thread;
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use super::{CommandError, management_client, note, table};
use crate::cli;
use crate::config::Settings;
use crate::prune::parse_since;
use crate::units::{ago, duration, plural};

/// How often the server is asked for the state of the runs that a command waits for.
const POLL_INTERVAL: Duration = Duration::from_millis(500);
/// Where the API has the entries.
const PATH: &str = "/api/v1/sync";

/// Prints the state of the entries, or requests runs and waits for them.
///
/// # Errors
/// [`CommandError::Running`] if images are missing after the runs, or the server does not answer.
pub(super) fn sync(settings: &Settings, command: &cli::Sync) -> Result<(), CommandError> {
    if settings.sync.is_empty() && settings.preload_images.is_none() {
        let text = "the configuration has no sync; pass the file of the server with --config-file";
        return Err(CommandError::Running(text.into()));
    }
    match &command.action {
        None => show(settings, command.json),
        Some(cli::SyncAction::Now(now)) => run(settings, &now.names, command.json),
    }
}

fn entries(settings: &Settings) -> Result<Value, CommandError> {
    management_client::get(&settings.management, PATH)
}

fn list(document: &Value, key: &str) -> Vec<Value> {
    document[key].as_array().cloned().unwrap_or_default()
}

fn show(settings: &Settings, is_json: bool) -> Result<(), CommandError> {
    let document = entries(settings)?;
    let out = &mut io::stdout().lock();
    let printed = match is_json {
        true => writeln!(out, "{document:#}"),
        false => print_table(out, &document, SystemTime::now()),
    };
    super::printed(printed)
}

fn print_table(out: &mut dyn Write, document: &Value, now: SystemTime) -> io::Result<()> {
    if let Some(why) = document["suspended"].as_str() {
        writeln!(out, "nothing is loaded: {why}")?;
    }
    let entries = list(document, "entries");
    let mut lines =
        vec![["NAME", "STATE", "IMAGES", "MISSING", "SUCCEEDED", "NEXT"].map(str::to_owned)];
    lines.extend(entries.iter().map(|entry| {
        let text = |key: &str| entry[key].as_str().unwrap_or("-").to_owned();
        let number = |key: &str| entry[key].as_u64().unwrap_or_default().to_string();
        let at = |key: &str| parse_since(entry[key].as_str()?, now).ok();
        let succeeded = at("succeeded").map_or_else(
            || "never".to_owned(),
            |time| match &*ago(time, now) {
                "now" => "now".to_owned(),
                age => format!("{age} ago"),
            },
        );
        let next = at("next").map_or_else(
            || "-".to_owned(),
            |next| match next.duration_since(now) {
                Ok(wait) => format!("in {}", duration(Duration::from_secs(wait.as_secs()))),
                Err(_) => "now".to_owned(),
            },
        );
        let (images, missing) = (number("images"), number("missingImages"));
        [text("name"), state(entry), images, missing, succeeded, next]
    }));
    table::print(out, &lines)?;
    for entry in &entries {
        for line in problems(entry) {
            writeln!(out, "{line}")?;
        }
    }
    Ok(())
}

fn state(entry: &Value) -> String {
    let state = entry["state"].as_str().unwrap_or("-");
    let (done, total) = (&entry["done"], &entry["total"]);
    match (state, entry["attempt"].as_u64().unwrap_or_default()) {
        ("running", 0 | 1) => format!("running, {done} of {total}"),
        ("running", attempt) => format!("running, {done} of {total}, attempt {attempt}"),
        ("retrying", attempt) => format!("retrying after attempt {attempt}"),
        (state, _) => state.to_owned(),
    }
}

/// The missing images of an entry, and those that were not confirmed, with the reasons.
fn problems(entry: &Value) -> Vec<String> {
    let name = entry["name"].as_str().unwrap_or_default();
    let mut lines = Vec::new();
    for (key, count, words) in [
        ("missing", "missingImages", ""),
        ("unconfirmed", "unconfirmedImages", "cached, but not confirmed: "),
    ] {
        let listed = list(entry, key);
        let text = |each: &Value, key: &str| each[key].as_str().unwrap_or_default().to_owned();
        lines.extend(listed.iter().map(|each| {
            format!("{name}: {}: {words}{}", text(each, "image"), text(each, "reason"))
        }));
        let all = entry[count].as_u64().unwrap_or_default();
        if let more @ 1.. = all.saturating_sub(listed.len() as u64) {
            lines.push(format!("{name}: {words}and {more} more"));
        }
    }
    lines
}

/// Requests runs and waits until they have ended.
fn run(settings: &Settings, names: &[String], is_json: bool) -> Result<(), CommandError> {
    let mut requested: Vec<(String, u64)> = Vec::new();
    let mut request =
        |query: &str| {
            let path = format!("{PATH}{query}");
            let document = management_client::post(&settings.management, &path)?;
            requested.extend(list(&document, "requested").iter().filter_map(|each| {
                Some((each["name"].as_str()?.to_owned(), each["run"].as_u64()?))
            }));
            Ok::<(), CommandError>(())
        };
    match names.is_empty() {
        true => request("")?,
        false => names.iter().try_for_each(|name| request(&format!("?name={}", escaped(name))))?,
    }
    let mut said = String::new();
    loop {
        let document = entries(settings)?;
        let is_requested = |entry: &Value| {
            let runs = entry["runs"].as_u64().unwrap_or_default();
            let run = requested.iter().find(|(name, _)| entry["name"] == **name);
            run.map(|(_, run)| runs >= *run)
        };
        let entries = list(&document, "entries");
        let waiting: Vec<&Value> =
            entries.iter().filter(|entry| is_requested(entry) == Some(false)).collect();
        if waiting.is_empty() {
            let ended = entries.iter().filter(|entry| is_requested(entry).is_some());
            let ended: Vec<&Value> = ended.collect();
            if is_json {
                let text = format!("{:#}", json!({ "entries": ended }));
                super::printed(writeln!(io::stdout(), "{text}"))?;
            }
            return conclude(&ended);
        }
        if let Some(why) = document["suspended"].as_str() {
            return Err(CommandError::Running(format!("nothing is loaded any more: {why}")));
        }
        let line = |entry: &&Value| {
            format!("{}: {}", entry["name"].as_str().unwrap_or_default(), state(entry))
        };
        let progress = waiting.iter().map(line).collect::<Vec<_>>().join("; ");
        if progress != said {
            note(&progress);
            said = progress;
        }
        thread::sleep(POLL_INTERVAL);
    }
}

fn conclude(ended: &[&Value]) -> Result<(), CommandError> {
    let number = |entry: &Value, key: &str| entry[key].as_u64().unwrap_or_default() as usize;
    let (mut failed, mut of) = (0, 0);
    for entry in ended {
        let (images, missing_images) = (number(entry, "images"), number(entry, "missingImages"));
        problems(entry).iter().for_each(|line| note(line));
        let all = plural(images + missing_images, "image");
        let name = entry["name"].as_str().unwrap_or_default();
        note(&format!("{name}: {images} of {all} in the cache"));
        (failed, of) = (failed + missing_images, of + images + missing_images);
    }
    match failed {
        0 => Ok(()),
        failed => Err(CommandError::Running(format!(
            "{failed} of {} missing; the server tries again at the next run",
            plural(of, "image")
        ))),
    }
}

/// A name in a query.
fn escaped(name: &str) -> String {
    let escape = |byte: u8| match byte.is_ascii_alphanumeric() || b".-_".contains(&byte) {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02X}"),
    };
    name.bytes().map(escape).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_are_printed_with_what_is_missing() {
        let now = parse_since("2026-11-29T12:00:00Z", SystemTime::UNIX_EPOCH).unwrap();
        let document = json!({ "suspended": null, "entries": [
            {
                "name": "base", "state": "idle", "images": 3, "missingImages": 2,
                "succeeded": "2026-11-29T09:00:00Z", "next": "2026-11-29T14:30:00Z",
                "missing": [{ "image": "docker.io/library/a:1", "reason": "it is gone" }],
                "unconfirmedImages": 1,
                "unconfirmed": [{ "image": "docker.io/library/b:1", "reason": "it is down" }],
            },
            {
                "name": "apps", "state": "running", "done": 1, "total": 4, "attempt": 2, "images": 0,
                "missingImages": 0, "succeeded": null, "next": null, "missing": [],
            },
        ]});
        let mut out = Vec::new();
        print_table(&mut out, &document, now).unwrap();
        let expected = "\
NAME  STATE                       IMAGES  MISSING  SUCCEEDED  NEXT
base  idle                        3       2        3h ago     in 2 h 30 min
apps  running, 1 of 4, attempt 2  0       0        never      -
base: docker.io/library/a:1: it is gone
base: and 1 more
base: docker.io/library/b:1: cached, but not confirmed: it is down
";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }
}
