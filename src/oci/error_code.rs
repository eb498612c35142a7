//! Error codes of the distribution-spec, section "Error Codes".

/// The codes of the specification for 4xx responses, and the two that distribution uses for 5xx responses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    /// The registry does not have the blob.
    BlobUnknown,
    /// Access to the resource is denied.
    Denied,
    /// The digest is malformed, or its algorithm is not supported.
    DigestInvalid,
    /// The manifest is not acceptable.
    ManifestInvalid,
    /// The registry does not have the manifest.
    ManifestUnknown,
    /// The repository name violates the grammar.
    NameInvalid,
    /// The repository, or the upstream registry in its name, is unknown.
    NameUnknown,
    /// Too many requests.
    TooManyRequests,
    /// Authentication is required.
    Unauthorized,
    /// The service is temporarily unavailable (503, 504).
    Unavailable,
    /// An error without a specific code (500, 502).
    Unknown,
    /// The operation is not supported.
    Unsupported,
}

impl ErrorCode {
    /// The code in an error body.
    pub fn as_str(self) -> &'static str {
        match self {
            ErrorCode::BlobUnknown => "BLOB_UNKNOWN",
            ErrorCode::Denied => "DENIED",
            ErrorCode::DigestInvalid => "DIGEST_INVALID",
            ErrorCode::ManifestInvalid => "MANIFEST_INVALID",
            ErrorCode::ManifestUnknown => "MANIFEST_UNKNOWN",
            ErrorCode::NameInvalid => "NAME_INVALID",
            ErrorCode::NameUnknown => "NAME_UNKNOWN",
            ErrorCode::TooManyRequests => "TOOMANYREQUESTS",
            ErrorCode::Unauthorized => "UNAUTHORIZED",
            ErrorCode::Unavailable => "UNAVAILABLE",
            ErrorCode::Unknown => "UNKNOWN",
            ErrorCode::Unsupported => "UNSUPPORTED",
        }
    }
}
