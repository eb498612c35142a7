//! Delivers events to a webhook, one after the other, with retries.
//!
//! # Order and loss
//! Events are delivered in order. One that the webhook refuses (4xx) is dropped at once, since repeating cannot help; one
//! that fails otherwise is tried for an hour, during which later ones wait in a bounded queue. What waits when the process
//! ends is lost: the end waits for an attempt that is under way, for two seconds at most. A webhook may receive an event
//! twice, if the connection fails after it was received; the `id` is the same.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::thread;
use std::time::Duration;

use super::{EventType, Events, RecordedEvent};

/// The waits between attempts to deliver an event, the last one repeated.
const WAITS: [Duration; 6] = [
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(15),
    Duration::from_secs(60),
    Duration::from_secs(300),
    Duration::from_secs(600),
];
/// How long an event is tried.
const GIVEN_UP_AFTER: Duration = Duration::from_secs(3600);

/// Why an event was not delivered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostError {
    /// The reason.
    pub reason: String,
    /// Whether another attempt may succeed.
    pub is_temporary: bool,
}

/// Sends an event. Blocks for a bounded time.
pub trait Post: Send {
    /// # Errors
    /// [`PostError`].
    fn post(&self, event: &RecordedEvent) -> Result<(), PostError>;
}

/// How long the end of the process waits for an attempt that is under way. The webhook may not respond at all.
const LAST_ATTEMPT: Duration = Duration::from_secs(2);

/// The thread that delivers events. Dropping it ends the thread.
pub struct Delivery {
    stop: Option<Sender<()>>,
    /// Disconnected when the thread has ended.
    ended: Receiver<()>,
}

impl Delivery {
    /// Starts to deliver the events of these types, from now on.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn start(
        events: &Arc<Events>,
        types: Vec<EventType>,
        post: Box<dyn Post>,
    ) -> std::io::Result<Delivery> {
        let ((stop, stopped), (end, ended)) = (channel(), channel());
        let (received, events) = (events.subscribe(types), Arc::clone(events));
        let work = move || {
            let _end: Sender<()> = end;
            let mut rest = |wait| match stopped.recv_timeout(wait) {
                Err(RecvTimeoutError::Timeout) => true,
                Ok(()) | Err(RecvTimeoutError::Disconnected) => false,
            };
            run(&received, &events, &*post, &mut rest);
        };
        thread::Builder::new().name("webhook".into()).spawn(work)?;
        Ok(Delivery { stop: Some(stop), ended })
    }
}

impl Drop for Delivery {
    fn drop(&mut self) {
        self.stop = None;
        // Nothing is sent: either the thread ends, or the time is over.
        let _ = self.ended.recv_timeout(LAST_ATTEMPT);
    }
}

/// How often the thread checks whether there are events.
const CHECK_INTERVAL: Duration = Duration::from_millis(200);

/// Delivers events until `rest` returns `false`.
fn run(
    received: &Receiver<RecordedEvent>,
    events: &Events,
    post: &dyn Post,
    rest: &mut dyn FnMut(Duration) -> bool,
) {
    loop {
        let wait = match received.try_recv() {
            Ok(event) if deliver(&event, events, post, rest) => Duration::ZERO,
            Ok(_) | Err(TryRecvError::Disconnected) => return,
            Err(TryRecvError::Empty) => CHECK_INTERVAL,
        };
        if !rest(wait) {
            return;
        }
    }
}

/// Delivers an event or gives it up. Returns whether to go on.
fn deliver(
    event: &RecordedEvent,
    events: &Events,
    post: &dyn Post,
    rest: &mut dyn FnMut(Duration) -> bool,
) -> bool {
    let (mut waits, mut waited) = (WAITS.iter(), Duration::ZERO);
    loop {
        let Err(error) = post.post(event) else { return true };
        let wait = waits.next().or(WAITS.last()).copied().unwrap_or_default();
        let reason = &error.reason;
        if !error.is_temporary || waited + wait > GIVEN_UP_AFTER {
            events.note_dropped();
            log::error!(
                event:% = event.event.is, error = reason.as_str();
                "events: the webhook did not receive an event"
            );
            return true;
        }
        if waited.is_zero() {
            log::warn!(
                event:% = event.event.is, error = reason.as_str();
                "events: the webhook did not receive an event; retrying"
            );
        }
        waited += wait;
        if !rest(wait) {
            return false;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::time::SystemTime;

    use super::*;
    use crate::events::Event;

    /// Answers in order, then accepts everything.
    struct Scripted {
        answers: Mutex<Vec<Result<(), PostError>>>,
        received: Mutex<Vec<String>>,
    }

    impl Post for &'static Scripted {
        fn post(&self, event: &RecordedEvent) -> Result<(), PostError> {
            self.received.lock().unwrap().push(event.event.subject.clone());
            let mut answers = self.answers.lock().unwrap();
            if answers.is_empty() { Ok(()) } else { answers.remove(0) }
        }
    }

    fn scripted(answers: Vec<Result<(), PostError>>) -> &'static Scripted {
        let received = Mutex::default();
        Box::leak(Box::new(Scripted { answers: Mutex::new(answers), received }))
    }

    fn failure(is_temporary: bool) -> Result<(), PostError> {
        Err(PostError { reason: "it failed".into(), is_temporary })
    }

    /// Delivers two events, and returns what the webhook received, the waits, and how many were dropped.
    fn delivered(answers: Vec<Result<(), PostError>>) -> (Vec<String>, Vec<u64>, u64) {
        let (events, script) = (Events::default(), scripted(answers));
        let received = events.subscribe(vec![EventType::Damaged]);
        for subject in ["one", "two"] {
            events.record(SystemTime::UNIX_EPOCH, Event::new(EventType::Damaged, subject));
        }
        events.record(SystemTime::UNIX_EPOCH, Event::new(EventType::TagMoved, "not wanted"));
        let mut waits = Vec::new();
        let mut rest = |wait: Duration| {
            if wait >= WAITS[0] {
                waits.push(wait.as_secs());
            }
            wait != CHECK_INTERVAL
        };
        run(&received, &events, &script, &mut rest);
        let got = script.received.lock().unwrap().clone();
        (got, waits, events.dropped())
    }

    #[test]
    fn events_of_the_wanted_types_are_delivered_in_order() {
        assert_eq!(delivered(vec![]), (vec!["one".into(), "two".into()], vec![], 0));
    }

    #[test]
    fn failures_are_retried_with_growing_waits_and_refusals_are_not() {
        let (got, waits, dropped) = delivered(vec![failure(true), failure(true), Ok(())]);
        assert_eq!((got.join(" ").as_str(), dropped), ("one one one two", 0));
        assert_eq!(waits, [1, 5]);
        let (got, waits, dropped) = delivered(vec![failure(false)]);
        assert_eq!((got.join(" ").as_str(), dropped), ("one two", 1));
        assert_eq!(waits, [0; 0]);
    }

    #[test]
    fn event_is_given_up_after_an_hour() {
        let (got, waits, dropped) = delivered(vec![failure(true); 11]);
        assert_eq!(waits.iter().sum::<u64>(), 3381, "{waits:?}");
        assert_eq!(dropped, 1);
        assert_eq!(got.iter().filter(|subject| *subject == "two").count(), 1);
    }

    #[test]
    fn end_of_the_process_delivers_no_further_event() {
        let (events, script) = (Events::default(), scripted(vec![]));
        let received = events.subscribe(vec![EventType::Damaged]);
        for subject in ["one", "two"] {
            events.record(SystemTime::UNIX_EPOCH, Event::new(EventType::Damaged, subject));
        }
        run(&received, &events, &script, &mut |_| false);
        assert_eq!(*script.received.lock().unwrap(), ["one"]);
    }
}
