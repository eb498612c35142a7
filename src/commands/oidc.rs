//! The issuers of `serverAuthConfig.oidc`: their keys come from the network, and are kept in the cache directory.

use std::sync::Arc;

use crate::oidc::{self, Issuers, KeySource, OidcError};
use crate::store::Store;
use crate::upstream::{IssuerClient, IssuerUrl, ProxySettings};

/// Starts the issuers. `previous` are those that they replace.
///
/// # Errors
/// [`OidcError`].
pub(super) fn load(
    settings: &oidc::Settings,
    previous: Option<&Issuers>,
    proxies: &ProxySettings,
    store: &Store,
) -> Result<Issuers, OidcError> {
    let proxies = Arc::new(proxies.clone());
    Issuers::load(settings, previous, |url, discovery| {
        let client = IssuerClient::new(url.clone(), discovery.clone(), &proxies);
        Box::new(Discovered { url: url.clone(), client, store: store.clone() })
    })
}

struct Discovered {
    url: IssuerUrl,
    client: IssuerClient,
    store: Store,
}

impl KeySource for Discovered {
    fn fetch(&self) -> Result<Vec<u8>, String> {
        self.client.keys().map_err(|error| error.to_string())
    }

    fn stored(&self) -> Option<Vec<u8>> {
        self.store.issuer_keys(self.url.as_str())
    }

    fn store(&self, keys: &[u8]) {
        // A cache that cannot be written still serves; then the keys are fetched again after a restart.
        if let Err(error) = self.store.put_issuer_keys(self.url.as_str(), keys) {
            log::warn!(
                issuer = self.url.as_str(), error:%;
                "serverAuthConfig.oidc: cannot store the keys of an issuer"
            );
        }
    }
}
