//! The program as a process, and its output.
//!
//! ```ignore
//! let (code, stdout, stderr) = run(&["version"]);
//! let process = Process::serve(directory.path(), &registry);   // stopped when it is dropped
//! ```

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};

use super::FakeRegistry;

pub const LARDER: &str = env!("CARGO_BIN_EXE_larder");

/// The address in this field of a log, text or JSON, which follows this message.
#[track_caller]
pub fn address_in(log: &str, message: &str, field: &str) -> SocketAddr {
    find_address(log, message, field)
        .unwrap_or_else(|| panic!("{message} {field}= is not in:\n{log}"))
}

fn find_address(log: &str, message: &str, field: &str) -> Option<SocketAddr> {
    let text = format!(" {message} {field}=");
    let json = format!("\"message\":\"{message}\",\"{field}\":\"");
    let (_, rest) = log.split_once(&text).or_else(|| log.split_once(&json))?;
    let address = rest.split([' ', '"', '\n']).next()?;
    Some(address.parse().expect("an address"))
}

pub fn larder(arguments: &[&str]) -> Command {
    let mut command = Command::new(LARDER);
    command.args(arguments).stdin(Stdio::null());
    command
}

/// Runs a command that must exit by itself.
pub fn run(arguments: &[&str]) -> (Option<i32>, String, String) {
    let Output { status, stdout, stderr } = larder(arguments).output().expect("the program starts");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("it prints UTF-8");
    (status.code(), text(stdout), text(stderr))
}

/// A process that is stopped when it is dropped.
pub struct Process {
    child: Child,
    pub address: SocketAddr,
    /// The part of the log that has not been read.
    log: BufReader<std::process::ChildStderr>,
    /// The part of the log that has been read, starting with the lines before the server was ready.
    pub banner: String,
}

impl Process {
    /// Serves this directory. Requests without a registry name address `registry`.
    pub fn serve(directory: &Path, registry: &FakeRegistry) -> Process {
        Process::serve_by(Command::new(LARDER), directory, registry, &[])
    }

    /// As [`Process::serve`], with additional flags of `serve`.
    pub fn serve_and(directory: &Path, registry: &FakeRegistry, flags: &[&str]) -> Process {
        Process::serve_by(Command::new(LARDER), directory, registry, flags)
    }

    /// As [`Process::serve`], with files limited to about 150 kB, even for root.
    pub fn serve_small_files(directory: &Path, registry: &FakeRegistry) -> Process {
        let mut shell = Command::new("sh");
        // With the signal ignored, a write beyond the limit fails. The unit is 512 or 1024 bytes, by shell.
        shell.args(["-c", "trap '' XFSZ; ulimit -f 150; exec \"$@\"", "sh", LARDER]);
        Process::serve_by(shell, directory, registry, &[])
    }

    fn serve_by(
        mut command: Command,
        directory: &Path,
        registry: &FakeRegistry,
        flags: &[&str],
    ) -> Process {
        let host = registry.host();
        let entry = format!("{{name: \"{host}\", scheme: http}}");
        Process::configure(&mut command, directory, &host, &entry);
        Process::spawn(command.args(flags))
    }

    /// Serves this directory with one entry of `registries` and with environment variables.
    pub fn serve_with(
        directory: &Path,
        host: &str,
        entry: &str,
        variables: &[(&str, &str)],
    ) -> Process {
        let mut command = Command::new(LARDER);
        Process::configure(&mut command, directory, host, entry);
        Process::spawn(command.envs(variables.iter().copied()))
    }

    /// Serves this directory with a configuration file, see [`Process::put_config`].
    pub fn serve_file(directory: &Path, text: &str) -> Process {
        let mut process = Process::begin_file(directory, text);
        process.wait_until_it_listens();
        process
    }

    /// As [`Process::serve_file`], without waiting until the server is ready.
    pub fn begin_file(directory: &Path, text: &str) -> Process {
        Process::put_config(directory, text);
        let (config, cache) = (Process::config(directory), directory.join("cache"));
        let mut command = Command::new(LARDER);
        command.arg("--config-file").arg(config).arg("--image-path").arg(cache);
        Process::begin(command.args(["serve", "--port", "0", "--host", "127.0.0.1"]))
    }

    /// Serves this directory with flags only.
    pub fn serve_without_file(directory: &Path) -> Process {
        let mut command = Command::new(LARDER);
        command.arg("--image-path").arg(directory.join("cache"));
        Process::spawn(command.args(["serve", "--port", "0", "--host", "127.0.0.1"]))
    }

    /// Writes the configuration file of [`Process::serve_file`].
    pub fn put_config(directory: &Path, text: &str) {
        fs::write(Process::config(directory), text).expect("a file can be written");
    }

    fn config(directory: &Path) -> PathBuf {
        directory.join("larder.yaml")
    }

    fn configure(command: &mut Command, directory: &Path, host: &str, entry: &str) {
        let config = directory.join("larder.yaml");
        let text = format!("logLevel: debug\nfsync: false\nregistries:\n  - {entry}\n");
        fs::write(&config, text).expect("a file can be written");
        let (config, cache) = (config.display().to_string(), directory.join("cache"));
        command.args(["--config-file", &config, "--image-path"]).arg(cache).args([
            "serve",
            "--port",
            "0",
            "--host",
            "127.0.0.1",
            "--default-ns",
            host,
        ]);
    }

    fn spawn(command: &mut Command) -> Process {
        let mut process = Process::begin(command);
        process.wait_until_it_listens();
        process
    }

    /// Starts a command whose standard error is its log.
    pub fn begin(command: &mut Command) -> Process {
        let command = command.stdin(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the program starts");
        let log = BufReader::new(child.stderr.take().expect("it was piped"));
        let address = SocketAddr::from(([127, 0, 0, 1], 0));
        Process { child, address, log, banner: String::new() }
    }

    pub fn wait_until_it_listens(&mut self) {
        loop {
            let mut line = String::new();
            self.log.read_line(&mut line).expect("its log can be read");
            self.banner.push_str(&line);
            assert!(!line.is_empty(), "the server exited before it was ready:\n{}", self.banner);
            if let Some(address) = find_address(&line, "listening", "listen") {
                self.address = address;
                return;
            }
        }
    }

    /// Reads the log up to the next line that contains these words, and returns the lines read.
    pub fn wait_until_it_logs(&mut self, words: &str) -> String {
        let mut line = String::new();
        while !line.contains(words) {
            line.clear();
            self.log.read_line(&mut line).expect("its log can be read");
            assert!(!line.is_empty(), "it ended without saying {words}:\n{}", self.banner);
            self.banner.push_str(&line);
        }
        line
    }

    pub fn id(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, name: &str) {
        let id = self.child.id().to_string();
        let sent = Command::new("kill").args([&format!("-{name}"), &id]).status();
        assert!(sent.expect("the program kill").success());
    }

    /// The exit status and the complete log.
    pub fn wait(mut self) -> (ExitStatus, String) {
        let mut log = std::mem::take(&mut self.banner);
        self.log.read_to_string(&mut log).expect("its log can be read");
        (self.child.wait().expect("it was started"), log)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // The process may have exited already. If the test fails, it must not keep running.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
