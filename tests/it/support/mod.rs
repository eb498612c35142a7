//! What the tests stand on: a registry that misbehaves on request, and a client that looks closely.
//!
//! | file | what it gives |
//! | --- | --- |
//! | `registry.rs` | [`FakeRegistry`]: scripted upstream; its doc is the manual |
//! | `image.rs` | [`Image`], [`Index`]: content to put into it |
//! | `fault.rs` | [`On`], [`Fault`]: which request goes wrong, and how |
//! | `gate.rs` | [`Gate`]: hold requests until the test says go |
//! | `token.rs` | [`TokenServer`]: bearer tokens, issued, refused, revoked |
//! | `proxy.rs` | [`FakeProxy`]: tunnels to where the test says, and keeps a book |
//! | `aws.rs` | [`FakeAws`]: Amazon's login, keys and metadata services |
//! | `script.rs` | [`script`]: programs for Larder to run |
//! | `tls.rs` | [`Authority`], [`Identity`]: self-made certificates |
//! | `client.rs` | [`Connection`] and one-line requests that judge how an answer ended |
//! | `response.rs` | [`Response`]: an answer, and how it ended |
//! | `bundle.rs` | [`bundle::Site`]: tars as tools write them, a cache to import them into |
//! | `larder.rs` | [`Larder`]: the server under test, in this process |
//! | `process.rs` | [`Process`](process::Process): the program as a process of its own |
//! | `openapi.rs` | [`Description`](openapi::Description): what the management API says of itself |
//! | `site.rs` | [`Site`](site::Site): a cache directory, commands and a server on it, its age |
//! | `server.rs`, `content.rs`, `answer.rs`, `wire.rs` | the fake registry's inside |
//! | `selftest.rs`, `selftest_auth.rs` | the fake registry's own tests |
//! | `source.rs` | the project's source as text, for `tidy.rs` |
//!
//! Nothing here but `larder.rs` and `aws.rs`, for its settings, knows Larder. Nothing here sleeps: waits are for an event, and end in
//! a panic that says what was awaited after [`PATIENCE`].

// Every test uses a part, and no part is used by every test.
#![allow(dead_code, unused_imports)]
// `pub` says "for the tests"; there is no further outside that it could be reachable from.
#![allow(unreachable_pub)]

mod answer;
pub mod aws;
pub mod bundle;
pub mod client;
mod content;
mod fault;
mod gate;
mod image;
pub mod larder;
pub mod openapi;
pub mod process;
mod proxy;
mod registry;
mod response;
pub mod script;
mod selftest;
mod selftest_auth;
mod server;
pub mod site;
pub mod source;
mod tls;
mod token;
mod wire;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sha2::{Digest as _, Sha256, Sha512};

pub use self::larder::Larder;
pub use aws::FakeAws;
pub use client::Connection;
pub use fault::{Fault, On};
pub use gate::Gate;
pub use image::{Blob, Descriptor, Image, Index, Publish, media_type};
pub use proxy::FakeProxy;
pub use registry::{FakeRegistry, reserve_port};
pub use response::{End, Head, Response};
pub use script::script;
pub use tls::{Authority, Identity, self_signed};
pub use token::{TokenAnswer, TokenServer};
pub use wire::Recorded;

/// How long anything here waits for an event before it calls the test failed. Generous, because a
/// loaded machine must not fail a test; it is only ever used up by a test that fails.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// The `sha256:…` digest of `content`.
pub fn digest_of(content: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(content)))
}

/// The `sha512:…` digest of `content`.
pub fn sha512_of(content: &[u8]) -> String {
    format!("sha512:{}", hex(&Sha512::digest(content)))
}

/// A valid digest that no content of any test has; `seed` tells several apart.
pub fn absent_digest(seed: u64) -> String {
    digest_of(format!("absent {seed}").as_bytes())
}

/// `len` bytes that look random, and are the same for the same `seed` on every machine.
pub fn bytes(len: usize, seed: u64) -> Vec<u8> {
    // splitmix64: the shortest generator in which neighbouring seeds have nothing in common.
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = state;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^ (word >> 31)
    };
    let mut out = Vec::with_capacity(len + 8);
    while out.len() < len {
        out.extend_from_slice(&next().to_le_bytes());
    }
    out.truncate(len);
    out
}

/// Standard base64 with padding, as Basic authentication wants it.
pub fn base64(input: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(input.len().div_ceil(3) * 4);
    for group in input.chunks(3) {
        let word = group.iter().fold(0u32, |word, byte| (word << 8) | u32::from(*byte));
        let word = word << (8 * (3 - group.len()));
        for position in 0..4 {
            let letter = ALPHABET[(word >> (18 - 6 * position)) as usize & 63];
            out.push(if position <= group.len() { char::from(letter) } else { '=' });
        }
    }
    out
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Takes a lock even if a thread panicked while it held it: that panic is reported by itself, and a
/// second one from here would only hide it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
