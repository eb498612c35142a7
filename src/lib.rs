//! Larder.
pub mod flight;
pub mod oci;
pub mod store;
pub mod upstream;
