//! The fuzz target `request_body`, which is defined in the library.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| larder::fuzzing::run("request_body", data));
