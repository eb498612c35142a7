//! Checks of the configured endpoints, for `larder check`.

use super::registries::Registries;
use crate::oci::{Reference, Repository, Upstream};
use crate::upstream::check::EndpointCheck;
use crate::upstream::client::Extent;
use crate::upstream::error::UpstreamError;

/// A registry that stands for all of them when a parent is checked without an image.
const ANY_REGISTRY: &str = "docker.io";

impl Registries {
    /// The registries in the configuration, sorted.
    pub fn listed(&self) -> Vec<Upstream> {
        self.table().listed()
    }

    /// Tries everything that a pull needs at each endpoint of a registry, with an image if one is given; then also at the
    /// parents. Uses connections and tokens of its own, and no circuit breakers. Blocks.
    ///
    /// # Errors
    /// [`UpstreamErrorKind::NotAllowed`](crate::upstream::UpstreamErrorKind::NotAllowed) if the registry may not be dialled.
    pub fn check(
        &self,
        upstream: &Upstream,
        image: Option<(&Repository, &Reference)>,
    ) -> Result<Vec<EndpointCheck>, UpstreamError> {
        let (mut endpoints, parents) = {
            let table = self.table();
            (table.fresh(upstream)?, table.fresh_parents(upstream))
        };
        if image.is_some() {
            endpoints.extend(parents);
        }
        Ok(endpoints.iter().map(|endpoint| endpoint.check(image, Extent::Sample)).collect())
    }

    /// Pulls an image from each endpoint of a registry, and compares all of it with its digests. Stores nothing. Blocks.
    ///
    /// # Errors
    /// [`UpstreamErrorKind::NotAllowed`](crate::upstream::UpstreamErrorKind::NotAllowed) if the registry may not be dialled.
    pub fn check_pull(
        &self,
        upstream: &Upstream,
        image: (&Repository, &Reference),
    ) -> Result<Vec<EndpointCheck>, UpstreamError> {
        let endpoints = self.table().fresh(upstream)?;
        Ok(endpoints.iter().map(|endpoint| endpoint.check(Some(image), Extent::All)).collect())
    }

    /// Checks the parents; with an image that one of their clients has pulled, also the login and a download. That a parent
    /// does not serve it is a warning only, since it need not. Blocks.
    pub fn check_parents(
        &self,
        pulled: Option<(&Upstream, &Repository, &Reference)>,
    ) -> Vec<EndpointCheck> {
        let any: Option<Upstream> = ANY_REGISTRY.parse().ok();
        let Some(upstream) = pulled.map(|(upstream, ..)| upstream).or(any.as_ref()) else {
            return Vec::new();
        };
        let image = pulled.map(|(_, repository, reference)| (repository, reference));
        let parents = self.table().fresh_parents(upstream);
        let checks = parents.iter().map(|parent| parent.check(image, Extent::Sample));
        checks.map(EndpointCheck::with_image_as_example).collect()
    }
}
