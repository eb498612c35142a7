//! The actors of a storm: they do what the schedule says, and check what can be checked at once.

use std::collections::HashSet;
use std::fs;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use crate::accounts::Samples;
use crate::clients::pull_guarded;
use crate::context::{Guarded, Soak};
use crate::random::Random;
use crate::report::lock;
use crate::resources::left_by;
use crate::schedule::{Actor, Event};
use crate::server::{Stop, Variant};
use crate::world::{Blob, Image, PINNED, REPOSITORIES, TAGS, make};

/// How many pinned images there are at most: they use space that the others need.
const GUARDED_MAX: usize = 8;
/// Longer than any command takes on a small cache.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(120);
/// How long an invalid configuration stays.
const RELOAD: Duration = Duration::from_millis(400);
/// How long a server may take to apply a configuration after SIGHUP, on a busy machine.
const RELOAD_MAX: Duration = Duration::from_secs(10);
/// Configurations that must be refused.
const INVALID: [&str; 4] =
    ["", "registries: [\n", "cacheSize: 60MB\nno-such-key: 1\n", "tagTtl: soon\n"];

/// Does what the schedule says, until the end of the storm.
pub fn act(soak: &Soak, round: usize, actor: Actor, events: &[(Duration, Event)]) {
    let mut random = Random::new(soak.seed, &format!("act {round} {actor:?}"));
    for (wait, event) in events {
        soak.rest(*wait);
        if soak.is_over() {
            return;
        }
        soak.tally.add(&format!("event {}", name(event)), 1);
        let _command = (actor == Actor::Operator).then(|| soak.commands.read());
        perform(soak, event, &mut random);
    }
}

fn name(event: &Event) -> String {
    let text = format!("{event:?}");
    let end = text.find(['(', ' ']).unwrap_or(text.len());
    text[..end].to_owned()
}

fn perform(soak: &Soak, event: &Event, random: &mut Random) {
    match event {
        Event::Push => push(soak, random),
        Event::Retag => retag(soak, random),
        Event::DeleteTag => soak.world.retag(repository(random), tag(random), None),
        Event::FaultRate(percent) => soak.faults.set_percent(*percent),
        Event::Outage(outage, length) => soak.faults.begin_outage(*outage, *length),
        Event::Reload(variant) => reload_valid(soak, variant),
        Event::ReloadInvalid(number) => reload_invalid(soak, INVALID[*number]),
        Event::Stop(stop) => restart(soak, *stop),
        Event::PruneCommand => prune(soak, random),
        Event::PruneApi => {
            let pattern = format!("{}/{}*", soak.server.site.registry, repository(random));
            manage(soak, "POST", &format!("/api/v1/prune?unusedFor=15m&pattern={pattern}"));
        }
        Event::Pin(way) => pin(soak, *way, random),
        Event::Unpin => unpin(soak, random),
        Event::List => list(soak),
        Event::Verify => verify(soak),
        Event::ExportImport => export_import(soak, random),
        Event::Load => {
            let image = format!("hub/{}:{}", repository(random), tag(random));
            run(soak, &["load", "--quiet", "--attempts", "1", &image], &[0, 1]);
        }
        Event::Prefetch => {
            let image =
                format!("{}/{}:{}", soak.server.site.registry, repository(random), tag(random));
            manage(soak, "POST", &format!("/api/v1/prefetch?image={image}"));
        }
        Event::CancelDownloads => cancel(soak),
        Event::ReadApi => read_api(soak),
        Event::KilledCommand(which) => killed(soak, *which, random),
    }
}

fn repository(random: &mut Random) -> &'static str {
    REPOSITORIES[random.below(REPOSITORIES.len())]
}

fn tag(random: &mut Random) -> &'static str {
    TAGS[random.below(TAGS.len())]
}

/// Adds an image that shares layers with an earlier one of its repository.
pub fn push(soak: &Soak, random: &mut Random) {
    let repository = repository(random);
    let former = soak.world.images(repository);
    let shared: Vec<Blob> = former.iter().flat_map(|image| image.blobs.clone()).collect();
    let image = soak.world.push(make(repository, &shared, random), tag(random));
    if random.percent(15) {
        soak.world.sign(&image, random);
    }
    soak.tally.add("pushes", 1);
}

/// Points a tag at an image that the registry has.
pub fn retag(soak: &Soak, random: &mut Random) {
    let repository = repository(random);
    let images = soak.world.images(repository);
    if let Some(image) = random.pick(&images) {
        soak.world.retag(repository, tag(random), Some(image.top.digest.clone()));
        soak.tally.add("retags", 1);
    }
}

fn write_config(soak: &Soak, text: &str) {
    if let Err(error) = fs::write(soak.server.site.config(), text) {
        soak.finding("test", &format!("cannot write the configuration: {error}"), "");
    }
}

fn reload(soak: &Soak, text: &str) {
    write_config(soak, text);
    soak.server.hang_up();
    soak.tally.add("reloads", 1);
}

/// The new `cacheSize` must be in effect soon.
fn reload_valid(soak: &Soak, variant: &Variant) {
    let moment = soak.server.moment();
    reload(soak, &soak.server.site.text(variant));
    let (began, expected) = (Instant::now(), variant.cache_megabytes as f64 * 1e6);
    while cache_size(soak) != Some(expected) {
        if began.elapsed() > RELOAD_MAX && soak.server.has_run_since(moment) {
            let text =
                format!("cacheSize is {:?} instead of {expected} after SIGHUP", cache_size(soak));
            return soak.finding("reload", &text, "");
        }
        thread::sleep(Duration::from_millis(50));
    }
}

fn cache_size(soak: &Soak) -> Option<f64> {
    Samples::of(&soak.server)?.get("larder_cache_size_limit_bytes")
}

/// The server must keep its configuration. The file becomes valid again, since a restart needs it.
fn reload_invalid(soak: &Soak, text: &str) {
    let valid = fs::read_to_string(soak.server.site.config()).unwrap_or_default();
    let (moment, before) = (soak.server.moment(), cache_size(soak));
    reload(soak, text);
    thread::sleep(RELOAD);
    let after = cache_size(soak);
    if after != before && soak.server.has_run_since(moment) {
        let text =
            format!("an invalid configuration changed cacheSize from {before:?} to {after:?}");
        soak.finding("reload", &text, "");
    }
    reload(soak, &valid);
}

/// Stops the server, makes its cache older, verifies it, and starts it again.
pub fn restart(soak: &Soak, stop: Stop) {
    let (status, took) = soak.server.stop(stop);
    match (stop, status) {
        (Stop::Terminate, Some(status)) if status.success() => soak.tally.add("terminations", 1),
        (Stop::Terminate, status) => {
            soak.finding("stop", &format!("SIGTERM: {status:?} after {took:?}"), "");
        }
        (Stop::Kill, _) => soak.tally.add("kills", 1),
    }
    age(soak);
    verify(soak);
    start(soak);
}

/// Makes the cache older, while no process uses it: a sweep relies on the times that a commit has set.
fn age(soak: &Soak) {
    let _alone = soak.commands.write();
    if let Err(error) = soak.server.age_cache() {
        soak.finding("test", &format!("cannot change the times of files: {error}"), "");
    }
}

/// Starts the server. Returns whether it is ready.
pub fn start(soak: &Soak) -> bool {
    let started = soak.server.start();
    match &started {
        Ok(took) => soak.tally.raise("slowest start in ms", took.as_millis() as u64),
        Err(error) => soak.finding("start", error, ""),
    }
    started.is_ok()
}

/// Runs a command of Larder. Its status must be one of `statuses`.
fn run(soak: &Soak, arguments: &[&str], statuses: &[i32]) -> Option<Output> {
    let mut command = soak.server.site.command(arguments);
    let began = Instant::now();
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let output = child.and_then(std::process::Child::wait_with_output);
    soak.tally.add(&format!("command {}", arguments[0]), 1);
    let output = match output {
        Ok(output) => output,
        Err(error) => {
            soak.finding("test", &format!("cannot run {arguments:?}: {error}"), "");
            return None;
        }
    };
    let printed = String::from_utf8_lossy(&output.stderr).into_owned();
    let is_expected = output.status.code().is_some_and(|code| statuses.contains(&code));
    if !is_expected || printed.contains("panicked") || began.elapsed() > COMMAND_TIMEOUT {
        let text = format!("{arguments:?}: {} after {:?}", output.status, began.elapsed());
        soak.finding("command", &text, &printed);
    }
    Some(output)
}

fn prune(soak: &Soak, random: &mut Random) {
    let pattern = format!("hub/{}", repository(random));
    let reference = format!("hub/{}:{}", repository(random), tag(random));
    match random.below(3) {
        0 => run(soak, &["prune", "--unused-for", "20m", &pattern], &[0, 1]),
        1 => run(soak, &["prune", "--json", &reference], &[0, 1]),
        // Everything, except what is pinned.
        _ => run(soak, &["prune", "*"], &[0, 1]),
    };
}

fn manage(soak: &Soak, method: &str, target: &str) -> Option<serde_json::Value> {
    let moment = soak.server.moment();
    match soak.server.manage(method, target) {
        Ok(reply) if matches!(reply.status, 200 | 202 | 404 | 409 | 503) => {
            soak.tally.add("management requests", 1);
            serde_json::from_slice(&reply.body).ok()
        }
        Ok(reply) => {
            let body = String::from_utf8_lossy(&reply.body).into_owned();
            soak.finding("management", &format!("{method} {target}: {}", reply.status), &body);
            None
        }
        Err(error) if soak.server.has_run_since(moment) => {
            soak.finding("management", &format!("{method} {target}: {error}"), "");
            None
        }
        Err(_) => None,
    }
}

/// Pushes an image, pulls it, pins it by command, by the API or by an import, and lets the registry forget it.
pub fn pin(soak: &Soak, way: usize, random: &mut Random) {
    if lock(&soak.guarded).len() >= GUARDED_MAX {
        return unpin(soak, random);
    }
    let tag = match way {
        2 => format!("imported{}", random.next()),
        _ => format!("kept{}", random.next()),
    };
    let image = soak.world.push(make(PINNED, &[], random), &tag);
    let guarded = Arc::new(Guarded { image, tag });
    let reference = format!("hub/{PINNED}:{}", guarded.tag);
    let load = ["load", "--quiet", "--platform", "all", &reference];
    let is_loaded = run(soak, &load, &[0, 1]).is_some_and(|output| output.status.success());
    let is_pinned = is_loaded
        && match way {
            0 => run(soak, &["pin", &reference], &[0]).is_some(),
            1 => {
                let pattern = format!("{}/{PINNED}:{}", soak.server.site.registry, guarded.tag);
                manage(soak, "POST", &format!("/api/v1/pins?pattern={pattern}")).is_some()
            }
            _ => reimport(soak, &guarded.tag, &reference),
        };
    // It may have been removed before it was pinned.
    if is_pinned && run(soak, &load, &[0, 1]).is_some_and(|output| output.status.success()) {
        soak.world.forget(&guarded.image);
        lock(&soak.guarded).push(guarded);
        soak.tally.add("pins", 1);
    } else {
        soak.world.forget(&guarded.image);
        soak.tally.add("pins given up", 1);
    }
}

/// Exports an image, and imports it pinned, under the same name.
fn reimport(soak: &Soak, tag: &str, reference: &str) -> bool {
    let path = soak.server.site.directory.join("work").join(format!("{tag}.tar"));
    let name = path.display().to_string();
    let exported = run(soak, &["export", reference, "--output", &name], &[0, 1]);
    let is_imported = exported.is_some_and(|output| output.status.success())
        && run(soak, &["import", &name, "--pin"], &[0]).is_some();
    let _ = fs::remove_file(path);
    is_imported
}

fn unpin(soak: &Soak, random: &mut Random) {
    let guarded = {
        let mut all = lock(&soak.guarded);
        // The first ones stay until the end of the run.
        match all.len() {
            0..=3 => return,
            length => all.remove(random.between(3, length - 1)),
        }
    };
    // A pull of it may be running and must still succeed.
    soak.rest(Duration::from_secs(3));
    let image = format!("{}/{PINNED}:{}", soak.server.site.registry, guarded.tag);
    run(soak, &["unpin", &image], &[0, 1]);
    soak.tally.add("unpins", 1);
}

/// `larder list` must be valid JSON and know only images that existed.
fn list(soak: &Soak) {
    let Some(output) = run(soak, &["list", "--json"], &[0]) else { return };
    let Ok(json) = serde_json::from_slice::<serde_json::Value>(&output.stdout) else {
        let printed = String::from_utf8_lossy(&output.stdout).into_owned();
        return soak.finding("command", "larder list --json does not print JSON", &printed);
    };
    let prefix = format!("{}/", soak.server.site.registry);
    for image in json.as_array().into_iter().flatten() {
        let (name, digest) =
            (image["image"].as_str().unwrap_or_default(), image["digest"].as_str());
        let Some((repository, tag)) =
            name.strip_prefix(&prefix).and_then(|rest| rest.rsplit_once(':'))
        else {
            soak.finding("command", &format!("larder list shows {name}"), "");
            continue;
        };
        if repository.contains('@') {
            continue;
        }
        let values = soak.world.values(repository, tag, soak.began, Instant::now());
        if !values.iter().flatten().any(|value| Some(value.as_str()) == digest) {
            soak.finding("command", &format!("larder list: {name} was never {digest:?}"), "");
        }
    }
}

/// Images may be incomplete, but no blob may be damaged.
pub fn verify(soak: &Soak) {
    let Some(output) = run(soak, &["verify"], &[0, 1]) else { return };
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    if !printed.contains("; 0 damaged blobs") || printed.contains("cannot be read") {
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        soak.finding("damage", "larder verify found damage", &(printed + &errors));
    }
    soak.tally.add("verifications", 1);
}

/// Exports everything that is complete, imports it into an empty cache, and verifies that.
fn export_import(soak: &Soak, random: &mut Random) {
    let work = soak.server.site.directory.join("work");
    let (bundle, cache) =
        (work.join(format!("{}.tar", random.next())), work.join(format!("cache{}", random.next())));
    let name = bundle.display().to_string();
    let pattern = match random.below(3) {
        0 => format!("{}/*", soak.server.site.registry),
        _ => format!("{}/{}:*", soak.server.site.registry, repository(random)),
    };
    let exported = run(soak, &["export", &pattern, "--partial", "--output", &name], &[0, 1]);
    if exported.is_some_and(|output| output.status.success()) {
        let larder = |arguments: &[&str]| {
            Command::new(&soak.server.site.larder)
                .arg("--image-path")
                .arg(&cache)
                .args(arguments)
                .output()
        };
        let imported =
            larder(&["import", &name]).and_then(|imported| Ok((imported, larder(&["verify"])?)));
        match imported {
            Ok((_, verified))
                if String::from_utf8_lossy(&verified.stdout).contains("; 0 damaged blobs") =>
            {
                soak.tally.add("bundles imported", 1);
            }
            Ok((imported, verified)) => {
                let printed = [imported.stdout, imported.stderr, verified.stdout, verified.stderr];
                let printed =
                    printed.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).join("\n");
                soak.finding("bundle", "an imported bundle is damaged", &printed);
            }
            Err(error) => soak.finding("test", &format!("cannot import: {error}"), ""),
        }
    }
    let _ = fs::remove_file(bundle);
    let _ = fs::remove_dir_all(cache);
}

fn cancel(soak: &Soak) {
    let Some(flights) = manage(soak, "GET", "/api/v1/flights") else { return };
    let running = flights["flights"].as_array().into_iter().flatten();
    let digests: HashSet<String> =
        running.filter_map(|flight| Some(flight["digest"].as_str()?.to_owned())).collect();
    for digest in digests.iter().take(2) {
        let registry = soak.server.site.registry;
        manage(soak, "DELETE", &format!("/api/v1/flights?upstream={registry}&digest={digest}"));
    }
}

fn read_api(soak: &Soak) {
    for target in [
        "status",
        "history",
        "images?limit=20",
        "repositories",
        "flights",
        "blobs?limit=20",
        "pins",
    ] {
        manage(soak, "GET", &format!("/api/v1/{target}"));
    }
}

/// Kills a command while it runs.
fn killed(soak: &Soak, which: usize, random: &mut Random) {
    let bundle = soak.server.site.directory.join("work").join("killed.tar");
    let name = bundle.display().to_string();
    let arguments: &[&str] = match which {
        0 => &["export", "*", "--partial", "--output", &name],
        1 => &["prune", "*"],
        2 => &["verify"],
        _ => &["load", "--quiet", "hub/team/app0:*"],
    };
    let mut command = soak.server.site.command(arguments);
    let Ok(mut child) = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn() else { return };
    thread::sleep(Duration::from_millis(random.between(1, 150) as u64));
    let _ = child.kill();
    let _ = child.wait();
    lock(&soak.left_by_commands).extend(left_by(child.id(), &soak.server.site.cache()));
    soak.tally.add("commands killed", 1);
    for left in [bundle.clone(), bundle.with_extension("tar.part")] {
        let _ = fs::remove_file(left);
    }
}

/// Pulls every pinned image once.
pub fn check_guarded(soak: &Soak) {
    let all: Vec<Arc<Guarded>> = lock(&soak.guarded).clone();
    let mut random = Random::new(soak.seed, "check");
    all.iter().for_each(|guarded| pull_guarded(soak, guarded, &mut random));
}

/// The first images of a run, so that clients have something to pull.
pub fn populate(soak: &Soak) {
    let mut random = Random::new(soak.seed, "populate");
    for repository in REPOSITORIES {
        for tag in TAGS {
            let image: Image = make(repository, &[], &mut random);
            soak.world.push(image, tag);
        }
    }
}
