//! Runs a scenario with each of its faults.

use std::fmt::Write as _;
use std::net::SocketAddr;
use std::os::unix::process::ExitStatusExt;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;

use super::plan::{Armed, Plan, Target};
use crate::site::{Site, incomplete, pull, wrong_blobs};
use crate::support::PATIENCE;
use crate::support::site::NamedImage;
use crate::tracer::Program;

/// Runs per scenario without `LARDER_FAULTS`.
const RUNS: usize = 60;
/// How often a pull after the fault may fail before that counts: Larder contacts a registry, and checks a directory that
/// refused writes, again some time later.
const ATTEMPTS: usize = 150;
/// How often a fault is tried until it happens.
const ATTEMPTS_TO_HIT: usize = 3;
/// How long a client waits for a server without descriptors.
const NO_DESCRIPTORS: Duration = Duration::from_millis(500);
/// The exit code of a program that panics.
const PANICKED: i32 = 101;

/// What runs during the fault.
pub enum Action {
    /// A server, and this number of clients that pull an image at the same time.
    Serve { clients: usize, image: Box<NamedImage> },
    /// A server that starts.
    Start,
    /// A command that has done its work if it succeeds.
    Command(Vec<String>),
}

/// See the module documentation.
pub struct Scenario {
    pub name: &'static str,
    /// The cache before the fault.
    pub site: Site,
    pub action: Action,
    /// Images that are complete before the fault, and stay.
    pub kept: Vec<NamedImage>,
    /// Images that are complete after the fault, when the action has succeeded.
    pub complete: Vec<NamedImage>,
    /// Images that can be pulled after the fault. It may take longer until they are stored.
    pub pulled: Vec<NamedImage>,
    /// Whether it has worked: additional checks of the cache, after the action has succeeded.
    pub check: fn(&Site) -> Vec<String>,
}

/// Runs a scenario with its faults and panics with all that they refute.
pub fn survives(scenario: &Scenario) {
    let began = Instant::now();
    let (calls, _, problems) = run(scenario, None);
    assert!(problems.is_empty(), "{}, without a fault: {problems:#?}", scenario.name);
    let all: Vec<Target> = calls
        .iter()
        .flat_map(|(site, spared)| {
            let failures = site.failures().into_iter();
            failures.map(|failure| Target { site: site.clone(), spared: *spared, failure })
        })
        .collect();
    let chosen = choose(&all);
    let (mut hits, mut failed) = (0, Vec::new());
    for target in &chosen {
        if std::env::var("LARDER_FAULT").is_ok() {
            println!("{}: {target}", scenario.name);
        }
        let (mut hit, mut problems) = (0, Vec::new());
        // Threads may interleave differently from the run without a fault, and then the call does not occur.
        for _ in 0..ATTEMPTS_TO_HIT {
            if hit == 0 && problems.is_empty() {
                (_, hit, problems) = run(scenario, Some(target.clone()));
            }
        }
        hits += usize::from(hit > 0);
        if !problems.is_empty() {
            failed.push(format!("{target}: {problems:#?}"));
            println!("{}: {target}: {problems:#?}", scenario.name);
        }
    }
    println!(
        "{}: {} calls, {} faults, {} runs, {hits} of them with a fault, {} problems, {:.0} s",
        scenario.name,
        calls.len(),
        all.len(),
        chosen.len(),
        failed.len(),
        began.elapsed().as_secs_f64(),
    );
    assert!(failed.is_empty(), "{}:\n{}", scenario.name, failed.join("\n"));
    assert!(hits * 2 > chosen.len(), "{}: {hits} faults in {} runs", scenario.name, chosen.len());
}

fn choose(all: &[Target]) -> Vec<Target> {
    if let Ok(words) = std::env::var("LARDER_FAULT") {
        return all.iter().filter(|each| each.to_string().contains(&words)).cloned().collect();
    }
    let wanted = match std::env::var("LARDER_FAULTS").ok().as_deref() {
        Some("all") => all.len(),
        Some(number) => number.parse().expect("LARDER_FAULTS is a number, or all"),
        None => RUNS,
    };
    let wanted = wanted.min(all.len());
    (0..wanted).map(|at| all[at * all.len() / wanted].clone()).collect()
}

type Seen = Vec<(super::plan::Site, usize)>;

/// One run. Returns the calls, the number of failed calls, and what was wrong.
fn run(scenario: &Scenario, target: Option<Target>) -> (Seen, usize, Vec<String>) {
    let site = scenario.site.copy();
    let armed = match scenario.action {
        Action::Serve { .. } => Armed::No,
        Action::Start | Action::Command(_) => Armed::AtTheCache,
    };
    let plan = Arc::new(Mutex::new(Plan::new(&site.root(), armed, target)));
    let mut problems = match &scenario.action {
        Action::Serve { clients, image } => serve(scenario, &site, &plan, *clients, Some(image)),
        Action::Start => serve(scenario, &site, &plan, 0, None),
        Action::Command(words) => command(scenario, &site, &plan, words),
    };
    for image in scenario.kept.iter().chain(&scenario.complete) {
        problems.extend(incomplete(&site.root(), image));
    }
    problems.extend(wrong_blobs(&site.root()));
    problems.extend((scenario.check)(&site));
    let (code, text) = site.run(&["verify"]);
    let is_damaged = !text.contains("; 0 damaged blobs");
    if is_damaged || (code != Some(0) && scenario.pulled.is_empty()) {
        problems.push(format!("larder verify: {text}"));
    }
    let plan = plan.lock().expect("no panic under the lock");
    (plan.seen.clone(), plan.hits, problems)
}

/// A server, with a fault while it starts or while clients pull `image`.
fn serve(
    scenario: &Scenario,
    site: &Site,
    plan: &Arc<Mutex<Plan>>,
    clients: usize,
    image: Option<&NamedImage>,
) -> Vec<String> {
    let lock = || plan.lock().expect("no panic under the lock");
    let mut problems = Vec::new();
    let (mut program, mut address) = site.serve(plan);
    if let (Some(image), Some(address)) = (image, address) {
        // Without descriptors nothing is accepted, and clients wait until the fault is over.
        let patience = if lock().lacks_descriptors() { NO_DESCRIPTORS } else { PATIENCE };
        lock().arm();
        thread::scope(|scope| {
            let clients: Vec<_> =
                (0..clients).map(|_| scope.spawn(|| pull(address, image, patience).0)).collect();
            let wrong =
                clients.into_iter().map(|each| each.join().expect("a client does not panic"));
            problems.extend(wrong.flatten());
        });
    }
    lock().disarm();
    if address.is_none() && image.is_none() {
        // It may refuse to start.
        problems.extend(ended(program, Signal::SIGTERM, false));
        (program, address) = site.serve(plan);
    }
    let Some(address) = address.filter(|_| program.is_running()) else {
        problems.push(format!("the server has ended: {}", program.log()));
        return problems;
    };
    for image in &scenario.complete {
        problems.extend(pull_again(address, image, |image| incomplete(&site.root(), image)));
    }
    for image in &scenario.pulled {
        problems.extend(pull_again(address, image, |_| Vec::new()));
    }
    if !problems.is_empty() {
        problems.push(program.log());
    }
    problems.extend(ended(program, Signal::SIGTERM, true));
    problems
}

/// Pulls an image after the fault, until it has been received and `is_missing` finds nothing.
fn pull_again(
    address: SocketAddr,
    image: &NamedImage,
    is_missing: impl Fn(&NamedImage) -> Vec<String>,
) -> Vec<String> {
    let mut last = Vec::new();
    for _ in 0..ATTEMPTS {
        let (wrong, mut missing) = pull(address, image, PATIENCE);
        missing.extend(is_missing(image));
        if missing.is_empty() || !wrong.is_empty() {
            return wrong;
        }
        last = missing;
        // The time between two attempts of a container runtime, shortened.
        thread::sleep(PATIENCE / 100);
    }
    last.insert(0, "after the fault, a pull does not succeed".to_owned());
    last
}

/// Stops a program, and checks how it has ended.
fn ended(program: Program, signal: Signal, must_succeed: bool) -> Vec<String> {
    let (status, log) = program.stop(signal);
    let mut problems = Vec::new();
    if log.contains("panicked at") || status.code() == Some(PANICKED) {
        problems.push(format!("PANIC: {log}"));
    }
    if status.signal().is_some() || (must_succeed && !status.success()) {
        problems.push(format!("{status}: {log}"));
    }
    problems
}

/// A command, with a fault; and again without one, if it fails.
fn command(
    scenario: &Scenario,
    site: &Site,
    plan: &Arc<Mutex<Plan>>,
    words: &[String],
) -> Vec<String> {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let program = site.start(&words, plan);
    let (status, log) = program.wait();
    plan.lock().expect("no panic under the lock").disarm();
    let mut problems = Vec::new();
    if log.contains("panicked at") || status.code().is_none_or(|code| code == PANICKED) {
        problems.push(format!("{status}: {log}"));
    }
    for image in &scenario.kept {
        problems.extend(incomplete(&site.root(), image));
    }
    if status.success() {
        // It says that it has done its work.
        let all = scenario.complete.iter();
        let missing: Vec<String> = all.flat_map(|image| incomplete(&site.root(), image)).collect();
        if !missing.is_empty() {
            let mut text = String::from("it succeeded, but");
            missing.iter().for_each(|each| write!(text, " {each};").expect("a string grows"));
            problems.push(text);
        }
    } else {
        let (code, text) = site.run(&words);
        if code != Some(0) {
            problems.push(format!("it fails after the fault: {text}"));
        }
    }
    problems
}
