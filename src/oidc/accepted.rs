//! The tokens that were accepted, so that the many requests of a pull verify one signature.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::SystemTime;

use super::Identity;
use crate::oci::Digest;

/// The most remembered tokens of an issuer: one for each pod of a large cluster that pulls at the moment. Each entry has
/// about 200 bytes.
const ACCEPTED_MAX: usize = 4096;

/// Accepted tokens by their digests. The oldest are forgotten first.
#[derive(Default)]
pub(super) struct Accepted {
    by_token: HashMap<Digest, (Arc<Identity>, SystemTime)>,
    in_order: VecDeque<Digest>,
}

impl Accepted {
    /// The identity of a token that is still valid.
    pub(super) fn recall(&self, token: &Digest, now: SystemTime) -> Option<Arc<Identity>> {
        let (identity, ends) = self.by_token.get(token)?;
        (now < *ends).then(|| Arc::clone(identity))
    }

    /// Remembers a token until its end.
    pub(super) fn remember(&mut self, token: Digest, identity: Arc<Identity>, ends: SystemTime) {
        if self.by_token.insert(token, (identity, ends)).is_some() {
            return;
        }
        if self.in_order.len() == ACCEPTED_MAX
            && let Some(oldest) = self.in_order.pop_front()
        {
            self.by_token.remove(&oldest);
        }
        self.in_order.push_back(token);
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, UNIX_EPOCH};

    use super::*;
    use crate::oci::Algorithm;

    #[test]
    fn the_number_of_remembered_tokens_is_bounded() {
        let mut accepted = Accepted::default();
        let digest = |number: usize| Digest::of(Algorithm::Sha256, &number.to_le_bytes());
        let identity = Arc::new(Identity { user: "ann".into(), repositories: Arc::default() });
        let ends = UNIX_EPOCH + Duration::from_secs(10);
        for number in 0..ACCEPTED_MAX + 5 {
            accepted.remember(digest(number), Arc::clone(&identity), ends);
            accepted.remember(digest(number), Arc::clone(&identity), ends);
        }
        assert_eq!(
            (accepted.by_token.len(), accepted.in_order.len()),
            (ACCEPTED_MAX, ACCEPTED_MAX)
        );
        assert!(accepted.recall(&digest(4), UNIX_EPOCH).is_none());
        assert!(accepted.recall(&digest(5), UNIX_EPOCH).is_some());
        assert!(accepted.recall(&digest(5), ends).is_none(), "it has expired");
    }
}
