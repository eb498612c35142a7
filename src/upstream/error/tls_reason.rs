//! The texts of rustls's errors, with the setting to change.

use std::time::{Duration, UNIX_EPOCH};

use rustls::{AlertDescription, CertificateError, InvalidMessage};
use time::OffsetDateTime;

/// The text of an error of rustls. For common errors it names the setting to change.
pub(super) fn tls_reason(error: &rustls::Error) -> String {
    let (what, hint) = match error {
        rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType) => (
            "the server does not speak TLS".to_owned(),
            "for plain HTTP set scheme: http in its entry, if it is a registry",
        ),
        rustls::Error::InvalidCertificate(CertificateError::ExpiredContext {
            not_after, ..
        }) => {
            let date = OffsetDateTime::from(UNIX_EPOCH + Duration::from_secs(not_after.as_secs()));
            (
                format!("its certificate expired on {}", date.date()),
                "or this machine's clock is wrong",
            )
        }
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => (
            error.to_string(),
            "for a private certificate authority set tls.ca (or ca) in its entry",
        ),
        rustls::Error::InvalidCertificate(
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. },
        ) => (error.to_string(), "its subjectAltName must contain the host of the endpoint"),
        rustls::Error::InvalidCertificate(
            CertificateError::UnsupportedSignatureAlgorithmContext { .. }
            | CertificateError::UnsupportedSignatureAlgorithmForPublicKeyContext { .. },
        ) => (
            "its certificate, or one of its authorities, has an unsupported signature".to_owned(),
            "certificates need ECDSA with P-256, P-384 or P-521, Ed25519, or RSA with 2048 bits or \
             more, and SHA-256, SHA-384 or SHA-512",
        ),
        // rustls has no variant for this error of webpki.
        rustls::Error::InvalidCertificate(other)
            if format!("{other:?}").contains("CaUsedAsEndEntity") =>
        {
            (
                "its certificate is a self-signed authority".to_owned(),
                "to trust it, set tls.ca (or ca) in its entry to this certificate",
            )
        }
        rustls::Error::AlertReceived(AlertDescription::HandshakeFailure) => (
            error.to_string(),
            "there is no common cipher suite or curve (with TLS 1.2 the certificate must not be P-521), \
             or the server demands a client certificate",
        ),
        other => return other.to_string(),
    };
    format!("{what}; {hint}")
}
