//! The kubelet: its configuration of credential providers, with `larder credential-provider`. It does not pull images, but
//! gives the container runtime the token of a pod's service account as the password for Larder.

use super::{MARK, Mirror, MirrorError, quoted};

/// Registries by the number of their domain's parts, since a glob of the kubelet matches one of them. Used if no registry
/// is named.
const ANY: [&str; 2] = ["*.*", "*.*.*"];

/// # Errors
/// [`MirrorError::Audience`] if tokens for the audience cannot be requested.
pub(super) fn text(mirror: &Mirror) -> Result<String, MirrorError> {
    let audience = mirror.audience.as_str();
    if audience.trim().is_empty() {
        return Err(MirrorError::Audience);
    }
    let named = mirror.registries.iter().map(|registry| registry.name.as_str());
    let mut images: Vec<&str> = named.collect();
    if images.is_empty() {
        images.extend(ANY);
    }
    let images: String =
        images.iter().map(|image| format!("      - {}\n", quoted(image))).collect();
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
