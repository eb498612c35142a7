//! The fuzz target `bundle_tar`, which is defined in the library.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| larder::fuzzing::run("bundle_tar", data));
