//! `larder credential-provider`.

use std::path::PathBuf;

use argh::{ArgsInfo, FromArgs};

/// Give the kubelet the token of a pod's service account as the password for Larder (serverAuthConfig.oidc). The kubelet
/// runs this command: it reads a CredentialProviderRequest from standard input and prints a CredentialProviderResponse.
/// larder hosts-toml --for kubelet prints the kubelet's configuration.
#[derive(Debug, FromArgs, ArgsInfo)]
#[argh(subcommand, name = "credential-provider")]
pub struct CredentialProvider {
    /// file with a token for requests without one: from kubelets before Kubernetes 1.33, and for pods without a
    /// service account
    #[argh(option)]
    pub token_file: Option<PathBuf>,
}
