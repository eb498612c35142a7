//! Integration tests, one module a subject.

// The scripted registry, the raw client, and their own tests.
mod support;
// House rules, checked by a program.
mod tidy;
