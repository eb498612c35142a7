//! Amazon's environment variables and registry names as validated values, so that only permitted addresses are contacted
//! later.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;

use crate::oci::Upstream;
use crate::upstream::auth::credentials::Secret;
use crate::upstream::network::{Endpoint, Location, Scheme};

/// The address from which ECS serves a task's credentials.
const ECS: IpAddr = IpAddr::V4(Ipv4Addr::new(169, 254, 170, 2));
/// The addresses from which EKS Pod Identity serves a pod's credentials.
const EKS: [IpAddr; 2] = [
    IpAddr::V4(Ipv4Addr::new(169, 254, 170, 23)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x23)),
];

/// The variables that tell Amazon's SDKs where keys are. The configuration reads them from the environment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct AwsEnvironment {
    /// `AWS_ACCESS_KEY_ID` and `AWS_SECRET_ACCESS_KEY`.
    pub keys: Option<(String, Secret)>,
    /// `AWS_SESSION_TOKEN`, which belongs to `keys`.
    pub session_token: Option<Secret>,
    /// `AWS_WEB_IDENTITY_TOKEN_FILE` and `AWS_ROLE_ARN`.
    pub web_identity: Option<(PathBuf, String)>,
    /// `AWS_ROLE_SESSION_NAME`.
    pub role_session_name: Option<String>,
    /// `AWS_SHARED_CREDENTIALS_FILE`, or `~/.aws/credentials`.
    pub shared_credentials_file: Option<PathBuf>,
    /// `AWS_PROFILE`.
    pub profile: Option<String>,
    /// `AWS_CONTAINER_CREDENTIALS_RELATIVE_URI` or `AWS_CONTAINER_CREDENTIALS_FULL_URI`.
    pub container: Option<ContainerEndpoint>,
    /// `AWS_CONTAINER_AUTHORIZATION_TOKEN`.
    pub container_token: Option<Secret>,
    /// `AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE`, which is read for each request.
    pub container_token_file: Option<PathBuf>,
    /// The instance metadata service (`AWS_EC2_METADATA_SERVICE_ENDPOINT`); `None` if it must not be used
    /// (`AWS_EC2_METADATA_DISABLED`).
    pub metadata: Option<Endpoint>,
    /// `AWS_ENDPOINT_URL_ECR`.
    pub ecr_endpoint: Option<Endpoint>,
    /// `AWS_ENDPOINT_URL_STS`.
    pub sts_endpoint: Option<Endpoint>,
    /// `AWS_CA_BUNDLE`: authorities that are trusted in addition to the usual ones.
    pub ca_bundle: Option<PathBuf>,
}

/// The URL from which a container gets its credentials.
///
/// Threat: the keys in the response are used in requests, and the request contains a token. Therefore the URL must be
/// https, or lead to this machine or to one of the addresses that Amazon reserves for this purpose.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerEndpoint(String);

impl ContainerEndpoint {
    /// The URL on ECS with this path (`AWS_CONTAINER_CREDENTIALS_RELATIVE_URI`).
    ///
    /// # Errors
    /// If it is not a path.
    pub fn relative(path: &str) -> Result<ContainerEndpoint, &'static str> {
        match path.starts_with('/') {
            true => format!("http://{ECS}{path}").parse(),
            false => Err("is not a path, which begins with /"),
        }
    }

    pub(super) fn url(&self) -> &str {
        &self.0
    }
}

impl FromStr for ContainerEndpoint {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<ContainerEndpoint, &'static str> {
        let location = Location::parse(text).ok_or("is not an http or https URL")?;
        let host = location.host().trim_start_matches('[').trim_end_matches(']');
        let is_set_apart = |ip: IpAddr| ip.is_loopback() || ip == ECS || EKS.contains(&ip);
        let may_be_asked =
            location.is_https() || host == "localhost" || host.parse().is_ok_and(is_set_apart);
        match may_be_asked {
            true => Ok(ContainerEndpoint(location.url())),
            false => {
                Err("must be https, or have a loopback address, 169.254.170.2, 169.254.170.23 or \
                          [fd00:ec2::23]")
            }
        }
    }
}

/// The region of an ECR registry, from its name or from the configuration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EcrRegistry {
    region: String,
    is_fips: bool,
}

impl EcrRegistry {
    /// Parses `<account>.dkr.ecr[-fips].<region>.amazonaws.com[.cn]`, or its dual-stack form
    /// `<account>.dkr-ecr[-fips].<region>.on.aws`. `None` for any other name.
    pub fn of(upstream: &Upstream) -> Option<EcrRegistry> {
        let labels: Vec<&str> = upstream.host().split('.').collect();
        let (account, service, region) = match labels[..] {
            [account, "dkr", service, region, "amazonaws", "com"]
            | [account, "dkr", service, region, "amazonaws", "com", "cn"] => {
                (account, service, region)
            }
            [account, service, region, "on", "aws"] => {
                (account, service.strip_prefix("dkr-")?, region)
            }
            _ => return None,
        };
        let is_account = account.len() == 12 && account.bytes().all(|byte| byte.is_ascii_digit());
        let is_fips = match service {
            "ecr" => false,
            "ecr-fips" => true,
            _ => return None,
        };
        let registry = EcrRegistry::in_region(region).ok().filter(|_| is_account)?;
        Some(EcrRegistry { is_fips, ..registry })
    }

    /// A registry with another name, in this region.
    ///
    /// # Errors
    /// If it is not a valid region.
    pub fn in_region(region: &str) -> Result<EcrRegistry, &'static str> {
        let is_region = region.contains('-')
            && region.len() <= 32
            && region
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-');
        match is_region {
            true => Ok(EcrRegistry { region: region.to_owned(), is_fips: false }),
            false => Err("a region is a name such as eu-central-1"),
        }
    }

    /// The region.
    pub fn region(&self) -> &str {
        &self.region
    }

    /// The endpoint of the ECR API.
    pub(super) fn ecr(&self) -> Endpoint {
        self.endpoint(if self.is_fips { "ecr-fips" } else { "api.ecr" })
    }

    /// The endpoint of the STS API, which issues keys for roles.
    pub(super) fn sts(&self) -> Endpoint {
        self.endpoint(if self.is_fips { "sts-fips" } else { "sts" })
    }

    fn endpoint(&self, service: &str) -> Endpoint {
        let suffix = if self.region.starts_with("cn-") { ".cn" } else { "" };
        let authority = format!("{service}.{}.amazonaws.com{suffix}", self.region);
        Endpoint::new(Scheme::Https, &authority)
    }
}

/// The endpoint of the STS API in a region of an object store. Stores that are not Amazon's have other names for
/// theirs (`auto`), which have no STS: keys for roles then come from Amazon's global one.
pub(super) fn sts_in(region: &str) -> Endpoint {
    match EcrRegistry::in_region(region) {
        Ok(registry) => registry.sts(),
        Err(_) => Endpoint::new(Scheme::Https, "sts.amazonaws.com"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn region_and_endpoints_follow_from_the_registry_name() {
        for (name, region, ecr, sts) in [
            (
                "123456789012.dkr.ecr.eu-central-1.amazonaws.com",
                "eu-central-1",
                "api.ecr.eu-central-1.amazonaws.com",
                "sts.eu-central-1.amazonaws.com",
            ),
            (
                "123456789012.dkr.ecr-fips.us-gov-west-1.amazonaws.com",
                "us-gov-west-1",
                "ecr-fips.us-gov-west-1.amazonaws.com",
                "sts-fips.us-gov-west-1.amazonaws.com",
            ),
            (
                "123456789012.dkr.ecr.cn-north-1.amazonaws.com.cn",
                "cn-north-1",
                "api.ecr.cn-north-1.amazonaws.com.cn",
                "sts.cn-north-1.amazonaws.com.cn",
            ),
            (
                "123456789012.dkr-ecr.us-west-2.on.aws",
                "us-west-2",
                "api.ecr.us-west-2.amazonaws.com",
                "sts.us-west-2.amazonaws.com",
            ),
        ] {
            let registry = EcrRegistry::of(&name.parse().unwrap()).expect(name);
            assert_eq!(registry.region(), region, "{name}");
            assert_eq!(registry.ecr().authority, ecr, "{name}");
            assert_eq!(registry.sts().authority, sts, "{name}");
        }
    }

    #[test]
    fn names_that_only_resemble_ecr() {
        for name in [
            "public.ecr.aws",
            "123.dkr.ecr.eu-central-1.amazonaws.com",
            "123456789012.dkr.ecr.eu-central-1.amazonaws.com.evil.io",
            "123456789012.dkr.ecr.eu.amazonaws.com",
            "123456789012.dkr.s3.eu-central-1.amazonaws.com",
            "123456789012.ecr.eu-central-1.on.aws",
            "quay.io",
        ] {
            assert_eq!(EcrRegistry::of(&name.parse().unwrap()), None, "{name}");
        }
    }

    #[test]
    fn container_endpoints_are_https_or_local_or_reserved() {
        for url in [
            "https://vault.example.com/aws?role=x",
            "http://127.0.0.1:8080/x",
            "http://localhost/x",
            "http://[::1]:8080/x",
            "http://169.254.170.2/v2/credentials/1",
            "http://169.254.170.23/v1/credentials",
            "http://[fd00:ec2::23]/v1/credentials",
        ] {
            assert_eq!(url.parse::<ContainerEndpoint>().unwrap().url(), url);
        }
        for url in [
            "http://169.254.169.254/latest",
            "http://10.0.0.1/x",
            "http://evil.example.com/x",
            "http://localhost.evil.example.com/x",
            "http://169.254.170.23.evil.example.com/x",
            "http://user@169.254.170.23/x",
            "http://[fd00:ec2::254]/x",
            "ftp://127.0.0.1/x",
            "/v2/x",
        ] {
            assert!(url.parse::<ContainerEndpoint>().is_err(), "{url}");
        }
        let relative = ContainerEndpoint::relative("/v2/credentials/1").unwrap();
        assert_eq!(relative.url(), "http://169.254.170.2/v2/credentials/1");
        for path in ["", "v2", "@evil.example.com/", ".evil.example.com/"] {
            assert!(ContainerEndpoint::relative(path).is_err(), "{path}");
        }
    }
}
