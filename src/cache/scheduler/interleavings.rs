//! Interleavings of the scheduler (`make interleavings`).
//!
//! | Interleaving | Explored |
//! | --- | --- |
//! | a job is submitted while a fetcher picks, waits or ends, and while the scheduler closes: it runs or is dropped, once | some |
//! | a fetcher begins to wait while the scheduler closes | all |
//! | jobs that may not start yet, and one that may: no fetcher sleeps while a job could run | some |
//! | jobs of two clients in a full queue, displaced while fetchers pick | some |
//! | the last follower leaves while its job is picked | some |
//! | a job panics: its fetcher and its share are free again | some |
//! | the limit of a registry changes while its jobs are queued | some |
//! | close against jobs that pause, and against a caller that waits for the last one | some |
//!
//! A job that is lost, or a fetcher that is not woken, is a deadlock, which shuttle reports.

use std::net::{IpAddr, Ipv4Addr};
use std::panic::resume_unwind;
use std::sync::atomic::AtomicUsize as Count;
use std::task::Wake;

use super::*;
use crate::oci::ImageName;
use crate::sync::interleavings::{Bell, all, some};

const LONG: Duration = Duration::from_secs(3600);

/// Counts what happens to jobs, and lets a test wait for it.
#[derive(Default)]
struct Jobs {
    ran: Mutex<usize>,
    changed: Condvar,
    dropped: Count,
    running: Count,
    running_max: Count,
}

/// Belongs to one job, and is dropped with it, whether the job ran or not.
struct Token(Arc<Jobs>);

impl Drop for Token {
    fn drop(&mut self) {
        self.0.dropped.fetch_add(1, Ordering::Relaxed);
    }
}

impl Jobs {
    /// A job that other threads can overtake.
    fn job(self: &Arc<Self>) -> impl FnOnce() + Send + 'static {
        let token = Token(Arc::clone(self));
        move || {
            let jobs = &token.0;
            let running = jobs.running.fetch_add(1, Ordering::Relaxed) + 1;
            jobs.running_max.fetch_max(running, Ordering::Relaxed);
            thread::yield_now();
            jobs.running.fetch_sub(1, Ordering::Relaxed);
            *jobs.ran.lock().unwrap() += 1;
            jobs.changed.notify_all();
        }
    }

    fn wait_until_ran(&self, count: usize) {
        let ran = self.ran.lock().unwrap();
        drop(self.changed.wait_while(ran, |ran| *ran < count).unwrap());
    }

    fn ran(&self) -> usize {
        *self.ran.lock().unwrap()
    }

    fn dropped(&self) -> usize {
        self.dropped.load(Ordering::Relaxed)
    }
}

fn start(threads: usize, limits: &[(&str, usize)]) -> Arc<Scheduler> {
    let limits = limits.iter().map(|(name, max)| (name.parse().unwrap(), *max)).collect();
    Arc::new(Scheduler::start("test", threads, limits, LONG))
}

fn of(image: &str, client: u8) -> Purpose {
    let (upstream, repository) = image.split_once('/').unwrap();
    let name = ImageName::new(upstream.parse().unwrap(), repository.parse().unwrap());
    let client = IpAddr::V4(Ipv4Addr::new(192, 0, 2, client));
    Purpose { class: Class::Listed(name.upstream.clone()), name, client: Some(client.into()) }
}

#[test]
fn a_job_that_is_submitted_while_the_scheduler_closes_runs_or_is_dropped() {
    let submit_and_close = |threads| {
        let (scheduler, jobs) = (start(threads, &[]), Arc::new(Jobs::default()));
        let closes = {
            let scheduler = Arc::clone(&scheduler);
            thread::spawn(move || scheduler.close())
        };
        scheduler.submit(of("quay.io/a", 1), || true, jobs.job());
        closes.join().unwrap();
        scheduler.wait_until_idle(LONG);
        let ran = jobs.ran();
        assert!(ran <= 1);
        assert_eq!(jobs.dropped(), 1, "it ran {ran} times");
        assert_eq!(scheduler.load().queued, 0);
    };
    some(move || submit_and_close(2));
}

#[test]
fn a_close_ends_an_idle_fetcher() {
    all(|| start(1, &[]).close());
}

#[test]
fn a_job_wakes_the_fetcher() {
    some(|| {
        let scheduler = start(1, &[]);
        let bell = Arc::new(Bell::default());
        let rings = Arc::clone(&bell);
        scheduler.submit(of("quay.io/a", 1), || true, move || rings.wake());
        bell.wait();
        drop(scheduler);
    });
}

#[test]
fn every_job_of_several_threads_runs() {
    some(|| {
        let (scheduler, jobs) = (start(2, &[]), Arc::new(Jobs::default()));
        let submits = |image: &'static str, client| {
            let (scheduler, jobs) = (Arc::clone(&scheduler), Arc::clone(&jobs));
            thread::spawn(move || {
                scheduler.submit(of(image, client), || true, jobs.job());
                assert!(scheduler.submit_in_background(
                    of(image, client),
                    Length::Long,
                    jobs.job()
                ));
            })
        };
        let threads = [submits("quay.io/a", 1), submits("docker.io/a", 2)];
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        jobs.wait_until_ran(4);
        scheduler.wait_until_idle(LONG);
        let load = scheduler.load();
        assert_eq!((load.busy, load.queued, load.queued_in_background), (0, 0, 0));
        assert_eq!(jobs.dropped(), 4);
    });
}

#[test]
fn a_job_that_may_not_start_keeps_no_fetcher_from_another_one() {
    some(|| {
        let (scheduler, jobs) = (start(2, &[("quay.io", 1)]), Arc::new(Jobs::default()));
        let others = Arc::new(Jobs::default());
        let submits = {
            let (scheduler, jobs) = (Arc::clone(&scheduler), Arc::clone(&jobs));
            thread::spawn(move || {
                scheduler.submit(of("quay.io/a", 1), || true, jobs.job());
                scheduler.submit(of("quay.io/a", 2), || true, jobs.job());
            })
        };
        scheduler.submit(of("docker.io/a", 1), || true, others.job());
        others.wait_until_ran(1);
        jobs.wait_until_ran(2);
        submits.join().unwrap();
        assert_eq!(jobs.running_max.load(Ordering::Relaxed), 1, "the limit of the registry");
    });
}

/// The other registry's job needs a fetcher while the first one blocks until it has run.
#[test]
fn a_fetcher_is_woken_for_each_job_that_may_start() {
    some(|| {
        let (scheduler, jobs) = (start(2, &[("quay.io", 1)]), Arc::new(Jobs::default()));
        let waits = {
            let (token, jobs) = (Token(Arc::clone(&jobs)), Arc::clone(&jobs));
            move || {
                jobs.wait_until_ran(1);
                drop(token);
            }
        };
        scheduler.submit(of("quay.io/a", 1), || true, waits);
        scheduler.submit(of("quay.io/a", 2), || true, jobs.job());
        scheduler.submit(of("docker.io/a", 1), || true, jobs.job());
        jobs.wait_until_ran(2);
        scheduler.wait_until_idle(LONG);
        assert_eq!(jobs.dropped(), 3);
    });
}

/// When the first job ends, two of the queued ones may start. Its fetcher takes one, which needs the other one.
#[test]
fn the_end_of_a_job_starts_every_job_that_may_start_now() {
    some(|| {
        let (scheduler, jobs) = (start(3, &[("quay.io", 1)]), Arc::new(Jobs::default()));
        let (begun, last) = (Arc::new(Jobs::default()), Arc::new(Jobs::default()));
        let gate = Arc::new(Bell::default());
        let opens = Arc::clone(&gate);
        let (begin, job) = (begun.job(), jobs.job());
        scheduler.submit(
            of("quay.io/a", 1),
            || true,
            move || {
                begin();
                gate.wait();
                job();
            },
        );
        let waits = |begin: Box<dyn FnOnce() + Send>| {
            let (last, job) = (Arc::clone(&last), jobs.job());
            move || {
                begin();
                last.wait_until_ran(1);
                job();
            }
        };
        scheduler.submit(of("docker.io/a", 1), || true, waits(Box::new(begun.job())));
        begun.wait_until_ran(2);
        // One fetcher is free. This class has used its share of it, and the next one is at its limit.
        scheduler.submit(of("docker.io/a", 2), || true, waits(Box::new(|| {})));
        scheduler.submit(of("quay.io/a", 2), || true, last.job());
        opens.wake();
        jobs.wait_until_ran(3);
    });
}

#[test]
fn jobs_that_are_displaced_from_a_full_queue_are_dropped_once() {
    some(|| {
        let (scheduler, jobs) = (start(1, &[]), Arc::new(Jobs::default()));
        let submits = |client, count| {
            let (scheduler, jobs) = (Arc::clone(&scheduler), Arc::clone(&jobs));
            thread::spawn(move || {
                for _ in 0..count {
                    scheduler.submit(of("quay.io/a", client), || true, jobs.job());
                    let queued = scheduler.load().queued;
                    assert!(queued <= queue::QUEUE_PER_CLASS_MAX, "{queued} jobs are queued");
                }
            })
        };
        let threads = [submits(1, 3), submits(2, 2)];
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        // A job that is not dropped runs, and none of them is counted twice.
        scheduler.submit(of("docker.io/a", 3), || true, jobs.job());
        scheduler.wait_until_idle(LONG);
        while scheduler.load().queued > 0 {
            thread::yield_now();
            scheduler.wait_until_idle(LONG);
        }
        scheduler.wait_until_idle(LONG);
        assert_eq!(jobs.dropped(), 6);
        assert!(jobs.ran() >= 3, "{} ran", jobs.ran());
    });
}

#[test]
fn a_job_whose_last_follower_leaves_is_dropped_or_runs_once() {
    some(|| {
        let (scheduler, jobs) = (start(1, &[]), Arc::new(Jobs::default()));
        let is_wanted = Arc::new(AtomicBool::new(true));
        let wanted = Arc::clone(&is_wanted);
        let leaves = thread::spawn(move || is_wanted.store(false, Ordering::Release));
        scheduler.submit(of("quay.io/a", 1), move || wanted.load(Ordering::Acquire), jobs.job());
        // The next job needs the fetcher that finds the first one unwanted.
        let after = Arc::new(Jobs::default());
        scheduler.submit(of("quay.io/a", 2), || true, after.job());
        after.wait_until_ran(1);
        leaves.join().unwrap();
        scheduler.wait_until_idle(LONG);
        while jobs.dropped() == 0 {
            thread::yield_now();
        }
        assert_eq!(jobs.dropped(), 1);
        assert_eq!(scheduler.load().queued, 0);
    });
}

#[test]
fn a_job_that_panics_releases_its_fetcher_and_its_share() {
    some(|| {
        let (scheduler, jobs) = (start(2, &[("quay.io", 1)]), Arc::new(Jobs::default()));
        let panics = {
            let token = Token(Arc::clone(&jobs));
            move || {
                let _token = token;
                resume_unwind(Box::new("on purpose"));
            }
        };
        scheduler.submit(of("quay.io/a", 1), || true, panics);
        scheduler.submit(of("quay.io/a", 1), || true, jobs.job());
        jobs.wait_until_ran(1);
        scheduler.wait_until_idle(LONG);
        assert_eq!((scheduler.load().busy, jobs.dropped()), (0, 2));
    });
}

#[test]
fn a_higher_limit_starts_every_job_that_may_start_now() {
    some(|| {
        let (scheduler, jobs) = (start(3, &[("quay.io", 1)]), Arc::new(Jobs::default()));
        // Each waits until the others have begun, so all must run at the same time.
        let begun = Arc::new(Jobs::default());
        for client in 1..=3 {
            // The queue has no space for all of them.
            begun.wait_until_ran(usize::from(client > 1));
            let (begin, begun) = (begun.job(), Arc::clone(&begun));
            let job = jobs.job();
            scheduler.submit(
                of("quay.io/a", client),
                || true,
                move || {
                    begin();
                    begun.wait_until_ran(3);
                    job();
                },
            );
        }
        let limit: Upstream = "quay.io".parse().unwrap();
        scheduler.set_limits(HashMap::from([(limit, 3)]));
        jobs.wait_until_ran(3);
    });
}

#[test]
fn a_close_ends_every_pause() {
    some(|| {
        let (scheduler, jobs) = (start(2, &[]), Arc::new(Jobs::default()));
        for image in ["quay.io/a", "docker.io/a"] {
            let (job, pauses) = (jobs.job(), Arc::clone(&scheduler));
            scheduler.submit(
                of(image, 1),
                || true,
                move || {
                    pauses.pause(LONG);
                    job();
                },
            );
        }
        let waits = {
            let scheduler = Arc::clone(&scheduler);
            thread::spawn(move || scheduler.wait_until_idle(LONG))
        };
        scheduler.close();
        waits.join().unwrap();
        scheduler.wait_until_idle(LONG);
        assert_eq!(jobs.dropped(), 2);
        assert_eq!(scheduler.load().busy, 0);
    });
}
