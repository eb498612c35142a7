//! The fuzz target `bundle_files`, which is defined in the library.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| larder::fuzzing::run("bundle_files", data));
