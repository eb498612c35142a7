//! Runs a program under `ptrace`, and reports each of its system calls to a [`Watch`], which may let it fail.
//!
//! strace can make calls fail too, but it counts them per thread, and its short writes pretend to have written bytes. Here
//! the calls of all threads pass through one place, and a short call is a real call with a smaller length.

use std::collections::HashMap;
use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, JoinHandle};

use nix::errno::Errno;
use nix::sys::ptrace::{self, Options};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::call::Call;
use crate::support::PATIENCE;

/// Sees the system calls of a program.
pub trait Watch: Send {
    /// Called before a call.
    fn before(&mut self, call: &Call) -> Verdict;
    /// Called after it, with its result, which is negative for an error.
    fn after(&mut self, _call: &Call, _result: i64) {}
}

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Run,
    /// It does nothing and returns this error.
    Fail(Errno),
    /// It reads or writes at most half of what was requested, and at least a byte.
    Shorten,
}

/// A running program. Dropping it kills it.
pub struct Program {
    id: Pid,
    log: Arc<Log>,
    tracer: Option<JoinHandle<ExitStatus>>,
    reader: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Log {
    /// Everything that the program has printed to standard error, and whether that is all.
    text: Mutex<(String, bool)>,
    grown: Condvar,
}

impl Program {
    /// Starts a program.
    pub fn start<W: Watch + 'static>(
        program: &str,
        arguments: &[&str],
        watch: &Arc<Mutex<W>>,
    ) -> Program {
        let mut command = Command::new("sh");
        // It stops before it becomes the program, so that the tracer sees the program from its first call.
        command.args(["-c", "kill -STOP $$; exec \"$@\"", "sh", program]).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let (started, on_start) = channel();
        let (watch, log) = (Arc::clone(watch), Arc::<Log>::default());
        // The thread that starts tracing is the only one that may continue it.
        let tracer = thread::spawn(move || trace(&mut command, &started, &watch));
        let (id, output) = on_start.recv().expect("the program starts");
        let reader = thread::spawn({
            let log = Arc::clone(&log);
            move || log.read(output)
        });
        Program { id, log, tracer: Some(tracer), reader: Some(reader) }
    }

    /// Waits until the log contains these words, and returns the rest of that line; `None` if the program ends
    /// first.
    pub fn wait_for(&self, words: &str) -> Option<String> {
        let found = |text: &str| {
            let (_, rest) = text.split_once(words)?;
            rest.split_once('\n').map(|(line, _)| line.to_owned())
        };
        let text = self.log.text.lock().expect("no panic under the lock");
        let waited = self.log.grown.wait_timeout_while(text, 3 * PATIENCE, |(text, is_all)| {
            !*is_all && found(text).is_none()
        });
        let (text, timeout) = waited.expect("no panic under the lock");
        assert!(!timeout.timed_out(), "no {words:?} in the log:\n{}", text.0);
        found(&text.0)
    }

    /// Everything in the log so far.
    pub fn log(&self) -> String {
        self.log.text.lock().expect("no panic under the lock").0.clone()
    }

    pub fn is_running(&self) -> bool {
        self.tracer.as_ref().is_some_and(|tracer| !tracer.is_finished())
    }

    pub fn signal(&self, signal: Signal) {
        // It may have ended already. Its number is not reused before the tracer has ended.
        let _ = kill(self.id, signal);
    }

    /// Sends a signal and waits for the end, or kills it if it does not end. Returns the status and the complete log.
    pub fn stop(self, signal: Signal) -> (ExitStatus, String) {
        self.signal(signal);
        let text = self.log.text.lock().expect("no panic under the lock");
        let ended = self.log.grown.wait_timeout_while(text, 3 * PATIENCE, |(_, is_all)| !*is_all);
        if ended.expect("no panic under the lock").1.timed_out() {
            self.signal(Signal::SIGKILL);
        }
        self.wait()
    }

    /// Waits for the end. Returns the status and the complete log.
    pub fn wait(mut self) -> (ExitStatus, String) {
        let status = self.join().expect("it was not waited for before");
        (status, self.log())
    }

    fn join(&mut self) -> Option<ExitStatus> {
        let status = self.tracer.take()?.join().expect("the tracer does not panic");
        if let Some(reader) = self.reader.take() {
            reader.join().expect("the reader does not panic");
        }
        Some(status)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        if self.tracer.is_some() {
            self.signal(Signal::SIGKILL);
            self.join();
        }
    }
}

impl Log {
    fn read(&self, output: std::process::ChildStderr) {
        let mut output = BufReader::new(output);
        let mut line = Vec::new();
        while output.read_until(b'\n', &mut line).is_ok_and(|read| read > 0) {
            let mut text = self.text.lock().expect("no panic under the lock");
            text.0.push_str(&String::from_utf8_lossy(&line));
            line.clear();
            self.grown.notify_all();
        }
        self.text.lock().expect("no panic under the lock").1 = true;
        self.grown.notify_all();
    }
}

/// A thread that is in a system call.
struct Running {
    call: Call,
    verdict: Verdict,
}

// The loop below waits for it, as the tracer of all its threads.
#[allow(clippy::zombie_processes)]
fn trace<W: Watch>(
    command: &mut Command,
    started: &Sender<(Pid, std::process::ChildStderr)>,
    watch: &Mutex<W>,
) -> ExitStatus {
    let mut child = command.spawn().expect("a shell");
    let id = Pid::from_raw(child.id().cast_signed());
    let stopped = waitpid(id, Some(WaitPidFlag::WUNTRACED));
    assert!(matches!(stopped, Ok(WaitStatus::Stopped(..))), "{stopped:?}");
    let options = Options::PTRACE_O_TRACESYSGOOD
        | Options::PTRACE_O_TRACECLONE
        | Options::PTRACE_O_TRACEFORK
        | Options::PTRACE_O_TRACEVFORK
        | Options::PTRACE_O_TRACEEXEC
        | Options::PTRACE_O_EXITKILL;
    ptrace::seize(id, options).expect("a child can be traced");
    let output = child.stderr.take().expect("it was piped");
    // An error means that the receiver is gone. The kernel kills the program when this thread exits (EXITKILL).
    let _ = started.send((id, output));
    kill(id, Signal::SIGCONT).expect("a child can be continued");
    let mut threads: HashMap<Pid, Option<Running>> = HashMap::new();
    let mut in_call: HashMap<Pid, bool> = HashMap::new();
    loop {
        let flags = WaitPidFlag::__WALL | WaitPidFlag::__WNOTHREAD;
        let (thread, signal) = match waitpid(Pid::from_raw(-1), Some(flags)) {
            Ok(WaitStatus::PtraceSyscall(thread)) => {
                let is_in_call = in_call.entry(thread).or_insert(false);
                *is_in_call = !*is_in_call;
                match *is_in_call {
                    true => {
                        let running = enter(id, thread, watch);
                        threads.insert(thread, running);
                    }
                    false => leave(thread, threads.remove(&thread).flatten(), watch),
                }
                (thread, None)
            }
            Ok(WaitStatus::PtraceEvent(thread, ..)) => (thread, None),
            Ok(WaitStatus::Stopped(thread, signal)) => (thread, Some(signal)),
            Ok(WaitStatus::Exited(ended, code)) if ended == id => {
                return ExitStatus::from_raw(code << 8);
            }
            Ok(WaitStatus::Signaled(ended, signal, _)) if ended == id => {
                return ExitStatus::from_raw(signal as i32);
            }
            Ok(WaitStatus::Exited(ended, _) | WaitStatus::Signaled(ended, ..)) => {
                threads.remove(&ended);
                in_call.remove(&ended);
                continue;
            }
            Ok(_) | Err(Errno::EINTR) => continue,
            Err(error) => panic!("waiting for the program: {error}"),
        };
        // A thread may be killed at any time.
        match ptrace::syscall(thread, signal) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => panic!("continuing a thread: {error}"),
        }
    }
}

/// At the beginning of a call. Returns `None` if the watch does not see it.
fn enter<W: Watch>(process: Pid, thread: Pid, watch: &Mutex<W>) -> Option<Running> {
    let mut registers = ptrace::getregs(thread).ok()?;
    let number = registers.orig_rax.cast_signed();
    let arguments =
        [registers.rdi, registers.rsi, registers.rdx, registers.r10, registers.r8, registers.r9];
    let call = Call::at_entry(process.as_raw(), thread.as_raw(), number, arguments)?;
    let verdict = watch.lock().expect("no panic under the lock").before(&call);
    match verdict {
        Verdict::Run => {}
        // The kernel does not know this call.
        Verdict::Fail(_) => registers.orig_rax = u64::MAX,
        Verdict::Shorten => match call.name {
            "sendfile" => registers.r10 = shortened(registers.r10),
            "copy_file_range" => registers.r8 = shortened(registers.r8),
            // They have a length in the same place. For vectors it is their number.
            _ => registers.rdx = shortened(registers.rdx),
        },
    }
    if verdict != Verdict::Run {
        ptrace::setregs(thread, registers).ok()?;
    }
    Some(Running { call, verdict })
}

fn shortened(length: u64) -> u64 {
    (length / 2).max(length.min(1))
}

/// At the end of a call.
fn leave<W: Watch>(thread: Pid, running: Option<Running>, watch: &Mutex<W>) {
    let Some(running) = running else { return };
    let Ok(mut registers) = ptrace::getregs(thread) else { return };
    if let Verdict::Fail(errno) = running.verdict {
        registers.rax = (-i64::from(errno as i32)).cast_unsigned();
        if ptrace::setregs(thread, registers).is_err() {
            return;
        }
    }
    let result = registers.rax.cast_signed();
    watch.lock().expect("no panic under the lock").after(&running.call, result);
}
