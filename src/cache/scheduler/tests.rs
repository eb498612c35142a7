//! Order is forced by gates: a job that has begun waits until the test lets it go.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::mpsc::{self, Receiver, Sender};

use super::queue::QUEUE_PER_CLASS_MAX;
use super::*;
use crate::oci::ImageName;

const LONG: Duration = Duration::from_secs(3600);

/// A scheduler, and the labels of its jobs in the order of their start.
struct Bench {
    scheduler: Scheduler,
    started: Sender<&'static str>,
    starts: Receiver<&'static str>,
    release: Option<Sender<()>>,
    gate: Arc<Mutex<Receiver<()>>>,
}

impl Bench {
    fn new(threads: usize, limits: &[(&str, usize)]) -> Bench {
        Bench::with_patience(threads, limits, LONG)
    }

    fn with_patience(threads: usize, limits: &[(&str, usize)], patience: Duration) -> Bench {
        let limits = limits.iter().map(|(name, max)| (name.parse().unwrap(), *max)).collect();
        let scheduler = Scheduler::start("test", threads, limits, patience);
        let (started, starts) = mpsc::channel();
        let (release, gate) = mpsc::channel();
        let gate = Arc::new(Mutex::new(gate));
        Bench { scheduler, started, starts, release: Some(release), gate }
    }

    /// A job that sends `label` when it starts, and blocks until the test releases all jobs.
    fn held(&self, label: &'static str) -> impl FnOnce() + Send + 'static {
        let (started, gate) = (self.started.clone(), Arc::clone(&self.gate));
        move || {
            started.send(label).unwrap();
            let _ = gate.lock().unwrap().recv();
        }
    }

    /// A job that sends `label` and ends.
    fn quick(&self, label: &'static str) -> impl FnOnce() + Send + 'static {
        let started = self.started.clone();
        move || started.send(label).unwrap()
    }

    fn hold(&self, label: &'static str, purpose: Purpose) {
        self.scheduler.submit(purpose, || true, self.held(label));
    }

    fn next(&self, count: usize) -> Vec<&'static str> {
        let mut labels: Vec<_> = (0..count).map(|_| self.starts.recv().unwrap()).collect();
        labels.sort_unstable();
        labels
    }

    fn nothing_begins(&self) {
        // Once an eligible job has been started and has ended, every fetcher has checked the queue.
        self.scheduler.submit(of("idle.io/a"), || true, self.quick("looked"));
        assert_eq!(self.next(1), ["looked"]);
        assert!(self.starts.try_recv().is_err());
    }

    fn let_all_go(&mut self) {
        self.release = None;
    }
}

fn of(image: &str) -> Purpose {
    let (upstream, repository) = image.split_once('/').unwrap();
    let name = ImageName::new(upstream.parse().unwrap(), repository.parse().unwrap());
    Purpose { class: Class::Listed(name.upstream.clone()), name, client: None }
}

fn unlisted(image: &str) -> Purpose {
    Purpose { class: Class::Unlisted, ..of(image) }
}

fn unproven(image: &str) -> Purpose {
    Purpose { class: Class::Unproven, ..of(image) }
}

fn from(client: u8, purpose: Purpose) -> Purpose {
    let address = IpAddr::V4(Ipv4Addr::new(192, 0, 2, client));
    Purpose { client: Some(address.into()), ..purpose }
}

#[test]
fn one_hanging_registry_gets_half_and_two_get_a_third_each() {
    let bench = Bench::new(12, &[]);
    for _ in 0..20 {
        bench.hold("hung", of("hung.io/a"));
    }
    assert_eq!(bench.next(6), ["hung"; 6]);
    bench.nothing_begins();

    let bench = Bench::new(12, &[]);
    // Alternating, so that both classes have jobs from the beginning.
    for _ in 0..4 {
        bench.hold("hung", of("hung.io/a"));
        bench.hold("other", of("other.io/a"));
    }
    let begun = bench.next(8);
    assert_eq!(begun.iter().filter(|label| **label == "hung").count(), 4);
    bench.hold("hung", of("hung.io/a"));
    bench.hold("other", of("other.io/a"));
    bench.nothing_begins();
    bench.scheduler.submit(of("good.io/a"), || true, bench.quick("good"));
    assert_eq!(bench.next(1), ["good"]);
}

#[test]
fn local_work_for_a_hanging_registry_has_a_separate_share() {
    let bench = Bench::new(12, &[]);
    for _ in 0..20 {
        bench.hold("hung", of("hung.io/a"));
    }
    assert_eq!(bench.next(6), ["hung"; 6]);
    let local = Purpose { class: Class::Local, ..of("hung.io/a") };
    bench.scheduler.submit(local, || true, bench.quick("local"));
    assert_eq!(bench.next(1), ["local"]);
}

#[test]
fn a_registry_uses_at_most_its_configured_number_of_fetchers() {
    let mut bench = Bench::new(4, &[("one.io", 1), ("all.io", 3)]);
    for name in ["one.io/a", "one.io/a", "all.io/a", "all.io/a", "all.io/a"] {
        bench.hold(if name == "one.io/a" { "one" } else { "all" }, of(name));
    }
    assert_eq!(bench.next(4), ["all", "all", "all", "one"]);
    bench.let_all_go();
    assert_eq!(bench.next(1), ["one"], "the second one, after the first");
}

#[test]
fn a_changed_limit_starts_waiting_jobs_and_stops_no_running_one() {
    let limit = |threads| HashMap::from([("one.io".parse().unwrap(), threads)]);
    let mut bench = Bench::new(4, &[("one.io", 1)]);
    for label in ["0", "1", "2", "3", "4"] {
        bench.hold(label, of("one.io/a"));
    }
    assert_eq!(bench.next(1), ["0"]);
    bench.scheduler.set_limits(limit(3));
    assert_eq!(bench.next(2), ["1", "2"]);
    bench.scheduler.set_limits(limit(1));
    bench.scheduler.submit(of("other.io/a"), || true, bench.quick("other"));
    assert_eq!(bench.next(1), ["other"]);
    bench.let_all_go();
    assert_eq!(bench.next(2), ["3", "4"]);
}

#[test]
fn unlisted_registries_get_half_and_unproven_ones_a_quarter() {
    let bench = Bench::new(16, &[]);
    for number in 0..30 {
        bench.hold("unproven", unproven(&format!("host{number}.io/a")));
    }
    assert_eq!(bench.next(4), ["unproven"; 4]);
    for number in 0..30 {
        bench.hold("unlisted", unlisted(&format!("host{number}.io/a")));
    }
    assert_eq!(bench.next(4), ["unlisted"; 4]);
    bench.nothing_begins();
}

#[test]
fn clients_take_turns_and_so_do_the_repositories_of_each() {
    let mut bench = Bench::new(1, &[]);
    bench.hold("first", of("a.io/x"));
    assert_eq!(bench.next(1), ["first"]);
    for _ in 0..3 {
        bench.scheduler.submit(from(1, of("a.io/x")), || true, bench.quick("greedy"));
    }
    bench.scheduler.submit(from(2, of("a.io/x")), || true, bench.quick("modest"));
    bench.scheduler.submit(from(1, of("a.io/y")), || true, bench.quick("greedy's other"));
    bench.let_all_go();
    let order: Vec<_> = (0..5).map(|_| bench.starts.recv().unwrap()).collect();
    assert_eq!(order, ["greedy", "modest", "greedy's other", "greedy", "greedy"]);
}

#[test]
fn one_client_leaves_a_quarter_of_the_share_for_others() {
    let mut bench = Bench::new(16, &[]);
    for _ in 0..20 {
        bench.hold("greedy", from(1, of("a.io/x")));
    }
    // Of the eight fetchers that one registry may use.
    assert_eq!(bench.next(6), ["greedy"; 6]);
    bench.nothing_begins();
    bench.hold("modest", from(2, of("a.io/x")));
    bench.hold("own", of("a.io/x"));
    assert_eq!(bench.next(2), ["modest", "own"]);
    bench.nothing_begins();
    bench.let_all_go();
    assert_eq!(bench.next(14), ["greedy"; 14]);
}

#[test]
fn background_jobs_of_clients_take_turns() {
    let mut bench = Bench::new(1, &[]);
    bench.hold("first", of("a.io/x"));
    assert_eq!(bench.next(1), ["first"]);
    for _ in 0..3 {
        bench.scheduler.submit_in_background(
            from(1, of("a.io/x")),
            Length::Long,
            bench.quick("greedy"),
        );
    }
    bench.scheduler.submit_in_background(
        from(2, of("a.io/x")),
        Length::Long,
        bench.quick("modest"),
    );
    bench.let_all_go();
    let order: Vec<_> = (0..4).map(|_| bench.starts.recv().unwrap()).collect();
    assert_eq!(order, ["greedy", "modest", "greedy", "greedy"]);
}

#[test]
fn a_job_without_followers_is_dropped_when_its_turn_comes() {
    let mut bench = Bench::new(1, &[]);
    bench.hold("first", of("a.io/x"));
    assert_eq!(bench.next(1), ["first"]);
    let is_wanted = Arc::new(AtomicBool::new(true));
    let held = Arc::new(());
    for _ in 0..3 {
        let (wanted, held) = (Arc::clone(&is_wanted), Arc::clone(&held));
        let run = bench.quick("unwanted");
        bench.scheduler.submit(
            of("a.io/x"),
            move || wanted.load(Ordering::SeqCst),
            move || {
                run();
                drop(held);
            },
        );
    }
    bench.scheduler.submit(of("a.io/x"), || true, bench.quick("wanted"));
    is_wanted.store(false, Ordering::SeqCst);
    bench.let_all_go();
    assert_eq!(bench.next(1), ["wanted"]);
    assert_eq!(Arc::strong_count(&held), 1);
    assert_eq!(bench.scheduler.load().queued, 0);
}

#[test]
fn a_job_that_is_older_than_clients_wait_is_dropped() {
    let mut bench = Bench::with_patience(1, &[], Duration::ZERO);
    // Already too old when a fetcher picks it.
    bench.hold("late", of("a.io/x"));
    bench.let_all_go();
    bench.scheduler.submit_in_background(of("a.io/x"), Length::Long, bench.quick("background"));
    assert_eq!(bench.next(1), ["background"]);
    assert!(bench.starts.try_recv().is_err());
}

#[test]
fn a_full_queue_refuses_only_the_client_that_fills_it() {
    let bench = Bench::new(1, &[]);
    bench.hold("first", of("a.io/x"));
    assert_eq!(bench.next(1), ["first"]);
    let held = Arc::new(());
    let submit = |client| {
        let held = Arc::clone(&held);
        bench.scheduler.submit(from(client, of("a.io/x")), || true, move || drop(held));
    };
    for _ in 0..QUEUE_PER_CLASS_MAX + 10 {
        submit(1);
    }
    assert_eq!(Arc::strong_count(&held), QUEUE_PER_CLASS_MAX + 1, "its own newest are refused");
    submit(2);
    let queued = |client| {
        let state = bench.scheduler.shared.lock();
        let queue = &state.foreground.classes.queues[&of("a.io/x").class];
        queue.clients.queues[&from(client, of("a.io/x")).client].jobs
    };
    assert_eq!((queued(1), queued(2)), (QUEUE_PER_CLASS_MAX - 1, 1));
    assert_eq!(bench.scheduler.load().queued, QUEUE_PER_CLASS_MAX);
}

#[test]
fn jobs_of_unproven_registries_leave_queue_space_for_unlisted_ones() {
    let bench = Bench::new(4, &[]);
    bench.hold("unproven", unproven("hole.io/a"));
    assert_eq!(bench.next(1), ["unproven"]);
    for _ in 0..QUEUE_PER_CLASS_MAX {
        bench.hold("unproven", from(1, unproven("hole.io/a")));
    }
    assert_eq!(bench.scheduler.load().queued, QUEUE_PER_CLASS_MAX / 2);
    bench.scheduler.submit(from(1, unlisted("good.io/a")), || true, bench.quick("good"));
    assert_eq!(bench.next(1), ["good"]);
}

#[test]
fn unwanted_jobs_are_dropped_from_a_full_queue() {
    let bench = Bench::new(1, &[]);
    bench.hold("first", of("a.io/x"));
    assert_eq!(bench.next(1), ["first"]);
    let is_wanted = Arc::new(AtomicBool::new(true));
    for _ in 0..QUEUE_PER_CLASS_MAX {
        let wanted = Arc::clone(&is_wanted);
        let purpose = from(1, of("a.io/x"));
        bench.scheduler.submit(purpose, move || wanted.load(Ordering::SeqCst), || {});
    }
    is_wanted.store(false, Ordering::SeqCst);
    bench.scheduler.submit(from(1, of("a.io/x")), || true, || {});
    assert_eq!(bench.scheduler.load().queued, 1);
}

#[test]
fn background_jobs_start_when_no_other_can_and_leave_fetchers_free() {
    let mut bench = Bench::new(8, &[]);
    for name in ["a.io/x", "a.io/x", "a.io/x", "b.io/x", "b.io/x", "b.io/x"] {
        let label = if name == "a.io/x" { "a" } else { "b" };
        bench.scheduler.submit_in_background(of(name), Length::Long, bench.held(label));
    }
    // Three quarters of the share of each registry, one less for long jobs.
    assert_eq!(bench.next(4), ["a", "a", "b", "b"]);
    bench.nothing_begins();
    bench.scheduler.submit(of("a.io/x"), || true, bench.quick("client"));
    assert_eq!(bench.next(1), ["client"]);
    bench.let_all_go();
    assert_eq!(bench.next(2), ["a", "b"]);
}

#[test]
fn short_background_jobs_do_not_wait_for_long_ones() {
    let bench = Bench::new(8, &[]);
    for _ in 0..4 {
        bench.scheduler.submit_in_background(of("a.io/x"), Length::Long, bench.held("long"));
    }
    assert_eq!(bench.next(2), ["long", "long"]);
    bench.nothing_begins();
    // One fetcher of the registry is left to them.
    for label in ["first", "second"] {
        bench.scheduler.submit_in_background(of("a.io/y"), Length::Short, bench.quick(label));
    }
    assert_eq!(bench.next(2), ["first", "second"]);
    bench.nothing_begins();
}

#[test]
fn short_background_jobs_precede_long_ones() {
    let mut bench = Bench::new(8, &[("a.io", 1)]);
    bench.hold("client", of("a.io/x"));
    assert_eq!(bench.next(1), ["client"]);
    let started = bench.started.clone();
    let long = move || started.send("2 long").unwrap();
    bench.scheduler.submit_in_background(of("a.io/x"), Length::Long, long);
    bench.scheduler.submit_in_background(of("a.io/x"), Length::Short, bench.quick("1 short"));
    bench.let_all_go();
    assert_eq!([bench.starts.recv().unwrap(), bench.starts.recv().unwrap()], ["1 short", "2 long"]);
}

#[test]
fn a_fetcher_is_contended_if_releasing_it_lets_a_job_start() {
    let bench = Bench::new(2, &[]);
    let (a, b) = (of("a.io/x"), of("b.io/x"));
    bench.hold("a", a.clone());
    assert_eq!(bench.next(1), ["a"]);
    assert!(!bench.scheduler.is_contended(&a.class), "nothing waits");
    bench.hold("b", b.clone());
    assert_eq!(bench.next(1), ["b"]);
    bench.hold("c", of("c.io/x"));
    assert!(bench.scheduler.is_contended(&a.class) && bench.scheduler.is_contended(&b.class));

    let bench = Bench::new(8, &[("a.io", 1)]);
    bench.hold("a", a.clone());
    bench.hold("a", a.clone());
    bench.hold("b", b.clone());
    assert_eq!(bench.next(2), ["a", "b"]);
    assert!(bench.scheduler.is_contended(&a.class), "its own registry's next job waits for it");
    assert!(!bench.scheduler.is_contended(&b.class), "which another registry's cannot help");
}

#[test]
fn a_client_that_uses_its_share_does_not_suspend_background_jobs() {
    let bench = Bench::new(8, &[]);
    let a = of("a.io/x");
    for _ in 0..4 {
        bench.hold("client", from(1, a.clone()));
    }
    assert_eq!(bench.next(3), ["client"; 3], "three quarters of the share of its class");
    assert!(bench.scheduler.submit_in_background(
        a.clone(),
        Length::Long,
        bench.held("background")
    ));
    assert_eq!(bench.next(1), ["background"]);
    // Without that job, the class could start one more, but not of this client.
    assert!(!bench.scheduler.is_contended(&a.class));
    bench.hold("other", from(2, a.clone()));
    assert!(bench.scheduler.is_contended(&a.class));
}

#[test]
fn a_panic_affects_only_its_own_job() {
    let bench = Bench::new(1, &[]);
    bench.scheduler.submit(of("a.io/x"), || true, || panic!("a fetch that panics"));
    bench.scheduler.submit(of("a.io/x"), || true, bench.quick("next"));
    assert_eq!(bench.next(1), ["next"]);
}

#[test]
fn a_closed_scheduler_drops_queued_and_new_jobs() {
    let bench = Bench::new(1, &[]);
    bench.hold("first", of("a.io/x"));
    assert_eq!(bench.next(1), ["first"]);
    let held = Arc::new(());
    let job = || {
        let held = Arc::clone(&held);
        move || drop(held)
    };
    for _ in 0..3 {
        bench.scheduler.submit(of("a.io/x"), || true, job());
        bench.scheduler.submit_in_background(of("a.io/x"), Length::Long, job());
    }
    bench.scheduler.close();
    bench.scheduler.submit(of("a.io/x"), || true, job());
    assert!(!bench.scheduler.submit_in_background(of("a.io/x"), Length::Long, job()));
    assert_eq!(Arc::strong_count(&held), 1);
    assert_eq!(bench.scheduler.load().queued, 0);
}
