//! Files for Larder: scripts that it runs, and files that it reads again.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

/// Writes an executable shell script.
///
/// A child process writes it. Otherwise a program that another test starts meanwhile could inherit the open file, and
/// the system refuses to execute a file that is open for writing.
pub fn script(path: &Path, text: &str) {
    let mut writer = Command::new("sh")
        .args(["-c", r#"cat > "$0" && chmod +x "$0""#])
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .expect("a shell");
    let mut stdin = writer.stdin.take().expect("standard input is a pipe");
    stdin.write_all(format!("#!/bin/sh\n{text}\n").as_bytes()).expect("the shell reads");
    drop(stdin);
    assert!(writer.wait().expect("the shell ends").success());
}

/// Replaces a file, so that it differs even if the clock of the file system is coarse.
pub fn replace_file(path: &Path, text: &str) {
    let new = path.with_file_name("new");
    fs::write(&new, text).expect("a file can be written");
    fs::rename(new, path).expect("a file can be replaced");
}
