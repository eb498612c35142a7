//! `larder access`: the permissions that registries have given to the logins of clients (`registries[].access: client`). Works
//! on the directory, also while servers run.

use std::io::{self, Write};
use std::time::SystemTime;

use serde_json::{Value, json};

use super::{CommandError, existing_store, printed, say, table};
use crate::cli::{self, AccessAction, AccessForget, AccessList};
use crate::config::Settings;
use crate::oci::{NamePattern, PartReference, quoted};
use crate::prune::timestamp;
use crate::store::{GrantRecord, Store};
use crate::units::{ago, plural};

/// Lists permissions, or forgets them.
///
/// # Errors
/// [`CommandError`] for an invalid command line, for I/O errors, and if nothing matches.
pub(super) fn access(settings: &Settings, command: &cli::Access) -> Result<(), CommandError> {
    match &command.action {
        None => list(settings, &AccessList::default()),
        Some(AccessAction::List(command)) => list(settings, command),
        Some(AccessAction::Forget(command)) => forget(settings, command),
    }
}

/// Which permissions a command is about.
struct Selection<'a> {
    patterns: Vec<NamePattern>,
    user: Option<&'a str>,
    /// As they were typed.
    texts: Vec<String>,
}

impl<'a> Selection<'a> {
    fn parse(
        settings: &Settings,
        repositories: &[String],
        user: Option<&'a str>,
    ) -> Result<Selection<'a>, CommandError> {
        let parse = |text: &String| {
            let pattern = settings.naming.expand(text).parse();
            pattern.map_err(|error| CommandError::Usage(format!("{text}: {error}")))
        };
        let patterns = repositories.iter().map(parse).collect::<Result<_, _>>()?;
        let of_user = user.map(|user| format!("--user {user}"));
        let texts = repositories.iter().cloned().chain(of_user).collect();
        Ok(Selection { patterns, user, texts })
    }

    fn covers(&self, record: &GrantRecord) -> bool {
        let covers = |pattern: &NamePattern| {
            let name = PartReference::parse(&record.repository);
            name.is_ok_and(|parsed| pattern.covers(&parsed.name))
        };
        self.user.is_none_or(|user| record.user == user || record.user == quoted(user))
            && (self.patterns.is_empty() || self.patterns.iter().any(covers))
    }

    /// The selected permissions, in the order of their repositories.
    ///
    /// # Errors
    /// [`CommandError::NothingMatches`] if something was selected, and there is none.
    fn among(&self, store: &Store) -> Result<Vec<(String, GrantRecord)>, CommandError> {
        let mut grants = store.grants()?;
        grants.retain(|(_, record)| self.covers(record));
        let order = |record: &GrantRecord| (record.repository.clone(), record.user.clone());
        grants.sort_by_key(|(_, record)| order(record));
        match grants.is_empty() && !self.texts.is_empty() {
            true => Err(CommandError::NothingMatches { texts: self.texts.clone(), hint: None }),
            false => Ok(grants),
        }
    }
}

fn list(settings: &Settings, command: &AccessList) -> Result<(), CommandError> {
    let selection = Selection::parse(settings, &command.repositories, command.user.as_deref())?;
    let grants = selection.among(&existing_store(&settings.store)?)?;
    let out = &mut io::stdout().lock();
    if command.json {
        let document = |(_, record): &(String, GrantRecord)| {
            json!({
                "repository": record.repository,
                "user": record.user,
                "confirmed": timestamp(record.confirmed()),
            })
        };
        let documents: Vec<Value> = grants.iter().map(document).collect();
        return printed(writeln!(out, "{:#}", Value::from(documents)));
    }
    if grants.is_empty() {
        return printed(writeln!(
            out,
            "no registry has let a user pull (registries[].access: client)"
        ));
    }
    let now = SystemTime::now();
    let mut lines = vec![["REPOSITORY", "USER", "CONFIRMED"].map(str::to_owned)];
    lines.extend(grants.into_iter().map(|(_, record)| {
        let confirmed = ago(record.confirmed(), now);
        [record.repository, record.user, confirmed]
    }));
    printed(table::print(out, &lines))
}

fn forget(settings: &Settings, command: &AccessForget) -> Result<(), CommandError> {
    let selection = Selection::parse(settings, &command.repositories, command.user.as_deref())?;
    if selection.texts.is_empty() != command.all {
        let text = "access forget: name registries, repositories or a --user; or say --all";
        return Err(CommandError::Usage(text.into()));
    }
    let store = existing_store(&settings.store)?;
    let grants = selection.among(&store)?;
    for (key, _) in &grants {
        store.remove_grant(key)?;
    }
    // After the removals, so that no server reads one of them again.
    store.forget_grants_in_memory()?;
    say(&format!("forgot {}", plural(grants.len() as u64, "permission")));
    Ok(())
}
