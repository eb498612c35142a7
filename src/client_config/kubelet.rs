//! The kubelet: its configuration of credential providers, with `larder credential-provider`. It does not pull images, but
//! gives the container runtime the token of a pod's service account as the password for Larder.

use super::{MARK, Mirror, MirrorError, quoted};

/// # Errors
/// [`MirrorError::Audience`] if tokens for the audience cannot be requested, [`MirrorError::NoRegistry`] without a registry:
/// whoever gets a token can use it here.
pub(super) fn text(mirror: &Mirror) -> Result<String, MirrorError> {
    let audience = mirror.audience.as_str();
    if audience.trim().is_empty() {
        return Err(MirrorError::Audience);
    }
    if mirror.registries.is_empty() {
        return Err(MirrorError::NoRegistry);
    }
    let names = mirror.registries.iter().map(|registry| registry.name.as_str());
    let images: String = names.map(|name| format!("      - {}\n", quoted(name))).collect();
    let audience = quoted(audience);
    Ok(format!(
        "{MARK}, which overwrites this file. Kubernetes 1.34 or newer; 1.33 needs the\n\
         # feature gate KubeletServiceAccountTokenForCredentialProviders, and the line cacheType removed.\n\
         #\n\
         # Start the kubelet with\n\
         #   --image-credential-provider-config=THIS FILE\n\
         #   --image-credential-provider-bin-dir=DIRECTORY, which contains larder\n\
         # and let kubelets request tokens for this audience: a ClusterRole, bound to the group system:nodes, with\n\
         #   apiGroups: [\"\"], resources: [{audience}], verbs: [request-serviceaccounts-token-audience]\n\
         #\n\
         # matchImages should have only registries that the nodes reach through Larder alone (--no-fallback): others refuse\n\
         # the token, also for public images.\n\
         apiVersion: kubelet.config.k8s.io/v1\n\
         kind: CredentialProviderConfig\n\
         providers:\n\
         \x20 - name: larder\n\
         \x20   apiVersion: credentialprovider.kubelet.k8s.io/v1\n\
         \x20   args:\n\
         \x20     - credential-provider\n\
         \x20   matchImages:\n\
         {images}\
         \x20   defaultCacheDuration: 0s\n\
         \x20   tokenAttributes:\n\
         \x20     serviceAccountTokenAudience: {audience}\n\
         \x20     cacheType: Token\n\
         \x20     requireServiceAccount: true\n"
    ))
}
