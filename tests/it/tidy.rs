//! House rules for `src/` and `tests/` that a program can check.
//!
//! Modules and their dependencies are those of ARCHITECTURE.md, "Code map"; a change here is a change of the design.
//! Every rule is a pure function over the path and text of a file (parsed by `support/source.rs`) that returns
//! [`Finding`]s.

use std::fmt;
use std::path::Path;

use crate::support::source::{Kind, Line, Source, Tests, Token, lines, paths, sources, tokens};

/// A module: the modules that it may use, and those that it must not know. `*` is everything.
struct Module {
    name: &'static str,
    may_use: &'static [&'static str],
    must_not_know: &'static str,
}

const MODULES: &[Module] = &[
    Module { name: "oci", may_use: &[], must_not_know: "files, network, clocks, HTTP" },
    Module { name: "client_address", may_use: &[], must_not_know: "sockets, HTTP, what is shared" },
    Module { name: "via", may_use: &[], must_not_know: "what a request is about" },
    Module { name: "budget", may_use: &["client_address"], must_not_know: "what is counted" },
    Module { name: "flight", may_use: &[], must_not_know: "digests' meaning, store, upstream" },
    Module {
        name: "store",
        may_use: &["oci"],
        must_not_know: "that upstreams exist, HTTP, what is pruned and when",
    },
    Module {
        name: "users",
        may_use: &["oci", "flight", "certificates", "client_address"],
        must_not_know: "HTTP, routes, upstreams",
    },
    Module { name: "certificates", may_use: &[], must_not_know: "which connections use them" },
    Module {
        name: "upstream",
        may_use: &["oci", "certificates", "via"],
        must_not_know: "disk, cache, server",
    },
    Module {
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
    Module { name: "prune", may_use: &["oci", "store"], must_not_know: "HTTP to clients" },
    Module {
        name: "bundle",
        may_use: &["oci", "store", "cache"],
        must_not_know: "HTTP to clients",
    },
    Module { name: "hello", may_use: &["oci"], must_not_know: "files, or how images are served" },
    Module {
        name: "client_config",
        may_use: &["oci"],
        must_not_know: "files, or how Larder itself is configured",
    },
    Module { name: "metrics", may_use: &[], must_not_know: "what is counted, and why" },
    Module {
        name: "http",
        may_use: &["certificates", "client_address", "budget"],
        must_not_know: "registries, digests, store",
    },
    Module {
        name: "api",
        may_use: &[
            "oci",
            "cache",
            "prune",
            "metrics",
            "http",
            "users",
            "client_address",
            "budget",
            "via",
        ],
        must_not_know: "the upstream client, file paths",
    },
    Module {
        name: "config",
        may_use: &[
            "oci",
            "store",
            "certificates",
            "users",
            "hello",
            "upstream",
            "cache",
            "http",
            "api",
            "prune",
        ],
        must_not_know: "behaviour: of other modules it knows their Settings",
    },
    Module { name: "cli", may_use: &[], must_not_know: "behaviour: it is argh structs" },
    Module { name: "commands", may_use: &["*"], must_not_know: "protocol details" },
];

/// Paths that only some modules may use. `main` is `main.rs` and `lib.rs`.
struct Restricted {
    path: &'static str,
    modules: Modules,
    why: &'static str,
}

enum Modules {
    Only(&'static [&'static str]),
    Not(&'static [&'static str]),
}

/// Modules of values and decisions. They have no access to files, network or clock.
const WORLDLESS: Modules = Modules::Not(&["oci", "flight", "cache", "api"]);
const SOCKETS: &str = "sockets out are upstream's, sockets in are http's";
const CLOCKLESS: &str = "time is an argument";

const RESTRICTED: &[Restricted] = &[
    Restricted {
        path: "ureq",
        modules: Modules::Only(&["upstream"]),
        why: "only upstream talks to registries",
    },
    Restricted {
        path: "rustix",
        modules: Modules::Only(&["store", "http", "commands"]),
        why: "system calls are for the modules that touch disk, sockets and the process",
    },
    Restricted {
        path: "sha2",
        modules: Modules::Only(&["oci", "certificates"]),
        why: "digests of content are computed in one place, those of signatures in another",
    },
    Restricted {
        path: "serde_saphyr",
        modules: Modules::Only(&["config"]),
        why: "configuration files are read in one place",
    },
    Restricted {
        path: "std::env",
        modules: Modules::Only(&["config", "commands", "main"]),
        why: "the environment is read in one place, and handed on",
    },
    Restricted { path: "std::fs", modules: WORLDLESS, why: "files are store's" },
    Restricted { path: "std::net::TcpStream", modules: WORLDLESS, why: SOCKETS },
    Restricted { path: "std::net::TcpListener", modules: WORLDLESS, why: SOCKETS },
    Restricted { path: "std::net::UdpSocket", modules: WORLDLESS, why: SOCKETS },
    Restricted {
        path: "SystemTime::now",
        modules: Modules::Not(&["oci", "store"]),
        why: CLOCKLESS,
    },
    Restricted { path: "Instant::now", modules: Modules::Not(&["oci", "store"]), why: CLOCKLESS },
];

/// Exceptions: file, path, reason. An exception that is no longer used is an error.
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

/// The maximum number of lines of a file, without its test modules.
const LONGEST_FILE: usize = 500;

/// Files that may be longer, each with the reason.
const LONG_FILES: &[(&str, &str)] = &[];

/// File names that do not describe their content.
const EMPTY_NAMES: &[&str] = &["utils", "util", "helpers", "common", "types", "manager"];

#[test]
fn source_tree_follows_the_house_rules() {
    let sources = sources(Path::new(env!("CARGO_MANIFEST_DIR")));
    assert!(sources.iter().any(|s| s.path == "src/lib.rs"), "no sources found");
    let findings = check(&sources, EXCEPTIONS, LONG_FILES);
    let report: Vec<String> = findings.iter().map(Finding::to_string).collect();
    assert!(report.is_empty(), "violations of the house rules:\n{}\n", report.join("\n"));
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

/// Applies all rules to all files.
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
            findings.extend(unknown_module(path));
            findings.extend(dependencies(path, &paths));
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

fn unknown_module(path: &str) -> Option<Finding> {
    let module = module_of(path);
    let known = module == "main" || MODULES.iter().any(|known| known.name == module);
    (!known).then(|| {
        finding(path, 1, format!("`{module}` is not a module of ARCHITECTURE.md, \"Code map\""))
    })
}

fn dependencies(path: &str, paths: &[(usize, String)]) -> Vec<Finding> {
    // An unknown module is reported separately. The files above all modules may use everything.
    let Some(module) = MODULES.iter().find(|module| module.name == module_of(path)) else {
        return Vec::new();
    };
    let mut findings = Vec::new();
    for (line, used) in paths {
        let Some(target) = target_of(path, used) else { continue };
        if target == module.name || module.may_use.contains(&target) || module.may_use == ["*"] {
            continue;
        }
        let why = match MODULES.iter().any(|known| known.name == target) {
            true => format!(
                "`{}` must not use `{target}`: it must not know {} (it may use: {})",
                module.name,
                module.must_not_know,
                if module.may_use.is_empty() {
                    "nothing".to_owned()
                } else {
                    module.may_use.join(", ")
                },
            ),
            false => format!("`crate::{target}` is not a module: name items by their modules"),
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
    let module = module_of(path);
    let mut findings = Vec::new();
    for (line, used) in paths {
        for rule in RESTRICTED.iter().filter(|rule| uses(used, rule.path)) {
            let allowed = match rule.modules {
                Modules::Only(modules) => modules.contains(&module),
                Modules::Not(modules) => !modules.contains(&module),
            };
            let excepted = exceptions
                .iter()
                .any(|(file, excepted, _)| *file == path && *excepted == rule.path);
            if !allowed && !excepted && !is_file_as_a_type(module, used) {
                let why = format!("no `{}` in `{module}`: {}", rule.path, rule.why);
                findings.push(finding(path, *line, why));
            }
        }
        let opens = ["open", "create", "create_new", "options"];
        if matches!(module, "cache" | "api")
            && used.rsplit_once("File::").is_some_and(|(_, call)| opens.contains(&call))
        {
            let why =
                format!("`{module}` may hold a File, but not `{used}` one: files are store's");
            findings.push(finding(path, *line, why));
        }
    }
    findings
}

/// These modules may pass open files along, but not open them.
fn is_file_as_a_type(module: &str, used: &str) -> bool {
    used == "std::fs::File" && matches!(module, "cache" | "api")
}

/// Whether the path `used` equals or is below `restricted`. A restricted `Type::function` is found after any prefix,
/// because types are imported.
fn uses(used: &str, restricted: &str) -> bool {
    let suffix = format!("::{restricted}");
    let imported = restricted.starts_with(char::is_uppercase) && used.ends_with(&suffix);
    // A bare `ureq` is a variable; the crate is always followed by a path.
    let is_same = used == restricted && restricted.contains("::");
    is_same || imported || used.starts_with(&format!("{restricted}::"))
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

/// Finds 4xx and 5xx shortly after a word for a response. Upstream is exempt, since it reads statuses that others chose.
fn scattered_statuses(path: &str, lines: &[Line]) -> Vec<Finding> {
    if matches!(module_of(path), "http" | "upstream") || path.starts_with("src/api/status") {
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
    // `Reply::new(404`, `status: 503`, `status == 429`: at most four tokens back.
    (0..tokens.len())
        .filter(|at| is_status(&tokens[*at]))
        .filter(|at| tokens[at.saturating_sub(4)..*at].iter().any(replies))
        .map(|at| {
            let why = "which status answers what is decided in src/api/status.rs";
            finding(path, tokens[at].line, why)
        })
        .collect()
}

/// Exceptions that are no longer needed, so that their entries are removed.
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

/// The module of a file below `src/`; `main` for the two files above all modules.
fn module_of(path: &str) -> &str {
    let inside = path.strip_prefix("src/").unwrap_or(path);
    let module = inside.split('/').next().unwrap_or("").trim_end_matches(".rs");
    if module == "lib" { "main" } else { module }
}

fn is_test_file(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.split('/').rev().skip(1).any(|folder| folder == "tests")
}

/// The number of `super` that lead from the module of a file to the crate root.
fn depth_of(path: &str) -> usize {
    let parts = path.split('/').count() - 1;
    if path.ends_with("/mod.rs") { parts - 1 } else { parts }
}

/// The top-level module that a path in the code leads to, if any.
fn target_of<'a>(path: &str, used: &'a str) -> Option<&'a str> {
    if let Some(rest) = used.strip_prefix("crate::") {
        return rest.split("::").next();
    }
    let used = used.strip_prefix("self::").unwrap_or(used);
    let supers = used.split("::").take_while(|part| *part == "super").count();
    let target = used.split("::").nth(supers).filter(|_| supers >= depth_of(path).max(1))?;
    // In an inline module, `super` leads less far than it seems; only known modules count.
    MODULES.iter().any(|module| module.name == target).then_some(target)
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

    /// Expects one finding, in the first line of the code, with a text that contains `why`.
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
    fn allowed_dependencies_are_accepted() {
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
    fn forbidden_dependencies_are_refused_with_a_reason() {
        refuses("src/store/ingest.rs", "use crate::upstream::Client;", "that upstreams exist");
        refuses("src/oci/mod.rs", "use crate::store::Store;", "it may use: nothing");
        refuses("src/http/mod.rs", "fn f(d: &crate::oci::Digest) {}", "must not use `oci`");
        refuses("src/flight.rs", "use super::store;", "must not use `store`");
        refuses("src/http/reply.rs", "use super::super::oci::Digest;", "must not use `oci`");
        refuses("src/prune.rs", "use crate::cache;", "must not use `cache`");
        refuses("src/config/mod.rs", "use crate::commands::serve;", "must not use `commands`");
    }

    #[test]
    fn dependencies_in_use_groups_are_found_in_their_lines() {
        let group = "use crate::{\n    oci::{Digest, Tag},\n    http::Reply,\n};";
        refuses_line("src/cache/mod.rs", group, 3, "must not use `http`");
        refuses("src/api/route.rs", "use crate::{oci, store};", "must not use `store`");
    }

    #[test]
    fn dependencies_in_comments_strings_and_tests_are_ignored() {
        accepts("src/oci/mod.rs", "// crate::store\n/* crate::store\n crate::store */");
        accepts("src/oci/mod.rs", "/// See [`crate::store`].\nfn f() {}");
        accepts("src/oci/mod.rs", r##"const A: &str = "\"crate::store"; const B: char = '"';"##);
        accepts("src/oci/mod.rs", "const A: &str = r#\"\" crate::store\n crate::store\"#;");
        accepts("src/oci/mod.rs", "#[cfg(test)]\nmod tests {\n    use crate::store::Store;\n}");
        accepts("src/oci/tests.rs", "use crate::store::Store;");
        accepts("src/oci/tests/names.rs", "use crate::store::Store;");
    }

    #[test]
    fn code_after_a_test_item_is_checked() {
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
    fn names_outside_the_code_map_are_refused() {
        refuses_line("src/pantry/mod.rs", "", 0, "not a module of ARCHITECTURE.md");
        refuses_line("src/misc.rs", "", 0, "not a module of ARCHITECTURE.md");
        refuses("src/oci/mod.rs", "use crate::Error;", "is not a module");
        refuses("src/oci/mod.rs", "use crate::*;", "is not a module");
    }

    #[test]
    fn crates_and_system_interfaces_belong_to_their_modules() {
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
    fn exceptions_apply_to_their_file_only_while_needed() {
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
    fn header_is_required_in_sources_and_tests() {
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
    fn vague_file_names_are_refused() {
        refuses_line("src/store/utils.rs", "", 0, "`utils` does not say");
        refuses_line("tests/it/helpers/mod.rs", "", 0, "`helpers` does not say");
        accepts("src/oci/media_types.rs", "");
    }

    #[test]
    fn long_files_are_refused_unless_listed() {
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
