//! Interleavings of flights (`make interleavings`).
//!
//! | Interleaving | Explored |
//! | --- | --- |
//! | callers look, join, work and finish: one does the work, all get its result | some of two and of three callers |
//! | two callers join and finish: one leads at a time, and both get an outcome | all |
//! | a follower waits while the leader announces, advances and finishes: no wake-up is lost | all |
//! | a follower waits while the leader is dropped, as by a panic | all |
//! | a follower joins while the leader gives up because the last follower has left | all of two threads, some of three |
//! | a follower stops waiting while the leader finishes | all |
//! | a new leader takes the key while the previous one removes it | all |
//!
//! The locks are those of production; the callers are those of `cache` in short: look, join, look again as a leader.

use std::sync::atomic::AtomicUsize as Count;

use super::*;
use crate::sync::interleavings::{all, some, wait_for};
use crate::sync::thread;

type Numbers = Flights<u8, &'static str, u32, &'static str>;

/// A place for results, as the store is for blobs.
#[derive(Default)]
struct Shelf {
    flights: Numbers,
    result: Mutex<Option<u32>>,
    fetches: Count,
}

impl Shelf {
    fn result(&self) -> Option<u32> {
        *lock(&self.result)
    }

    fn get(&self) -> u32 {
        if let Some(found) = self.result() {
            return found;
        }
        let Joined { flight, leader } = self.flights.join(&1, || "abandoned");
        if let Some(leader) = leader {
            let result = self.result().unwrap_or_else(|| {
                self.fetches.fetch_add(1, Ordering::Relaxed);
                7
            });
            *lock(&self.result) = Some(result);
            leader.finish(Ok(result));
        }
        wait_for(|waker| flight.poll_outcome(waker)).expect("the leader finished")
    }
}

fn callers(count: usize) {
    let shelf = Arc::new(Shelf::default());
    let get = |shelf: Arc<Shelf>| thread::spawn(move || shelf.get());
    let threads: Vec<_> = (0..count).map(|_| get(Arc::clone(&shelf))).collect();
    for thread in threads {
        assert_eq!(thread.join().unwrap(), 7);
    }
    assert_eq!(shelf.fetches.load(Ordering::Relaxed), 1, "two leaders did the work");
    assert!(shelf.flights.is_empty(), "a flight stays in the table");
}

#[test]
fn callers_that_arrive_at_any_time_share_one_fetch() {
    some(|| callers(2));
    some(|| callers(3));
}

#[test]
fn one_of_two_callers_leads_and_both_get_an_outcome() {
    all(|| {
        let flights = Numbers::new();
        let join = {
            let flights = flights.clone();
            move |result| {
                let Joined { flight, leader } = flights.join(&1, || "abandoned");
                let is_leader = leader.is_some();
                if let Some(leader) = leader {
                    leader.finish(Ok(result));
                }
                (is_leader, flight)
            }
        };
        let other = thread::spawn({
            let join = join.clone();
            move || join(1)
        });
        let joined = [join(2), other.join().unwrap()];
        let outcomes = joined.each_ref().map(|(_, flight)| flight.poll_outcome(Waker::noop()));
        let outcome = |result| Poll::Ready(Ok(result));
        let expected = match joined.each_ref().map(|(is_leader, _)| *is_leader) {
            [true, true] => [outcome(2), outcome(1)],
            [true, false] => [outcome(2), outcome(2)],
            [false, true] => [outcome(1), outcome(1)],
            [false, false] => panic!("nobody leads"),
        };
        assert_eq!(outcomes, expected);
        assert!(flights.is_empty(), "a flight stays in the table");
    });
}

fn start() -> (Numbers, Follower<&'static str, u32, &'static str>, Leading) {
    let flights = Numbers::new();
    let Joined { flight, leader } = flights.join(&1, || "abandoned");
    (flights, flight, leader.unwrap())
}

type Leading = Leader<u8, &'static str, u32, &'static str>;

/// A leader works while a follower waits.
fn sees<T: PartialEq + std::fmt::Debug>(
    works: fn(Leading),
    poll: fn(&Flight<&'static str, u32, &'static str>, &Waker) -> Poll<T>,
    expected: T,
) {
    let (_flights, flight, leader) = start();
    let works = thread::spawn(move || works(leader));
    assert_eq!(wait_for(|waker| poll(&flight, waker)), expected);
    works.join().unwrap();
}

#[test]
fn a_follower_sees_every_change() {
    let announces = |leader: Leading| {
        leader.announce("header");
        // The header alone must wake the follower.
        std::mem::forget(leader);
    };
    all(move || sees(announces, |flight, waker| flight.poll_header(waker), Ok("header")));
    let advances = |leader: Leading| {
        leader.advance(1);
        leader.advance(2);
        std::mem::forget(leader);
    };
    all(move || sees(advances, |flight, waker| flight.poll_available(1, waker), Ok(2)));
    let finishes = |leader: Leading| leader.finish(Ok(3));
    all(move || sees(finishes, |flight, waker| flight.poll_outcome(waker), Ok(3)));
    all(move || sees(finishes, |flight, waker| flight.poll_available(0, waker), Ok(0)));
}

#[test]
fn many_followers_see_every_change() {
    some(|| {
        let (flights, first, leader) = start();
        let watch = |flight: Follower<&'static str, u32, &'static str>| {
            thread::spawn(move || {
                let mut position = 0;
                while position < 2 {
                    position = wait_for(|waker| flight.poll_available(position, waker)).unwrap();
                }
                wait_for(|waker| flight.poll_outcome(waker)).unwrap()
            })
        };
        let second = flights.find(&1).unwrap();
        let threads = [watch(first), watch(second)];
        leader.advance(1);
        leader.advance(2);
        leader.finish(Ok(3));
        assert_eq!(threads.map(|thread| thread.join().unwrap()), [3, 3]);
    });
}

#[test]
fn a_leader_that_is_dropped_fails_its_followers() {
    all(|| {
        let (flights, flight, leader) = start();
        let panics = thread::spawn(move || drop(leader));
        assert_eq!(wait_for(|waker| flight.poll_available(0, waker)), Err("abandoned"));
        panics.join().unwrap();
        assert!(flights.is_empty());
    });
}

/// The last follower leaves and the leader gives up, while another caller joins.
fn leaving(leaves_by_itself: bool) {
    let (flights, last, leader) = start();
    let joins = {
        let flights = flights.clone();
        thread::spawn(move || {
            let Joined { flight, leader } = flights.join(&1, || "abandoned");
            if let Some(leader) = leader {
                leader.finish(Ok(8));
            }
            flight
        })
    };
    let leaves = match leaves_by_itself {
        true => Some(thread::spawn(move || drop(last))),
        false => {
            drop(last);
            None
        }
    };
    match leader.abandon("nobody follows") {
        None => {}
        Some(leader) => leader.finish(Ok(7)),
    }
    let outcome = joins.join().unwrap().poll_outcome(Waker::noop());
    assert!(matches!(outcome, Poll::Ready(Ok(7 | 8))), "a follower got {outcome:?}");
    if let Some(thread) = leaves {
        thread.join().unwrap();
    }
    assert!(flights.is_empty());
}

#[test]
fn a_flight_that_gains_a_follower_is_not_given_up() {
    all(|| leaving(false));
    some(|| leaving(true));
}

#[test]
fn a_follower_may_stop_waiting_at_any_time() {
    all(|| {
        let (_flights, flight, leader) = start();
        let works = thread::spawn(move || {
            leader.advance(5);
            leader.finish(Ok(1));
        });
        let waker = Waker::noop();
        let _ = flight.poll_available(0, waker);
        flight.forget(waker);
        assert_eq!(wait_for(|waker| flight.poll_outcome(waker)), Ok(1));
        works.join().unwrap();
    });
}

#[test]
fn the_end_of_a_flight_leaves_the_next_one_in_the_table() {
    all(|| {
        let (flights, _first, leader) = start();
        let ends = thread::spawn(move || leader.finish(Ok(1)));
        let next = flights.join(&1, || "abandoned");
        ends.join().unwrap();
        if let Some(leader) = next.leader {
            let found = flights.peek(&1).expect("the next flight is running");
            assert!(Arc::ptr_eq(&found, leader.flight()));
            leader.finish(Ok(2));
        }
        assert!(flights.is_empty());
    });
}
