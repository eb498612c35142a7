//! The house rules that a program can check, checked over `src/` and `tests/`.
//!
//! Rooms and arrows are DESIGN.md's section 3: a change here is a change of the design. Every rule
//! is a pure function over a file's path and text (as `support/source.rs` takes it apart) that gives
//! [`Finding`]s.

use std::fmt;
use std::path::Path;

use crate::support::source::{Kind, Line, Source, Tests, Token, lines, paths, sources, tokens};

/// A room: what it may use of ours, and what it must not know. `*` is everything.
struct Room {
    name: &'static str,
    may_use: &'static [&'static str],
    must_not_know: &'static str,
}

const ROOMS: &[Room] = &[
    Room { name: "oci", may_use: &[], must_not_know: "files, network, clocks, HTTP" },
    Room { name: "client_address", may_use: &[], must_not_know: "sockets, HTTP, what is shared" },
    Room { name: "via", may_use: &[], must_not_know: "what a request is about" },
    Room { name: "budget", may_use: &["client_address"], must_not_know: "what is counted" },
    Room { name: "flight", may_use: &[], must_not_know: "digests' meaning, store, upstream" },
    Room { name: "store", may_use: &["oci"], must_not_know: "that upstreams exist, HTTP, policy" },
    Room {
        name: "access",
        may_use: &["oci", "flight", "certificates", "client_address"],
        must_not_know: "HTTP, routes, upstreams",
    },
    Room { name: "certificates", may_use: &[], must_not_know: "who shows them to whom" },
    Room {
        name: "upstream",
        may_use: &["oci", "certificates", "via"],
        must_not_know: "disk, cache, server",
    },
    Room {
        name: "cache",
        may_use: &[
            "oci",
            "store",
            "upstream",
            "flight",
            "prune",
            "metrics",
            "client_address",
            "via",
        ],
        must_not_know: "sockets to clients, routes, command line, configuration file",
    },
    Room { name: "prune", may_use: &["oci", "store"], must_not_know: "HTTP to clients" },
    Room { name: "bundle", may_use: &["oci", "store", "cache"], must_not_know: "HTTP to clients" },
    Room { name: "hello", may_use: &["oci"], must_not_know: "files, or how images are served" },
    Room {
        name: "mirror",
        may_use: &["oci"],
        must_not_know: "files, or how Larder itself is configured",
    },
    Room { name: "metrics", may_use: &[], must_not_know: "who counts what, and why" },
    Room {
        name: "http",
        may_use: &["certificates", "client_address", "budget"],
        must_not_know: "registries, digests, store",
    },
    Room {
        name: "api",
        may_use: &[
            "oci",
            "cache",
            "prune",
            "metrics",
            "http",
            "access",
            "client_address",
            "budget",
            "via",
        ],
        must_not_know: "the upstream client, file paths",
    },
    Room {
        name: "config",
        may_use: &[
            "oci",
            "store",
            "certificates",
            "access",
            "hello",
            "upstream",
            "cache",
            "http",
            "api",
            "prune",
        ],
        must_not_know: "behaviour: of other rooms it knows their Settings",
    },
    Room { name: "cli", may_use: &[], must_not_know: "behaviour: it is argh structs" },
    Room { name: "commands", may_use: &["*"], must_not_know: "protocol details" },
];

/// Paths that belong to some rooms only. `main` stands for `main.rs` and `lib.rs`.
struct Restricted {
    path: &'static str,
    rooms: Rooms,
    why: &'static str,
}

enum Rooms {
    Only(&'static [&'static str]),
    Not(&'static [&'static str]),
}

/// The rooms that are values and decisions: the world reaches them through other rooms.
const WORLDLESS: Rooms = Rooms::Not(&["oci", "flight", "cache", "api"]);
const SOCKETS: &str = "sockets out are upstream's, sockets in are http's";
const CLOCKLESS: &str = "time is an argument";

const RESTRICTED: &[Restricted] = &[
    Restricted {
        path: "ureq",
        rooms: Rooms::Only(&["upstream"]),
        why: "only upstream talks to registries",
    },
    Restricted {
        path: "rustix",
        rooms: Rooms::Only(&["store", "http", "commands"]),
        why: "system calls are for the rooms that touch disk, sockets and the process",
    },
    Restricted {
        path: "sha2",
        rooms: Rooms::Only(&["oci", "certificates"]),
        why: "digests of content are computed in one place, those of signatures in another",
    },
    Restricted {
        path: "serde_saphyr",
        rooms: Rooms::Only(&["config"]),
        why: "configuration files are read in one place",
    },
    Restricted {
        path: "std::env",
        rooms: Rooms::Only(&["config", "commands", "main"]),
        why: "the environment is read in one place, and handed on",
    },
    Restricted { path: "std::fs", rooms: WORLDLESS, why: "files are store's" },
    Restricted { path: "std::net::TcpStream", rooms: WORLDLESS, why: SOCKETS },
    Restricted { path: "std::net::TcpListener", rooms: WORLDLESS, why: SOCKETS },
    Restricted { path: "std::net::UdpSocket", rooms: WORLDLESS, why: SOCKETS },
    Restricted { path: "SystemTime::now", rooms: Rooms::Not(&["oci", "store"]), why: CLOCKLESS },
    Restricted { path: "Instant::now", rooms: Rooms::Not(&["oci", "store"]), why: CLOCKLESS },
];

/// Places that may do what their room may not: file, path, reason. One that is not used any more is
/// an error too.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    (
        "src/upstream/auth/aws/sigv4.rs",
        "sha2",
        "signs requests to Amazon; no digest of any content is computed there",
    ),
    (
        "src/upstream/auth/helper.rs",
        "rustix",
        "waits for a child with a deadline, and kills it with what it has started",
    ),
];

/// The most lines of a file, its test modules not counted.
const LONGEST_FILE: usize = 500;

/// Files that may be longer, each with the reason.
const LONG_FILES: &[(&str, &str)] = &[];

/// File names that say nothing about what is inside.
const EMPTY_NAMES: &[&str] = &["utils", "util", "helpers", "common", "types", "manager"];

#[test]
fn source_tree_follows_the_house_rules() {
    let sources = sources(Path::new(env!("CARGO_MANIFEST_DIR")));
    assert!(sources.iter().any(|s| s.path == "src/lib.rs"), "the walker does not find the sources");
    let findings = check(&sources, EXCEPTIONS, LONG_FILES);
    let report: Vec<String> = findings.iter().map(Finding::to_string).collect();
    assert!(report.is_empty(), "the house rules are broken:\n{}\n", report.join("\n"));
}

#[derive(Debug, PartialEq, Eq)]
struct Finding {
    path: String,
    line: usize,
    why: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}", self.path, self.line, self.why)
    }
}

/// All rules over all files.
fn check(
    sources: &[Source],
    exceptions: &[(&str, &str, &str)],
    long_files: &[(&str, &str)],
) -> Vec<Finding> {
    let mut findings = Vec::new();
    for Source { path, text } in sources {
        let lines = lines(text);
        findings.extend(header(path, text));
        findings.extend(empty_name(path));
        findings.extend(too_long(path, &lines, long_files));
        findings.extend(forbidden_words(path, &lines));
        if path.starts_with("src/") && !is_test_file(path) {
            let paths = paths(&lines);
            findings.extend(unknown_room(path));
            findings.extend(arrows(path, &paths));
            findings.extend(restricted(path, &paths, exceptions));
            findings.extend(unexplained_unwraps(path, &lines));
            findings.extend(scattered_statuses(path, &lines));
        }
    }
    findings.extend(idle_exceptions(sources, exceptions, long_files));
    findings
}

// ---- The rules ----

fn header(path: &str, text: &str) -> Option<Finding> {
    let why = "a file begins with a //! header that says what it is for";
    (!text.starts_with("//!")).then(|| finding(path, 1, why))
}

fn empty_name(path: &str) -> Option<Finding> {
    let mut named = path.split('/').map(|part| part.trim_end_matches(".rs"));
    let empty = named.find(|name| EMPTY_NAMES.contains(name))?;
    Some(finding(path, 1, format!("`{empty}` does not say what is inside")))
}

fn too_long(path: &str, lines: &[Line], allowed: &[(&str, &str)]) -> Option<Finding> {
    let length = lines.iter().filter(|line| !line.in_test).count();
    let excused = allowed.iter().any(|(excused, _)| *excused == path);
    (length > LONGEST_FILE && !excused)
        .then(|| finding(path, 1, format!("{length} lines; at most {LONGEST_FILE}, tests apart")))
}

fn forbidden_words(path: &str, lines: &[Line]) -> Vec<Finding> {
    let mut findings = Vec::new();
    let tokens = tokens(lines, Tests::Included);
    for (at, token) in tokens.iter().enumerate() {
        let Kind::Word(word) = &token.kind else { continue };
        let called = tokens.get(at + 1).is_some_and(|next| next.kind == Kind::Other('!'));
        let forbidden = match word.as_str() {
            "unsafe" => true,
            "todo" | "unimplemented" | "dbg" => called,
            _ => false,
        };
        if forbidden {
            findings.push(finding(path, token.line, format!("no `{word}` in this house")));
        }
    }
    findings
}

fn unknown_room(path: &str) -> Option<Finding> {
    let room = room_of(path);
    let known = room == "main" || ROOMS.iter().any(|known| known.name == room);
    (!known).then(|| finding(path, 1, format!("`{room}` is not a room of DESIGN.md, section 3")))
}

fn arrows(path: &str, paths: &[(usize, String)]) -> Vec<Finding> {
    // An unknown room is reported by itself; what belongs to everything may use everything.
    let Some(room) = ROOMS.iter().find(|room| room.name == room_of(path)) else {
        return Vec::new();
    };
    let mut findings = Vec::new();
    for (line, used) in paths {
        let Some(target) = target_of(path, used) else { continue };
        if target == room.name || room.may_use.contains(&target) || room.may_use == ["*"] {
            continue;
        }
        let why = match ROOMS.iter().any(|known| known.name == target) {
            true => format!(
                "`{}` must not use `{target}`: it must not know {} (it may use: {})",
                room.name,
                room.must_not_know,
                if room.may_use.is_empty() {
                    "nothing".to_owned()
                } else {
                    room.may_use.join(", ")
                },
            ),
            false => format!("`crate::{target}` is not a room: name things by their rooms"),
        };
        findings.push(finding(path, *line, why));
    }
    findings
}

fn restricted(
    path: &str,
    paths: &[(usize, String)],
    exceptions: &[(&str, &str, &str)],
) -> Vec<Finding> {
    let room = room_of(path);
    let mut findings = Vec::new();
    for (line, used) in paths {
        for rule in RESTRICTED.iter().filter(|rule| uses(used, rule.path)) {
            let allowed = match rule.rooms {
                Rooms::Only(rooms) => rooms.contains(&room),
                Rooms::Not(rooms) => !rooms.contains(&room),
            };
            let excepted = exceptions
                .iter()
                .any(|(file, excepted, _)| *file == path && *excepted == rule.path);
            if !allowed && !excepted && !is_file_as_a_type(room, used) {
                let why = format!("no `{}` in `{room}`: {}", rule.path, rule.why);
                findings.push(finding(path, *line, why));
            }
        }
        let opens = ["open", "create", "create_new", "options"];
        if matches!(room, "cache" | "api")
            && used.rsplit_once("File::").is_some_and(|(_, call)| opens.contains(&call))
        {
            let why = format!("`{room}` may hold a File, but not `{used}` one: files are store's");
            findings.push(finding(path, *line, why));
        }
    }
    findings
}

/// Open files are handed through these rooms; opening them is not theirs.
fn is_file_as_a_type(room: &str, used: &str) -> bool {
    used == "std::fs::File" && matches!(room, "cache" | "api")
}

/// Whether the path `used` is, or leads into, `restricted`; a restricted `Type::function` is found
/// behind any prefix, since types are imported.
fn uses(used: &str, restricted: &str) -> bool {
    let behind = format!("::{restricted}");
    let imported = restricted.starts_with(char::is_uppercase) && used.ends_with(&behind);
    // A bare `ureq` is a variable; the crate is always followed by something.
    let whole = used == restricted && restricted.contains("::");
    whole || imported || used.starts_with(&format!("{restricted}::"))
}

fn unexplained_unwraps(path: &str, lines: &[Line]) -> Vec<Finding> {
    let why = "an unwrap needs its reason in a comment, in its line or one of the two above";
    let unwraps = |line: &Line| line.code.contains(".unwrap()") || line.code.contains(".expect(");
    let explained = |at: usize| lines[at.saturating_sub(2)..=at].iter().any(|line| line.comment);
    (0..lines.len())
        .filter(|at| unwraps(&lines[*at]) && !lines[*at].in_test && !explained(*at))
        .map(|at| finding(path, at + 1, why))
        .collect()
}

/// Looks for 4xx and 5xx shortly after a word of replying. Upstream is left alone: it reads statuses
/// that others have decided.
fn scattered_statuses(path: &str, lines: &[Line]) -> Vec<Finding> {
    if matches!(room_of(path), "http" | "upstream") || path.starts_with("src/api/status") {
        return Vec::new();
    }
    let tokens = tokens(lines, Tests::LeftOut);
    let word = |token: &Token| match &token.kind {
        Kind::Word(word) => word.to_ascii_lowercase(),
        Kind::Separator | Kind::Other(_) => String::new(),
    };
    let is_status = |token: &Token| {
        let number = word(token).trim_end_matches("_u16").trim_end_matches("u16").parse();
        number.is_ok_and(|number: u16| (400..600).contains(&number))
    };
    let replies = |token: &Token| {
        ["reply", "status", "response"].iter().any(|replying| word(token).contains(replying))
    };
    // `Reply::new(404`, `status: 503`, `status == 429`: never more than four tokens back.
    (0..tokens.len())
        .filter(|at| is_status(&tokens[*at]))
        .filter(|at| tokens[at.saturating_sub(4)..*at].iter().any(replies))
        .map(|at| {
            let why = "which status answers what is decided in src/api/status.rs";
            finding(path, tokens[at].line, why)
        })
        .collect()
}

/// Exceptions that nothing needs any more: whoever removed the need removes the entry.
fn idle_exceptions(
    sources: &[Source],
    exceptions: &[(&str, &str, &str)],
    long_files: &[(&str, &str)],
) -> Vec<Finding> {
    let text_of = |path: &str| sources.iter().find(|source| source.path == path).map(|s| &s.text);
    let mut findings = Vec::new();
    for (path, excepted, _) in exceptions {
        let paths = text_of(path).map(|text| paths(&lines(text))).unwrap_or_default();
        if !paths.iter().any(|(_, used)| uses(used, excepted)) {
            let why = format!("does not use `{excepted}`; take it off the exceptions");
            findings.push(finding(path, 1, why));
        }
    }
    for (path, _) in long_files {
        let length = |text: &String| too_long(path, &lines(text), &[]);
        if text_of(path).and_then(length).is_none() {
            findings.push(finding(path, 1, "is not long; take it off the long files"));
        }
    }
    findings
}

fn finding(path: &str, line: usize, why: impl Into<String>) -> Finding {
    Finding { path: path.to_owned(), line, why: why.into() }
}

// ---- Paths in the tree ----

/// The room of a file below `src/`; `main` for the two files that are above all rooms.
fn room_of(path: &str) -> &str {
    let inside = path.strip_prefix("src/").unwrap_or(path);
    let room = inside.split('/').next().unwrap_or("").trim_end_matches(".rs");
    if room == "lib" { "main" } else { room }
}

fn is_test_file(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.split('/').rev().skip(1).any(|folder| folder == "tests")
}

/// How many `super` lead from a file's own module to the crate's root.
fn depth_of(path: &str) -> usize {
    let parts = path.split('/').count() - 1;
    if path.ends_with("/mod.rs") { parts - 1 } else { parts }
}

/// The top-level module that a path in the code leads to, if it leads to one.
fn target_of<'a>(path: &str, used: &'a str) -> Option<&'a str> {
    if let Some(rest) = used.strip_prefix("crate::") {
        return rest.split("::").next();
    }
    let used = used.strip_prefix("self::").unwrap_or(used);
    let supers = used.split("::").take_while(|part| *part == "super").count();
    let target = used.split("::").nth(supers).filter(|_| supers >= depth_of(path).max(1))?;
    // In a module within the file, `super` leads less far than it seems; only rooms are believed.
    ROOMS.iter().any(|room| room.name == target).then_some(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_one(path: &str, text: &str) -> Vec<(usize, String)> {
        let source = Source { path: path.to_owned(), text: text.to_owned() };
        let findings = check(&[source], &[], &[]);
        findings.into_iter().map(|finding| (finding.line, finding.why)).collect()
    }

    #[track_caller]
    fn accepts(path: &str, code: &str) {
        let findings = check_one(path, &format!("//! Header.\n{code}\n"));
        assert!(findings.is_empty(), "{path}: {code}\n{findings:#?}");
    }

    /// One finding, in the code's first line, whose text contains `why`.
    #[track_caller]
    fn refuses(path: &str, code: &str, why: &str) {
        refuses_line(path, code, 1, why);
    }

    #[track_caller]
    fn refuses_line(path: &str, code: &str, line: usize, why: &str) {
        let findings = check_one(path, &format!("//! Header.\n{code}\n"));
        let [(found, text)] = findings.as_slice() else {
            panic!("one finding was expected in {path}: {code}\n{findings:#?}");
        };
        assert!(*found == line + 1 && text.contains(why), "{path}: {code}\n{findings:#?}");
    }

    #[test]
    fn allowed_arrows_are_accepted() {
        accepts("src/store/ingest.rs", "use crate::oci::Digest;");
        accepts("src/store/ingest.rs", "use crate::store::layout::Layout;");
        accepts("src/store/ingest.rs", "use super::layout::Layout;");
        accepts("src/cache/mod.rs", "use crate::{flight::Flight, store::{self, Store}};");
        accepts("src/commands/serve.rs", "use crate::{api, http, upstream};");
        accepts("src/lib.rs", "pub mod oci;\npub use crate::http::Server;");
        accepts("src/oci/name.rs", "pub(crate) fn x() {}");
        accepts("src/flight.rs", "mod inner { use super::Flight; }");
    }

    #[test]
    fn forbidden_arrows_are_refused_with_the_reason() {
        refuses("src/store/ingest.rs", "use crate::upstream::Client;", "that upstreams exist");
        refuses("src/oci/mod.rs", "use crate::store::Store;", "it may use: nothing");
        refuses("src/http/mod.rs", "fn f(d: &crate::oci::Digest) {}", "must not use `oci`");
        refuses("src/flight.rs", "use super::store;", "must not use `store`");
        refuses("src/http/reply.rs", "use super::super::oci::Digest;", "must not use `oci`");
        refuses("src/prune.rs", "use crate::cache;", "must not use `cache`");
        refuses("src/config/mod.rs", "use crate::commands::serve;", "must not use `commands`");
    }

    #[test]
    fn arrows_in_use_groups_are_found_in_their_lines() {
        let group = "use crate::{\n    oci::{Digest, Tag},\n    http::Reply,\n};";
        refuses_line("src/cache/mod.rs", group, 3, "must not use `http`");
        refuses("src/api/route.rs", "use crate::{oci, store};", "must not use `store`");
    }

    #[test]
    fn arrows_in_comments_strings_and_tests_are_no_arrows() {
        accepts("src/oci/mod.rs", "// crate::store\n/* crate::store\n crate::store */");
        accepts("src/oci/mod.rs", "/// See [`crate::store`].\nfn f() {}");
        accepts("src/oci/mod.rs", r##"const A: &str = "\"crate::store"; const B: char = '"';"##);
        accepts("src/oci/mod.rs", "const A: &str = r#\"\" crate::store\n crate::store\"#;");
        accepts("src/oci/mod.rs", "#[cfg(test)]\nmod tests {\n    use crate::store::Store;\n}");
        accepts("src/oci/tests.rs", "use crate::store::Store;");
        accepts("src/oci/tests/names.rs", "use crate::store::Store;");
    }

    #[test]
    fn code_after_a_test_item_is_code_again() {
        let code = "#[cfg(test)]\nmod tests {\n    fn f() {}\n}\nuse crate::store::Store;";
        refuses_line("src/oci/mod.rs", code, 5, "must not use `store`");
        let code = "#[cfg(test)]\nmod tests;\nuse crate::store::Store;";
        refuses_line("src/oci/mod.rs", code, 3, "must not use `store`");
        let code = "#[cfg(test)]\nuse crate::http::{A, B};\nuse crate::store::Store;";
        refuses_line("src/oci/mod.rs", code, 3, "must not use `store`");
    }

    #[test]
    fn lifetimes_and_escaped_quotes_do_not_hide_code() {
        let code = "fn f<'a>(x: &'a str) -> &'a str { '\\''; '\"'; x } use crate::store::Store;";
        refuses("src/oci/mod.rs", code, "must not use `store`");
        refuses("src/oci/mod.rs", "/* a /* b */ c */ use crate::store::S;", "must not use `store`");
    }

    #[test]
    fn names_that_are_no_rooms_are_refused() {
        refuses_line("src/pantry/mod.rs", "", 0, "not a room of DESIGN.md");
        refuses_line("src/misc.rs", "", 0, "not a room of DESIGN.md");
        refuses("src/oci/mod.rs", "use crate::Error;", "is not a room");
        refuses("src/oci/mod.rs", "use crate::*;", "is not a room");
    }

    #[test]
    fn crates_and_the_world_belong_to_their_rooms() {
        for (path, code) in [
            ("src/upstream/agent.rs", "use ureq::Agent;"),
            ("src/store/locks.rs", "use rustix::fs::flock;"),
            ("src/oci/digest.rs", "use sha2::{Digest as _, Sha256};"),
            ("src/config/mod.rs", "let v = std::env::var(\"X\");"),
            ("src/main.rs", "let a = std::env::args();"),
            ("src/store/mod.rs", "use std::{fs, io};"),
            ("src/cache/mod.rs", "use std::fs::File;\nfn f(file: &File) {}"),
            ("src/api/blobs.rs", "use std::{fs::File, io};"),
            ("src/http/mod.rs", "use std::net::{TcpListener, TcpStream};"),
            ("src/cache/mod.rs", "let now = SystemTime::now();"),
            ("src/api/mod.rs", "use std::net::SocketAddr;"),
            ("src/oci/mod.rs", "let sha2 = 1;"),
        ] {
            accepts(path, code);
        }
        for (path, code, why) in [
            ("src/cache/mod.rs", "use ureq::Agent;", "only upstream"),
            ("src/cache/mod.rs", "let x = ::ureq::get(url);", "only upstream"),
            ("src/upstream/mod.rs", "use rustix::fs::flock;", "system calls"),
            ("src/store/mod.rs", "use sha2::Sha256;", "one place"),
            ("src/commands/mod.rs", "use serde_saphyr::from_str;", "configuration files"),
            ("src/http/mod.rs", "let v = std::env::var(\"X\");", "environment"),
            ("src/api/mod.rs", "use std::{fs, io};", "files are store's"),
            ("src/oci/mod.rs", "use std::fs::File;", "files are store's"),
            ("src/cache/mod.rs", "use std::fs::OpenOptions;", "files are store's"),
            ("src/cache/mod.rs", "let f = File::open(path);", "may hold a File"),
            ("src/flight.rs", "use std::{io, net::{TcpStream}};", "sockets"),
            ("src/oci/mod.rs", "let now = std::time::Instant::now();", "time is an argument"),
            ("src/store/refs.rs", "let now = SystemTime::now();", "time is an argument"),
        ] {
            refuses(path, code, why);
        }
    }

    #[test]
    fn exceptions_hold_for_their_file_and_only_while_needed() {
        let source = |path: &str, code: &str| Source {
            path: path.to_owned(),
            text: format!("//! Header.\n{code}\n"),
        };
        let exceptions = [("src/store/refs.rs", "SystemTime::now", "for the test")];
        let now = "let now = SystemTime::now();";
        assert_eq!(check(&[source("src/store/refs.rs", now)], &exceptions, &[]), []);
        let both = [source("src/store/refs.rs", now), source("src/store/usage.rs", now)];
        let findings = check(&both, &exceptions, &[]);
        assert_eq!((findings.len(), findings[0].path.as_str()), (1, "src/store/usage.rs"));
        let idle = check(&[source("src/store/refs.rs", "")], &exceptions, &[]);
        assert!(idle.len() == 1 && idle[0].why.contains("take it off"), "{idle:#?}");
    }

    #[test]
    fn header_is_demanded_in_sources_and_tests() {
        let headless = "a file begins with a //! header";
        for path in ["src/oci/mod.rs", "src/oci/tests.rs", "tests/it/pulls.rs"] {
            let findings = check_one(path, "use std::io;\n//! Late.\n");
            assert!(findings.len() == 1 && findings[0].1.contains(headless), "{findings:#?}");
        }
        accepts("tests/it/pulls.rs", "use std::io;");
    }

    #[test]
    fn forbidden_words_are_found_in_code_only() {
        for code in ["unsafe { f() }", "todo!()", "unimplemented!(\"x\")", "dbg!(x);"] {
            refuses("src/oci/mod.rs", code, "no `");
            refuses("tests/it/pulls.rs", code, "no `");
        }
        accepts("src/oci/mod.rs", "#![deny(unsafe_code)] // unsafe, todo!\nlet todo = \"dbg!()\";");
    }

    #[test]
    fn unwrap_needs_its_reason_nearby() {
        let why = "an unwrap needs its reason";
        refuses("src/oci/mod.rs", "let x = y.unwrap();", why);
        refuses("src/oci/mod.rs", "let x = y.expect(\"is there\");", why);
        refuses_line("src/oci/mod.rs", "/// A contract.\nfn f() { y.unwrap() }", 2, why);
        refuses_line("src/oci/mod.rs", "// Too far.\n\n\ny.unwrap();", 4, why);
        accepts("src/oci/mod.rs", "let x = y.unwrap(); // just checked");
        accepts("src/oci/mod.rs", "// Just checked.\nlet x = y\n    .unwrap();");
        accepts("src/oci/mod.rs", "y.unwrap_or(1); y.expect_err(\"x\"); \"y.unwrap()\";");
        accepts("src/oci/mod.rs", "#[cfg(test)]\nmod tests {\n\n\n fn f() { y.unwrap(); }\n}");
        accepts("src/oci/tests.rs", "let x = y.unwrap();");
        accepts("tests/it/pulls.rs", "let x = y.unwrap();");
    }

    #[test]
    fn empty_names_are_refused() {
        refuses_line("src/store/utils.rs", "", 0, "`utils` does not say");
        refuses_line("tests/it/helpers/mod.rs", "", 0, "`helpers` does not say");
        accepts("src/oci/media_types.rs", "");
    }

    #[test]
    fn long_files_are_refused_unless_listed_while_they_are_long() {
        let source = |code: &str| Source {
            path: "src/oci/mod.rs".to_owned(),
            text: format!("//! Header.\n{code}"),
        };
        let long = "fn f() {}\n".repeat(LONGEST_FILE);
        let listed = [("src/oci/mod.rs", "for the test")];
        let findings = check(&[source(&long)], &[], &[]);
        assert!(findings.len() == 1 && findings[0].why.contains("501 lines"), "{findings:#?}");
        assert_eq!(check(&[source(&long)], &[], &listed), []);
        assert_eq!(check(&[source("")], &[], &listed).len(), 1);
        let tests = format!("#[cfg(test)]\nmod tests {{\n{long}}}\n");
        assert_eq!(check(&[source(&tests)], &[], &[]), []);
    }

    #[test]
    fn statuses_are_decided_in_one_place() {
        for path in ["src/http/edge.rs", "src/api/status.rs", "src/upstream/retry.rs"] {
            accepts(path, "let reply = Reply::new(404);");
        }
        for code in ["Reply::new(404)", "let status = 503;", "Reply::empty(429u16)"] {
            refuses("src/api/blobs.rs", code, "src/api/status.rs");
            refuses("src/commands/serve.rs", code, "src/api/status.rs");
        }
        refuses_line("src/api/blobs.rs", "Reply::new(\n    404,\n)", 2, "src/api/status.rs");
        accepts("src/api/blobs.rs", "Reply::new(200); Duration::from_millis(500); \"status 404\"");
    }

    #[test]
    fn findings_name_file_line_and_reason() {
        let text = finding("src/oci/mod.rs", 7, "so").to_string();
        assert_eq!(text, "src/oci/mod.rs:7: so");
    }
}
