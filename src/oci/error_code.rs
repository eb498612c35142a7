//! Error codes of the distribution-spec, section "Error Codes".

/// A code from the specification's closed list for 4xx answers, and the two that distribution uses
/// for 5xx.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorCode {
    /// The blob is not known here.
    BlobUnknown,
    /// Access to the resource is denied.
    Denied,
    /// The digest is malformed or of an unsupported algorithm.
    DigestInvalid,
    /// The manifest cannot be accepted.
    ManifestInvalid,
    /// The manifest is not known here.
    ManifestUnknown,
    /// The repository name breaks the grammar.
    NameInvalid,
    /// The repository, or the registry named, is not known here.
    NameUnknown,
    /// Too many requests.
    TooManyRequests,
    /// Authentication is required.
    Unauthorized,
    /// Nothing here works right now (503, 504).
    Unavailable,
    /// An error without a code of its own (500, 502).
    Unknown,
    /// The operation is not offered.
    Unsupported,
}

impl ErrorCode {
    /// The code as it stands in an error body.
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
