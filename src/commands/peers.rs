//! `larder peers`: prints the members of the group as the running server sees them.

use std::io::{self, Write};

use serde_json::Value;

use super::{CommandError, management_client, table};
use crate::cli;
use crate::config::Settings;
use crate::oci::{Algorithm, Digest, PartReference, quoted};
use crate::units::plural;

/// Prints the members, with their places for some content.
///
/// # Errors
/// [`CommandError`] if the content is not named correctly, or the server does not answer.
pub(super) fn peers(settings: &Settings, command: &cli::Peers) -> Result<(), CommandError> {
    if settings.upstream.peers.is_none() {
        let text = "the configuration has no peers; pass the file of the server with --config-file";
        return Err(CommandError::Running(text.into()));
    }
    let query = match &command.content {
        None => String::new(),
        Some(text) if text.parse::<Digest>().is_ok() => format!("?digest={text}"),
        Some(text) if Algorithm::ALL.iter().any(|it| is_digest_of(*it, text)) => {
            let text = format!("{}: this is not a complete digest", quoted(text));
            return Err(CommandError::usage("peers", &text));
        }
        Some(text) => {
            let name = settings.naming.expand(text);
            PartReference::parse(&name)
                .map_err(|error| CommandError::Usage(format!("{text}: {error}")))?;
            format!("?image={name}")
        }
    };
    let path = format!("/api/v1/peers{query}");
    let document = management_client::get(&settings.management, &path)?;
    let members = document["peers"].as_array().map(Vec::as_slice).unwrap_or_default();
    let out = &mut io::stdout().lock();
    let printed = match command.json {
        true => writeln!(out, "{:#}", document["peers"]),
        false => print_table(out, members),
    };
    super::printed(printed)
}

/// Whether a text is meant to be a digest: no registry has an image of this name.
fn is_digest_of(algorithm: Algorithm, text: &str) -> bool {
    text.strip_prefix(algorithm.as_str()).is_some_and(|rest| rest.starts_with(':'))
}

fn print_table(out: &mut dyn Write, members: &[Value]) -> io::Result<()> {
    let mut lines = vec![["RANK", "MEMBER", "VERSION", "STATE"].map(str::to_owned)];
    let mut members: Vec<&Value> = members.iter().collect();
    // Members without a rank stay in the order of their URLs.
    members.sort_by_key(|member| member["rank"].as_u64());
    lines.extend(members.iter().map(|member| {
        let text = |key: &str| member[key].as_str().unwrap_or("-").to_owned();
        let rank = member["rank"].as_u64().map_or_else(|| "-".into(), |rank| rank.to_string());
        [rank, text("url"), text("version"), state(member)]
    }));
    table::print(out, &lines)
}

fn state(member: &Value) -> String {
    let failing = member["failing"].as_u64().unwrap_or_default();
    let mut state = match member["version"].as_str() {
        _ if member["isThisProcess"] == true => "this server".to_owned(),
        _ if failing > 0 => format!("not asked at present for {}", plural(failing, "registry")),
        Some(_) => "answers".to_owned(),
        None => "not asked yet".to_owned(),
    };
    let differences: Vec<&str> =
        member["differences"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if !differences.is_empty() {
        state.push_str(&format!(", differs in {}", differences.join(", ")));
    }
    if let Some(failure) = member["lastFailure"].as_str() {
        state.push_str(&format!("; last failure: {failure}"));
    }
    state
}
