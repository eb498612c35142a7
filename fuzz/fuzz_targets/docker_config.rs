//! The fuzz target `docker_config`, which is defined in the library.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| larder::fuzzing::run("docker_config", data));
