//! Test support: servers that fail as scripted, and a client that observes how responses end.
//!
//! | file | provides |
//! | --- | --- |
//! | `registry.rs` | [`FakeRegistry`]: a scripted upstream; its documentation is the manual |
//! | `image.rs` | [`Image`], [`Index`]: content for the registry |
//! | `fault.rs` | [`On`], [`Fault`]: which requests fail, and how |
//! | `gate.rs` | [`Gate`]: holds requests until the test opens it |
//! | `token.rs` | [`TokenServer`]: bearer tokens: issued, refused, revoked |
//! | `issuer.rs` | [`issuer::Site`]: an issuer of identity tokens, and a registry with content for them |
//! | `proxy.rs` | [`FakeProxy`]: a proxy with scripted targets that records its requests |
//! | `aws.rs` | [`FakeAws`]: Amazon's login, key and metadata services |
//! | `script.rs` | [`script`], [`replace_file`]: scripts for Larder to run, files that it reads again |
//! | `tls.rs` | [`Authority`], [`Identity`]: certificates |
//! | `client.rs` | [`Connection`] and one-line requests that report how a response ended |
//! | `response.rs` | [`Response`]: a response and how it ended |
//! | `bundle.rs` | [`bundle::Site`]: archives in the formats of various tools, and a cache to import them into |
//! | `larder.rs` | [`Larder`]: the server under test, in this process |
//! | `process.rs` | [`Process`](process::Process): the program as a separate process |
//! | `openapi.rs` | [`Description`](openapi::Description): `docs/openapi.yaml`, to check responses with |
//! | `site.rs` | [`Site`](site::Site): a cache directory with commands and a server, content of any age |
//! | `bucket/` | [`FakeBucket`]: a scripted S3 server; its documentation is the manual |
//! | `server.rs`, `content.rs` | internals of the fake registry |
//! | `answer.rs`, `port.rs`, `wire.rs` | internals of the fake servers |
//! | `selftest.rs`, `selftest_auth.rs` | tests of the fake registry |
//! | `selftest_bucket.rs`, `selftest_bucket_faults.rs` | tests of the fake bucket |
//! | `source.rs` | the source of the project as text, for `tidy.rs` |
//!
//! Only `larder.rs` and `aws.rs` (for its settings) depend on Larder. Nothing here sleeps for a fixed time: every wait is
//! for an event, and panics with its name after [`PATIENCE`].

// Each test uses a part of this, and no part is used by all tests.
#![allow(dead_code, unused_imports)]
// `pub` means "for the tests": nothing outside this crate can reach these items.
#![allow(unreachable_pub)]

mod answer;
pub mod aws;
pub mod bucket;
pub mod bundle;
pub mod client;
mod content;
mod fault;
mod gate;
mod image;
pub mod issuer;
pub mod larder;
pub mod openapi;
mod port;
pub mod process;
mod proxy;
mod registry;
mod response;
pub mod script;
mod selftest;
mod selftest_auth;
mod selftest_bucket;
mod selftest_bucket_faults;
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
pub use bucket::{FakeBucket, Operation};
pub use client::Connection;
pub use fault::{Fault, On};
pub use gate::Gate;
pub use image::{Blob, Descriptor, Image, Index, Publish, media_type};
pub use port::reserve_port;
pub use proxy::FakeProxy;
pub use registry::FakeRegistry;
pub use response::{End, Head, Response};
pub use script::{replace_file, script};
pub use tls::{Authority, Identity, self_signed};
pub use token::{Account, TokenAnswer, TokenServer};
pub use wire::Recorded;

/// How long to wait for an event before the test fails. Generous, because a busy machine must not fail a test; only
/// failing tests use it up.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// The `sha256:…` digest of `content`.
pub fn digest_of(content: &[u8]) -> String {
    format!("sha256:{}", hex(&Sha256::digest(content)))
}

/// The `sha512:…` digest of `content`.
pub fn sha512_of(content: &[u8]) -> String {
    format!("sha512:{}", hex(&Sha512::digest(content)))
}

/// A valid digest that no content has; `seed` distinguishes several.
pub fn absent_digest(seed: u64) -> String {
    digest_of(format!("absent {seed}").as_bytes())
}

/// `len` pseudo-random bytes, the same for the same `seed` on every machine.
pub fn bytes(len: usize, seed: u64) -> Vec<u8> {
    // splitmix64: the shortest generator whose neighbouring seeds are unrelated.
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

/// Standard base64 with padding, for Basic authentication.
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

/// Takes a lock even if a thread panicked while holding it. That panic is reported separately, and a second one would
/// hide it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
