//! House rules for `src/` and `tests/` that neither the compiler nor clippy checks.
//!
//! Modules and their dependencies are those of ARCHITECTURE.md, "Code map"; a change here is a change of the design.
//! Every rule is a pure function over the path and code of a file (read by `support/source.rs`) that returns
//! [`Finding`]s.

use std::fmt;
use std::path::Path;

use crate::support::source::{Code, Source, sources};

/// The modules: their names, the modules that they may use (`*` is everything), and what they must not know.
const MODULES: &[(&str, &str, &str)] = &[
    ("oci", "", "files, network, clocks, HTTP"),
    ("units", "", "what is measured or counted"),
    ("client_address", "", "sockets, HTTP, the shared resource"),
    ("via", "", "what is requested"),
    ("introduction", "oci", "configuration files, HTTP"),
    ("budget", "client_address", "what is counted"),
    ("sync", "", "what is synchronized"),
    ("events", "", "who records events, and how they are sent"),
    ("flight", "sync", "the meaning of digests, store, upstream"),
    ("store", "oci units sync", "that upstreams exist, HTTP, what is pruned and when"),
    ("users", "oci flight certificates client_address", "HTTP, routes, upstreams"),
    (
        "oidc",
        "oci flight certificates client_address upstream units",
        "HTTP requests of clients, routes, files but those with keys, command line",
    ),
    ("certificates", "", "which connections use them"),
    ("upstream", "oci certificates via introduction units", "disk, cache, server"),
    (
        "cache",
        "oci store upstream flight prune metrics client_address via units sync events",
        "sockets to clients, routes, command line, configuration file",
    ),
    ("prune", "oci store", "HTTP to clients"),
    ("bundle", "oci store cache units", "HTTP to clients"),
    (
        "image_sync",
        "oci store cache bundle units events",
        "HTTP, how upstreams are contacted, the configuration file",
    ),
    ("image_references", "oci", "files, registries, command line"),
    ("hello", "oci", "files, how images are served"),
    ("client_config", "oci", "files, Larder's own configuration"),
    ("metrics", "", "what is counted, and why"),
    ("http", "certificates client_address budget units sync", "registries, digests, store"),
    (
        "api",
        "oci cache prune metrics http users oidc client_address client_config budget via introduction units events \
         image_sync",
        "the upstream client, file paths",
    ),
    (
        "config",
        "oci store certificates users oidc hello upstream cache http api prune introduction events image_sync",
        "behaviour: of other modules it knows their Settings",
    ),
    ("cli", "", "behaviour: it is argh structs"),
    ("commands", "*", "protocol details"),
];

/// The folders of `store`. Each uses only those before it.
const STORE: &str = "files locks content names usage gc";

/// The modules that may use a path. `main` is `main.rs` and `lib.rs`.
enum Modules {
    Only(&'static str),
    Not(&'static str),
}
use Modules::{Not, Only};

/// Modules of values and decisions. They have no access to files, network or clock.
const PURE: &str = "oci flight cache api image_references";
const SOCKETS: &str = "sockets out are upstream's, sockets in are http's";
const CLOCK: &str = "time is an argument";

/// Paths that only some modules may use, with the reason.
const RESTRICTED: &[(&str, Modules, &str)] = &[
    (
        "ureq",
        Only("upstream commands"),
        "only upstream talks to registries, and commands to a running Larder",
    ),
    ("rustix", Only("store http commands"), "system calls are for disk, sockets and the process"),
    ("jsonwebtoken", Only("oidc"), "tokens are verified in one place"),
    ("ring", Only("oidc"), "signatures of tokens are verified in one place"),
    ("sha2", Only("oci certificates"), "digests of content are computed in one place"),
    ("serde_saphyr", Only("config"), "configuration files are read in one place"),
    ("granit_parser", Only("image_references"), "documents of others are read in one place"),
    ("std::env", Only("config commands main"), "the environment is read in one place"),
    ("std::fs", Not(PURE), "files are store's"),
    ("File::open", Not(PURE), "files are store's"),
    ("File::create", Not(PURE), "files are store's"),
    ("File::create_new", Not(PURE), "files are store's"),
    ("File::options", Not(PURE), "files are store's"),
    ("std::net::TcpStream", Not(PURE), SOCKETS),
    ("std::net::TcpListener", Not(PURE), SOCKETS),
    ("std::net::UdpSocket", Not(PURE), SOCKETS),
    ("SystemTime::now", Not("oci store"), CLOCK),
    ("Instant::now", Not("oci store"), CLOCK),
];

/// Exceptions: file, path, reason. An exception that is no longer used is an error.
const EXCEPTIONS: &[(&str, &str, &str)] = &[
    ("src/upstream/auth/aws/sigv4.rs", "sha2", "signs requests to Amazon"),
    ("src/upstream/auth/helper.rs", "rustix", "waits for a child process and kills it"),
];

/// The files of `commands` whose log lines are those of a server, not messages of a command to its user.
const SERVER_COMMANDS: &str = "serve reload logging log_writer service";

/// The maximum number of lines of a file, without its test modules.
const LONGEST_FILE: usize = 500;

#[test]
fn source_tree_follows_the_house_rules() {
    let sources = sources(Path::new(env!("CARGO_MANIFEST_DIR")));
    assert!(sources.iter().any(|s| s.path == "src/lib.rs"), "no sources found");
    let mut report: Vec<String> = sources
        .iter()
        .flat_map(|source| check(source, EXCEPTIONS))
        .map(|f| f.to_string())
        .collect();
    for (file, used, _) in EXCEPTIONS {
        let mut source = sources.iter().filter(|source| source.path == *file);
        if source.all(|source| check(source, &[]).is_empty()) {
            report.push(format!("{file} does not use `{used}`; remove the exception"));
        }
    }
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

/// Applies all rules to a file.
fn check(source: &Source, exceptions: &[(&str, &str, &str)]) -> Vec<Finding> {
    let path = source.path.as_str();
    let code = Code::of(&source.text);
    let mut findings = Vec::new();
    findings.extend(header(path, &source.text));
    findings.extend(too_long(path, &code));
    if path.starts_with("src/") && !is_test_file(path) {
        findings.extend(dependencies(path, &code));
        findings.extend(store_order(path, &code));
        findings.extend(restricted(path, &code, exceptions));
        findings.extend(unexplained_unwraps(path, &code));
        findings.extend(values_in_messages(path, &code));
    }
    findings
}

// ---- The rules ----

fn header(path: &str, text: &str) -> Option<Finding> {
    let why = "a file begins with a //! header that says what it is for";
    (!text.starts_with("//!")).then(|| finding(path, 1, why))
}

fn too_long(path: &str, code: &Code) -> Option<Finding> {
    let length = code.lines.len() - code.test_lines;
    (length > LONGEST_FILE)
        .then(|| finding(path, 1, format!("{length} lines; at most {LONGEST_FILE}, tests apart")))
}

fn dependencies(path: &str, code: &Code) -> Vec<Finding> {
    let name = module_of(path);
    if name == "main" {
        return Vec::new(); // `main.rs` and `lib.rs` may use everything.
    }
    let Some((_, may_use, must_not_know)) = MODULES.iter().find(|module| module.0 == name) else {
        let why = format!("`{name}` is not a module of ARCHITECTURE.md, \"Code map\"");
        return vec![finding(path, 1, why)];
    };
    let mut findings = Vec::new();
    for (line, used) in &code.paths {
        let Some(target) = target_of(path, used) else { continue };
        if target == name || *may_use == "*" || contains(may_use, target) {
            continue;
        }
        let why = match MODULES.iter().any(|known| known.0 == target) {
            true => format!(
                "`{name}` must not use `{target}`: it must not know {must_not_know} (it may use: {may_use})"
            ),
            false => format!("`crate::{target}` is not a module: name items by their modules"),
        };
        findings.push(finding(path, *line, why));
    }
    findings
}

/// Checks paths through folders. Methods, and what `store/mod.rs` exports, do not name their folder.
fn store_order(path: &str, code: &Code) -> Vec<Finding> {
    let order =
        |path: &str| STORE.split(' ').position(|f| path.split(['/', ':']).next() == Some(f));
    let Some(own) = path.strip_prefix("src/store/").and_then(order) else { return Vec::new() };
    let to_store = "super::".repeat(depth_of(path) - 1);
    let later = code.paths.iter().filter(|(_, used)| {
        let inside = used.strip_prefix("crate::store::").or(used.strip_prefix(&to_store));
        inside.and_then(order) > Some(own)
    });
    let why = format!("a folder of `store` uses only those before it: {STORE}");
    later.map(|(line, _)| finding(path, *line, &*why)).collect()
}

fn restricted(path: &str, code: &Code, exceptions: &[(&str, &str, &str)]) -> Vec<Finding> {
    let module = module_of(path);
    // These modules may pass open files along, but not open them.
    let passes_files = matches!(module, "cache" | "api");
    let mut findings = Vec::new();
    for (line, used) in &code.paths {
        for (restricted, modules, why) in RESTRICTED.iter().filter(|rule| uses(used, rule.0)) {
            let allowed = match modules {
                Only(modules) => contains(modules, module),
                Not(modules) => !contains(modules, module),
            };
            let excepted =
                exceptions.iter().any(|(file, what, _)| *file == path && what == restricted);
            let passed = passes_files && used == "std::fs::File";
            if !(allowed || excepted || passed) {
                findings.push(finding(
                    path,
                    *line,
                    format!("no `{restricted}` in `{module}`: {why}"),
                ));
            }
        }
    }
    findings
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

fn unexplained_unwraps(path: &str, code: &Code) -> Vec<Finding> {
    let why = "an unwrap needs its reason in a comment, in its line or one of the two above";
    // Doc comments do not count: they are contracts with the caller, not reasons for the reader.
    let is_comment = |line: &&str| line.contains("// ") && !line.trim_start().starts_with("///");
    let explained = |line: usize| code.lines[line.saturating_sub(3)..line].iter().any(is_comment);
    let unexplained = code.unwraps.iter().filter(|line| !explained(**line));
    unexplained.map(|line| finding(path, *line, why)).collect()
}

/// The lines of a server have their values in fields (`docs/log.md`), so that programs find them.
fn values_in_messages(path: &str, code: &Code) -> Vec<Finding> {
    let is_of_server = path.strip_prefix("src/commands/").is_none_or(|file| {
        SERVER_COMMANDS.split(' ').any(|name| file.strip_suffix(".rs") == Some(name))
    });
    let with_values = code.log_messages.iter().filter(|(_, message)| message.contains('{'));
    let why = |message: &str| format!("values belong in fields, not in the message {message}");
    with_values
        .filter(|_| is_of_server)
        .map(|(line, message)| finding(path, *line, why(message)))
        .collect()
}

fn finding(path: &str, line: usize, why: impl Into<String>) -> Finding {
    Finding { path: path.to_owned(), line, why: why.into() }
}

// ---- Paths in the tree ----

fn contains(words: &str, word: &str) -> bool {
    words.split(' ').any(|each| each == word)
}

/// The module of a file below `src/`; `main` for the two files above all modules.
fn module_of(path: &str) -> &str {
    let inside = path.strip_prefix("src/").unwrap_or(path);
    let module = inside.split('/').next().unwrap_or("").trim_end_matches(".rs");
    if module == "lib" { "main" } else { module }
}

fn is_test_file(path: &str) -> bool {
    path.ends_with("/tests.rs")
        || path.ends_with("/fuzzing.rs")
        || path.ends_with("/interleavings.rs")
        || path.split('/').rev().skip(1).any(|folder| folder == "tests")
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
    MODULES.iter().any(|module| module.0 == target).then_some(target)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check_one(path: &str, text: &str) -> Vec<(usize, String)> {
        let source = Source { path: path.to_owned(), text: text.to_owned() };
        check(&source, EXCEPTIONS).into_iter().map(|finding| (finding.line, finding.why)).collect()
    }

    #[track_caller]
    fn accepts(path: &str, code: &str) {
        let findings = check_one(path, &format!("//! Header.\n{code}\n"));
        assert!(findings.is_empty(), "{path}: {code}\n{findings:#?}");
    }

    /// Expects one finding, in this line of the code, with a text that contains `why`.
    #[track_caller]
    fn refuses(path: &str, code: &str, line: usize, why: &str) {
        let findings = check_one(path, &format!("//! Header.\n{code}\n"));
        let [(found, text)] = findings.as_slice() else {
            panic!("one finding was expected in {path}: {code}\n{findings:#?}");
        };
        assert!(*found == line + 1 && text.contains(why), "{path}: {code}\n{findings:#?}");
    }

    #[test]
    fn dependencies_follow_the_code_map() {
        for (path, code) in [
            ("src/store/ingest.rs", "use crate::oci::Digest; use super::layout::Layout;"),
            ("src/cache/mod.rs", "use crate::{flight::Flight, store::{self, Store}};"),
            ("src/commands/serve.rs", "use crate::{api, http, upstream};"),
            ("src/lib.rs", "pub mod oci; pub use crate::http::Server;"),
            ("src/oci/name.rs", "pub(crate) fn x() {}"),
            ("src/flight.rs", "mod inner { use super::Flight; }"),
            (
                "src/oci/mod.rs",
                "/// See [`crate::store`].\nconst A: &str = \"crate::store\"; // crate::store",
            ),
            ("src/oci/mod.rs", "#[cfg(test)]\nmod tests {\n    use crate::store::Store;\n}"),
            ("src/oci/tests/names.rs", "use crate::store::Store;"),
        ] {
            accepts(path, code);
        }
        for (path, code, why) in [
            ("src/store/ingest.rs", "use crate::upstream::Client;", "that upstreams exist"),
            ("src/http/mod.rs", "fn f(d: &crate::oci::Digest) {}", "must not use `oci`"),
            ("src/flight.rs", "use super::store;", "must not use `store`"),
            ("src/http/reply.rs", "use super::super::oci::Digest;", "must not use `oci`"),
            ("src/api/route.rs", "use crate::{oci, store};", "must not use `store`"),
            ("src/oci/mod.rs", "use crate::Error;", "is not a module"),
            ("src/oci/mod.rs", "use crate::*;", "is not a module"),
            ("src/store/content/blobs.rs", "use crate::store::names::TagRecord;", "before it"),
            ("src/store/names/mod.rs", "use super::{content, gc::Pins};", "before it"),
        ] {
            refuses(path, code, 1, why);
        }
        let group = "use crate::{\n    oci::{Digest, Tag},\n    http::Reply,\n};";
        refuses("src/cache/mod.rs", group, 3, "must not use `http`");
        refuses("src/pantry/mod.rs", "", 0, "not a module of ARCHITECTURE.md");
    }

    #[test]
    fn code_after_a_test_item_is_checked() {
        for test in ["mod tests {\n    fn f() {}\n}", "mod tests;", "use crate::http::{A, B};"] {
            let code = format!("#[cfg(test)]\n{test}\nuse crate::store::Store;");
            refuses("src/oci/mod.rs", &code, code.lines().count(), "must not use `store`");
        }
    }

    #[test]
    fn crates_and_system_interfaces_belong_to_their_modules() {
        for (path, code) in [
            ("src/upstream/agent.rs", "use ureq::Agent;"),
            ("src/upstream/auth/helper.rs", "use rustix::process;"),
            ("src/store/mod.rs", "use std::{fs, io}; use rustix::fs::flock;"),
            ("src/main.rs", "let a = std::env::args();"),
            ("src/cache/mod.rs", "use std::fs::File; fn f(now: SystemTime, file: &File) {}"),
            ("src/cache/mod.rs", "let now = SystemTime::now();"),
            ("src/api/mod.rs", "use std::net::SocketAddr;"),
            ("src/oci/mod.rs", "let ureq = 1;"),
        ] {
            accepts(path, code);
        }
        for (path, code, why) in [
            ("src/cache/mod.rs", "let x = ::ureq::get(url);", "only upstream"),
            ("src/upstream/mod.rs", "use rustix::fs::flock;", "system calls"),
            ("src/http/mod.rs", "let v = std::env::var(\"X\");", "environment"),
            ("src/api/mod.rs", "use std::{fs, io};", "files are store's"),
            ("src/oci/mod.rs", "use std::fs::File;", "files are store's"),
            ("src/cache/mod.rs", "let f = File::open(path);", "files are store's"),
            ("src/flight.rs", "use std::{io, net::{TcpStream}};", "sockets"),
            ("src/oci/mod.rs", "let now = std::time::Instant::now();", "time is an argument"),
        ] {
            refuses(path, code, 1, why);
        }
    }

    #[test]
    fn header_is_required_in_sources_and_tests() {
        for path in ["src/oci/mod.rs", "src/oci/tests.rs", "tests/it/pulls.rs"] {
            let findings = check_one(path, "use std::io;\n");
            assert!(findings.len() == 1 && findings[0].1.contains("//! header"), "{findings:#?}");
        }
    }

    #[test]
    fn unwrap_needs_its_reason_nearby() {
        let why = "an unwrap needs its reason";
        refuses("src/oci/mod.rs", "let x = y.unwrap();", 1, why);
        refuses("src/oci/mod.rs", "/// A contract.\nfn f() { y.expect(\"is there\") }", 2, why);
        refuses("src/oci/mod.rs", "// Too far.\n\n\ny.unwrap();", 4, why);
        accepts("src/oci/mod.rs", "let x = y.unwrap(); // just checked");
        accepts("src/oci/mod.rs", "// Just checked.\nlet x = y\n    .unwrap();");
        accepts("src/oci/mod.rs", "y.unwrap_or(1); \"y.unwrap()\";");
        accepts("src/oci/tests.rs", "let x = y.unwrap();");
    }

    #[test]
    fn messages_of_the_log_have_no_values() {
        let why = "values belong in fields";
        for (path, code) in [
            ("src/cache/mod.rs", "log::warn!(\"{name}: failed\");"),
            ("src/cache/mod.rs", "log::warn!(error:%, name = f(\"a\"); \"{name} failed\");"),
            ("src/users.rs", "match x { _ => log::log!(level, \"{}\", text) }"),
            ("src/commands/serve.rs", "log::debug!(name = \"a\"; \"{error}\");"),
        ] {
            refuses(path, code, 1, why);
        }
        for (path, code) in [
            (
                "src/cache/mod.rs",
                "log::warn!(error:%, name = \"{\", of = f(\"{\"); \"it failed\");",
            ),
            ("src/cache/mod.rs", "log::error!(\"it failed\"); format!(\"{name}\");"),
            ("src/commands/load.rs", "log::info!(\"{name} is loaded\");"),
            ("src/oci/tests.rs", "log::info!(\"{name} is loaded\");"),
        ] {
            accepts(path, code);
        }
    }

    #[test]
    fn long_files_are_refused_without_counting_tests() {
        let long = "fn f() {}\n".repeat(LONGEST_FILE);
        refuses("src/oci/mod.rs", &long, 0, "502 lines");
        accepts("src/oci/mod.rs", &format!("#[cfg(test)]\nmod tests {{\n{long}}}"));
    }
}
