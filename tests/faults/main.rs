//! Tests that try to refute the promises about the disk: system calls that fail, and crashes that lose unsynced writes.
//!
//! They take minutes and need `ptrace` on x86-64, so `make test` does not run them: see `make faults` and `make crashes`.

// The tracer reads the registers of this architecture.
#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
// `pub` means "for the tests": nothing outside this crate can reach these items.
#![allow(unreachable_pub)]
// Each test reports what it has covered.
#![allow(clippy::print_stdout)]

// The scripted registry and the image samples of the integration tests.
#[path = "../it/support/mod.rs"]
mod support;

// What a client receives from a server that fails.
mod client;
// System calls, decoded.
mod call;
// Programs under ptrace.
mod tracer;
// A cache directory, a registry, and the program.
mod site;
// The n-th system call fails.
mod failing;
// The machine crashes.
mod crashes;
