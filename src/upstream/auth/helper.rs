//! Credential helpers: `docker-credential-*` programs, run with `get`.
//!
//! The protocol is docker's (docker-credential-helpers): the registry on standard input, JSON on standard output. A
//! helper is a foreign program: it may be missing, hang, or print anything without end. Therefore its time and output
//! are bounded, its output is never quoted (it may be the secret), and it is killed together with the processes that it
//! has started. Its standard error is Larder's, as with docker.

use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};
use serde::Deserialize;

use super::cached_login::Fetched;
use super::credentials::{HelperSettings, IDENTITY_TOKEN_USER, Login, LoginError, Secret};
use crate::oci::Upstream;
use crate::units::duration;

/// The largest output of a helper, in bytes: larger than any token.
const OUTPUT_BYTES_MAX: usize = 64 * 1024;
/// The text by which helpers report, and docker recognises, that they have no login for a registry.
const NOT_FOUND: &str = "credentials not found";
/// How long that is cached: a user may be about to log in.
const NOT_FOUND_KEPT: Duration = Duration::from_secs(60);

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Answer {
    username: String,
    secret: String,
}

/// Why a run failed.
enum RunError {
    NotStarted(io::Error),
    TimedOut,
    TooLong,
    Broken(io::Error),
}

/// Runs a helper to get the login for a registry.
///
/// # Errors
/// Which helper failed, how, and what to do.
pub(super) fn login(settings: &HelperSettings, upstream: &Upstream) -> Result<Fetched, LoginError> {
    let command = settings.program.command();
    let server = server(upstream);
    let (status, output) = run(command, server, settings.timeout)
        .map_err(|error| explain(error, command, settings.timeout))?;
    let text = String::from_utf8_lossy(&output);
    if !status.success() {
        return match text.to_ascii_lowercase().contains(NOT_FOUND) {
            true => Ok(Fetched { login: None, lifetime: NOT_FOUND_KEPT }),
            false => Err(unavailable(format!(
                "the credential helper {command} failed ({status}); \
                 try: echo {server} | {command} get"
            ))),
        };
    }
    let login = parse(&output).ok_or_else(|| {
        unavailable(format!(
            "the credential helper {command} did not print JSON with Username and Secret; \
             try: echo {server} | {command} get"
        ))
    })?;
    Ok(Fetched { login: Some(login), lifetime: settings.expiry })
}

/// The name that docker passes to helpers for a registry.
fn server(upstream: &Upstream) -> &str {
    match upstream.is_docker_hub() {
        true => "https://index.docker.io/v1/",
        false => upstream.as_str(),
    }
}

pub(super) fn parse(output: &[u8]) -> Option<Login> {
    let Answer { username, secret } = serde_json::from_slice(output).ok()?;
    match username.as_str() {
        _ if secret.is_empty() => None,
        IDENTITY_TOKEN_USER => Some(Login::Identity(Secret::new(secret))),
        _ => Some(Login::Basic { user: username, password: Secret::new(secret) }),
    }
}

fn explain(error: RunError, command: &str, timeout: Duration) -> LoginError {
    match error {
        RunError::NotStarted(error) if error.kind() == io::ErrorKind::NotFound => {
            let reason = format!(
                "the credential helper {command} was not found: install it, or give its absolute path"
            );
            LoginError::Unusable(reason.into())
        }
        RunError::NotStarted(error) => {
            let reason = format!("the credential helper {command} cannot be started: {error}");
            LoginError::Unusable(reason.into())
        }
        RunError::TimedOut => unavailable(format!(
            "the credential helper {command} did not finish within {} and was killed",
            duration(timeout)
        )),
        RunError::TooLong => unavailable(format!(
            "the credential helper {command} printed more than {OUTPUT_BYTES_MAX} bytes and was killed"
        )),
        RunError::Broken(error) => {
            unavailable(format!("cannot monitor the credential helper {command}: {error}"))
        }
    }
}

fn unavailable(reason: String) -> LoginError {
    LoginError::Unavailable(reason.into())
}

/// Runs `command get` with `input` until it exits or the timeout expires.
fn run(command: &str, input: &str, timeout: Duration) -> Result<(ExitStatus, Vec<u8>), RunError> {
    let deadline = Instant::now() + timeout;
    let child = Command::new(command)
        .arg("get")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        // Its own process group, so that it can be killed together with its children.
        .process_group(0)
        .spawn()
        .map_err(RunError::NotStarted)?;
    let mut running = Running { child, is_reaped: false };
    if let Some(mut stdin) = running.child.stdin.take() {
        // A name fits into the buffer of a pipe, so this does not block. An error means that the helper has exited or
        // does not read its input; its output decides. Dropping `stdin` closes the pipe.
        let _ = stdin.write_all(input.as_bytes());
    }
    let output = running.output(deadline)?;
    let status = running.child.wait().map_err(RunError::Broken)?;
    running.is_reaped = true;
    Ok((status, output))
}

/// A child process that is killed when this is dropped.
struct Running {
    child: Child,
    is_reaped: bool,
}

impl Running {
    /// The child's output until it exits. Does not wait for the end of the output, since processes that it has started
    /// may keep the pipe open.
    fn output(&mut self, deadline: Instant) -> Result<Vec<u8>, RunError> {
        let pid = Pid::from_child(&self.child);
        let ended = pidfd_open(pid, PidfdFlags::empty()).map_err(broken)?;
        // The child was started with a piped standard output, which is taken once.
        let mut stdout = self.child.stdout.take().expect("standard output is a pipe");
        let (mut output, mut is_open) = (Vec::new(), true);
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let mut fds = [PollFd::new(&ended, PollFlags::IN), PollFd::new(&stdout, PollFlags::IN)];
            let watched = if is_open { &mut fds[..] } else { &mut fds[..1] };
            wait(watched, left)?;
            let (has_ended, has_output) = (is_ready(&fds[0]), is_open && is_ready(&fds[1]));
            if has_output {
                is_open = read_chunk(&mut stdout, &mut output)?;
            } else if has_ended {
                return Ok(output);
            } else if left.is_zero() {
                return Err(RunError::TimedOut);
            }
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.is_reaped {
            // The child was not reaped, so its process id is still valid. An error means that the group is gone already.
            let _ = kill_process_group(Pid::from_child(&self.child), Signal::KILL);
            let _ = self.child.wait();
        }
    }
}

/// Reads the available output. Returns whether more may follow.
fn read_chunk(stdout: &mut ChildStdout, output: &mut Vec<u8>) -> Result<bool, RunError> {
    let mut chunk = [0; 4096];
    let length = stdout.read(&mut chunk).map_err(RunError::Broken)?;
    output.extend_from_slice(&chunk[..length]);
    if output.len() > OUTPUT_BYTES_MAX {
        return Err(RunError::TooLong);
    }
    Ok(length > 0)
}

fn wait(fds: &mut [PollFd<'_>], left: Duration) -> Result<(), RunError> {
    let left = Timespec::try_from(left).map_err(|_| broken(rustix::io::Errno::INVAL))?;
    match poll(fds, Some(&left)) {
        Ok(_) | Err(rustix::io::Errno::INTR) => Ok(()),
        Err(error) => Err(broken(error)),
    }
}

fn is_ready(fd: &PollFd<'_>) -> bool {
    !fd.revents().is_empty()
}

fn broken(error: rustix::io::Errno) -> RunError {
    RunError::Broken(error.into())
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;

    /// Creates a helper that is a shell script. A child process writes it: otherwise a helper that another test starts
    /// at this moment could inherit the open file, and a file that is open for writing cannot be run.
    fn script(directory: &Path, text: &str) -> PathBuf {
        let path = directory.join("helper");
        let mut writer = Command::new("sh")
            .args(["-c", r#"cat > "$0" && chmod +x "$0""#])
            .arg(&path)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let text = format!("#!/bin/sh\n{text}\n");
        writer.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
        assert!(writer.wait().unwrap().success());
        path
    }

    fn login_within(path: &Path, registry: &str, timeout: Duration) -> Result<Fetched, LoginError> {
        let program = path.to_str().unwrap().parse().unwrap();
        let settings = HelperSettings { timeout, ..HelperSettings::of(program) };
        login(&settings, &registry.parse().unwrap())
    }

    fn run_script(text: &str) -> Result<Option<Login>, LoginError> {
        let directory = tempfile::tempdir().unwrap();
        let path = script(directory.path(), text);
        login_within(&path, "quay.io", Duration::from_secs(10)).map(|got| got.login)
    }

    fn basic(user: &str, password: &str) -> Login {
        Login::Basic { user: user.into(), password: Secret::new(password) }
    }

    #[test]
    fn a_helper_gets_the_registry_name_that_docker_passes() {
        for (registry, server) in
            [("docker.io", "https://index.docker.io/v1/"), ("quay.io", "quay.io")]
        {
            let directory = tempfile::tempdir().unwrap();
            let text = r#"printf '{"ServerURL":"x","Username":"%s","Secret":"%s"}' "$1" "$(cat)""#;
            let path = script(directory.path(), text);
            let got = login_within(&path, registry, Duration::from_secs(10)).unwrap();
            assert_eq!(got.login, Some(basic("get", server)));
        }
    }

    #[test]
    fn helper_answers() {
        let identity = Login::Identity(Secret::new("refresh"));
        for (text, expected) in [
            (r#"echo '{"Username":"<token>","Secret":"refresh"}'"#, Some(identity)),
            (r#"echo '{"Username":"u","Secret":"p"}'; exec 1>&-; exit 0"#, Some(basic("u", "p"))),
            ("echo credentials not found in native keychain; exit 1", None),
        ] {
            assert_eq!(run_script(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn the_output_of_a_broken_helper_is_never_quoted() {
        for (text, words) in [
            (r#"echo '{"Username":"u","Secret":"hunter2"}'; exit 3"#, "exit status: 3"),
            ("echo hunter2", "did not print JSON"),
            (r#"echo '{"Username":"hunter2"}'"#, "did not print JSON"),
            (r#"echo '{"Username":"hunter2","Secret":""}'"#, "did not print JSON"),
            ("", "did not print JSON"),
            ("yes hunter2", "more than 65536 bytes"),
            ("kill -9 $$", "signal: 9"),
        ] {
            let error = run_script(text).unwrap_err();
            assert!(matches!(error, LoginError::Unavailable(_)), "{text}: {error:?}");
            let reason = error.reason();
            assert!(reason.contains(words) && !reason.contains("hunter2"), "{text}: {reason}");
        }
    }

    #[test]
    fn the_error_names_a_missing_helper() {
        let name = "/nonexistent/docker-credential-x";
        let error = login_within(Path::new(name), "quay.io", Duration::ZERO).err().unwrap();
        assert!(matches!(error, LoginError::Unusable(_)) && error.reason().contains(name));
    }

    #[test]
    fn a_helper_that_hangs_is_killed_with_its_children() {
        let directory = tempfile::tempdir().unwrap();
        let gate = directory.path().join("gate");
        assert!(Command::new("mkfifo").arg(&gate).status().unwrap().success());
        let pid = directory.path().join("pid");
        // The inner `cat` waits for a writer that never comes, and holds standard output open.
        let text = format!("echo $$ > {}; cat {} & wait", pid.display(), gate.display());
        let path = script(directory.path(), &text);
        let error = login_within(&path, "quay.io", Duration::from_millis(200)).err().unwrap();
        assert!(error.reason().contains("was killed"), "{error:?}");
        let pid = std::fs::read_to_string(pid).unwrap_or_default();
        // The helper may have been killed before it wrote its process id.
        let process = Path::new("/proc").join(pid.trim());
        assert!(pid.is_empty() || !process.exists(), "{process:?} was not reaped");
    }

    #[test]
    fn children_that_a_helper_leaves_running_are_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let gate = directory.path().join("gate");
        assert!(Command::new("mkfifo").arg(&gate).status().unwrap().success());
        let text =
            format!(r#"cat {} & echo '{{"Username":"u","Secret":"p"}}'; exit 0"#, gate.display());
        let path = script(directory.path(), &text);
        let got = login_within(&path, "quay.io", Duration::from_secs(10)).unwrap();
        assert_eq!(got.login, Some(basic("u", "p")));
        // Lets the `cat` that is still running exit.
        assert!(std::fs::OpenOptions::new().write(true).open(&gate).is_ok());
    }
}
