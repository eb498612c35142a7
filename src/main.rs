//! Larder.
fn main() {}
