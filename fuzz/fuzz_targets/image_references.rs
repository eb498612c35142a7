//! The fuzz target `image_references`, which is defined in the library.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| larder::fuzzing::run("image_references", data));
