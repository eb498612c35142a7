//! Larder.
pub mod oci;
