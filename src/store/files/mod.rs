//! The files below the cache directory: their paths, how they are read, written and replaced, who owns them, and the
//! small records that most of them are. Everything else in the store uses this folder, which knows neither blobs
//! nor names.

pub(super) mod directory_sync;
pub(super) mod faults;
pub(super) mod grants;
pub(super) mod issuer_keys;
pub(super) mod layout;
pub(super) mod links;
pub(super) mod observer;
pub(super) mod outgoing;
pub(super) mod owner;
pub(super) mod private;
pub(super) mod read;
pub(super) mod record;
pub(super) mod write;
