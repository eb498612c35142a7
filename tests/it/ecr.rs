//! Logins for Amazon ECR: obtained with keys from every source that Amazon's SDKs search, and renewed when they expire.
//!
//! Proves protocol 10.6 (docs/protocol.md).

use std::fs;

use larder::upstream::{AwsEnvironment, Credentials, EcrRegistry, EcrSettings, Secret};

use crate::support::aws::{CONTAINER_PATH, METADATA_TOKEN};
use crate::support::larder::{blob, manifest, seconds};
use crate::support::{FakeAws, FakeRegistry, Image, Larder, Response};

const REPOSITORY: &str = "team/app";

/// An ECR registry with an image and the password `pw`, and the AWS services.
fn amazon() -> (FakeAws, FakeRegistry, Image) {
    let (aws, registry, image) = (FakeAws::start(), FakeRegistry::start(), Image::sample("v1"));
    registry.add(REPOSITORY, "v1", &image);
    registry.require_ecr("pw");
    (aws, registry, image)
}

fn keys(environment: AwsEnvironment) -> AwsEnvironment {
    AwsEnvironment { keys: Some(("AKIDOFENV".into(), Secret::new("hunter2"))), ..environment }
}

fn start(registry: &FakeRegistry, environment: AwsEnvironment) -> Larder {
    start_as(registry, environment, None)
}

fn start_as(registry: &FakeRegistry, environment: AwsEnvironment, profile: Option<&str>) -> Larder {
    let settings = EcrSettings {
        registry: EcrRegistry::in_region("eu-central-1").expect("a region"),
        profile: profile.map(str::to_owned),
        expiry: seconds(6 * 3600),
        environment,
    };
    Larder::start_with(registry, |larder| {
        larder.upstream.registries[0].endpoints[0].credentials =
            Credentials::Ecr(Box::new(settings));
    })
}

/// Pulls, and returns the key and the session that signed the only login request.
#[track_caller]
fn signer(larder: &Larder, aws: &FakeAws) -> (String, Option<String>) {
    assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200);
    let logins = aws.logins();
    assert_eq!(logins.len(), 1);
    let signature = logins[0].header("authorization").expect("a signed request");
    let (_, credential) =
        signature.split_once("Credential=").expect("a credential in the signature");
    let id = credential.split('/').next().unwrap_or_default();
    let session = logins[0].header("x-amz-security-token").map(str::to_owned);
    (id.to_owned(), session)
}

/// Asserts that the response is an error with these words and without a secret.
#[track_caller]
fn assert_says(got: &Response, words: &[&str]) {
    assert!(got.status >= 400, "{got:?}");
    for word in words {
        assert!(got.text().contains(word), "{word}: {got:?}");
    }
    assert!(!got.text().contains("hunter2") && !got.text().contains("secret-name"), "{got:?}");
}

#[test]
fn one_signed_request_provides_the_login_for_an_image() {
    let (aws, registry, image) = amazon();
    aws.hand_out("pw");
    let larder = start(&registry, keys(aws.environment()));
    assert!(larder.get(&manifest(REPOSITORY, "v1")).body == image.manifest());
    for layer in image.layers() {
        assert!(larder.get(&blob(REPOSITORY, &layer.digest)).body == layer.bytes);
    }
    let logins = aws.logins();
    let [asked] = &logins[..] else { panic!("{logins:?}") };
    let target = "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken";
    assert_eq!(asked.header("x-amz-target"), Some(target));
    assert_eq!(asked.header("content-type"), Some("application/x-amz-json-1.1"));
    assert_eq!(asked.headers_named("host"), [aws.0.host()], "the signed host is the requested one");
    assert_eq!(asked.body, b"{}");
    let signature = asked.header("authorization").unwrap();
    assert!(signature.starts_with("AWS4-HMAC-SHA256 Credential=AKIDOFENV/"), "{signature}");
    assert!(signature.contains("/eu-central-1/ecr/aws4_request, "), "{signature}");
    let signed = "SignedHeaders=content-type;host;x-amz-date;x-amz-target, ";
    assert!(signature.contains(signed), "{signature}");
}

#[test]
fn login_that_expires_early_is_renewed_once() {
    let (aws, registry, image) = amazon();
    aws.hand_out_once("pw");
    aws.hand_out("second");
    let larder = start(&registry, keys(aws.environment()));
    assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).status, 200);
    registry.require_ecr("second");
    registry.clear_requests();
    for layer in image.layers() {
        assert!(larder.get(&blob(REPOSITORY, &layer.digest)).body == layer.bytes);
    }
    assert_eq!(aws.logins().len(), 2);
    let blobs = registry.count("GET", "/v2/*/blobs/*");
    assert_eq!(blobs, image.layers().len() + 1, "one request was refused and repeated");
}

#[test]
fn login_that_stays_refused_fails_fast_without_a_loop() {
    let (aws, registry, _) = amazon();
    aws.hand_out("wrong");
    let larder = start(&registry, keys(aws.environment()));
    for tag in ["v1", "v2", "v3"] {
        let got = larder.get(&manifest(REPOSITORY, tag));
        assert_eq!((got.status, got.error_code().as_str()), (403, "DENIED"), "{got:?}");
    }
    assert_eq!(aws.logins().len(), 2, "once, once more, and then not again for a while");
}

#[test]
fn keys_in_the_environment_take_precedence() {
    let (aws, registry, _) = amazon();
    aws.hand_out("pw");
    let environment = AwsEnvironment {
        session_token: Some(Secret::new("lent-to-env")),
        web_identity: Some(("/nonexistent".into(), "arn:aws:iam::1:role/r".into())),
        profile: Some("absent".into()),
        metadata: Some(aws.endpoint()),
        ..keys(aws.environment())
    };
    let larder = start(&registry, environment);
    let session = Some("lent-to-env".to_owned());
    assert_eq!(signer(&larder, &aws), ("AKIDOFENV".to_owned(), session));
}

#[test]
fn web_identity_is_exchanged_for_the_keys_of_its_role() {
    let (aws, registry, _) = amazon();
    aws.assume("AKIDOFROLE");
    aws.hand_out("pw");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    fs::write(&file, "header.payload.signature\n").unwrap();
    let role = "arn:aws:iam::123456789012:role/puller";
    let environment = AwsEnvironment {
        web_identity: Some((file, role.into())),
        role_session_name: Some("our session".into()),
        ..aws.environment()
    };
    let larder = start(&registry, environment);
    let session = Some("session-of-AKIDOFROLE".to_owned());
    assert_eq!(signer(&larder, &aws), ("AKIDOFROLE".to_owned(), session));
    let form = String::from_utf8(aws.0.requests()[0].body.clone()).unwrap();
    for part in [
        "Action=AssumeRoleWithWebIdentity",
        "WebIdentityToken=header.payload.signature",
        "RoleSessionName=our%20session",
        "RoleArn=arn:aws:iam::123456789012:role/puller",
    ] {
        assert!(form.split('&').any(|each| each == part), "{part}: {form}");
    }
    assert_eq!(aws.0.requests()[0].header("authorization"), None, "the token is the only proof");
}

#[test]
fn role_that_cannot_be_assumed_is_an_error_and_no_other_source_is_tried() {
    let (aws, registry, _) = amazon();
    aws.refuse_sts(403, "AccessDenied");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    fs::write(&file, "hunter2").unwrap();
    let environment = AwsEnvironment {
        web_identity: Some((file, "arn:aws:iam::1:role/r".into())),
        metadata: Some(aws.endpoint()),
        ..aws.environment()
    };
    let larder = start(&registry, environment);
    let got = larder.get(&manifest(REPOSITORY, "v1"));
    assert_says(&got, &["AccessDenied", "AWS_ROLE_ARN"]);
    assert_eq!((got.status, aws.0.requests().len()), (403, 1));
}

#[test]
fn profiles_are_read_from_the_shared_credentials_file() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("credentials");
    let text = "[default]\naws_access_key_id = AKIDDEFAULT\naws_secret_access_key = hunter2\n\
                [team]\naws_access_key_id = AKIDTEAM\naws_secret_access_key = hunter2\n\
                aws_session_token = lent\n";
    fs::write(&file, text).unwrap();
    for (option, variable, expected) in [
        (None, None, ("AKIDDEFAULT", None)),
        (None, Some("team"), ("AKIDTEAM", Some("lent"))),
        (Some("team"), Some("default"), ("AKIDTEAM", Some("lent"))),
    ] {
        let (aws, registry, _) = amazon();
        aws.hand_out("pw");
        let environment = AwsEnvironment {
            shared_credentials_file: Some(file.clone()),
            profile: variable.map(str::to_owned),
            ..aws.environment()
        };
        let larder = start_as(&registry, environment, option);
        let (id, session) = signer(&larder, &aws);
        assert_eq!((id.as_str(), session.as_deref()), expected, "{option:?} {variable:?}");
    }
    let (aws, registry, _) = amazon();
    let environment =
        AwsEnvironment { shared_credentials_file: Some(file.clone()), ..keys(aws.environment()) };
    let larder = start_as(&registry, environment, Some("absent"));
    let got = larder.get(&manifest(REPOSITORY, "v1"));
    assert_says(&got, &["profile absent", file.to_str().unwrap()]);
}

#[test]
fn container_credentials_use_the_current_authorization_token() {
    let (aws, registry, _) = amazon();
    aws.lend("AKIDOFPOD");
    aws.hand_out_once("pw");
    aws.hand_out("second");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("token");
    fs::write(&file, "first-token\n").unwrap();
    let environment = AwsEnvironment {
        container: Some(aws.0.url(CONTAINER_PATH).parse().unwrap()),
        container_token_file: Some(file.clone()),
        metadata: Some(aws.endpoint()),
        ..aws.environment()
    };
    let larder = start(&registry, environment);
    let session = Some("session-of-AKIDOFPOD".to_owned());
    assert_eq!(signer(&larder, &aws), ("AKIDOFPOD".to_owned(), session));
    fs::write(&file, "second-token\n").unwrap();
    registry.require_ecr("second");
    larder.advance(seconds(301));
    assert_eq!(larder.get(&manifest(REPOSITORY, "v1")).header("warning"), None);
    let asked = aws.0.requests_for("GET", CONTAINER_PATH);
    let shown: Vec<_> = asked.iter().map(|asked| asked.header("authorization")).collect();
    assert_eq!(shown, [Some("first-token"), Some("second-token")]);
}

#[test]
fn instance_metadata_is_queried_with_imdsv2() {
    let (aws, registry, _) = amazon();
    aws.lend("AKIDOFINSTANCE");
    aws.hand_out("pw");
    let environment = AwsEnvironment { metadata: Some(aws.endpoint()), ..aws.environment() };
    let larder = start(&registry, environment);
    let session = Some("session-of-AKIDOFINSTANCE".to_owned());
    assert_eq!(signer(&larder, &aws), ("AKIDOFINSTANCE".to_owned(), session));
    let put = &aws.0.requests_for("PUT", "/latest/api/token")[0];
    assert!(put.header("x-aws-ec2-metadata-token-ttl-seconds").is_some());
    for asked in aws.0.requests_for("GET", "/latest/meta-data/*") {
        assert_eq!(asked.header("x-aws-ec2-metadata-token"), Some(METADATA_TOKEN), "{asked:?}");
    }
}

#[test]
fn missing_keys_error_lists_the_places_searched() {
    let (aws, registry, _) = amazon();
    let absent = FakeAws::start();
    absent.0.stop();
    let no_service = AwsEnvironment { metadata: Some(absent.endpoint()), ..aws.environment() };
    let got = start(&registry, no_service).get(&manifest(REPOSITORY, "v1"));
    assert_says(&got, &["no AWS credentials", "metadata service", "hop limit"]);
    assert!(matches!(got.status, 502..=504), "it may come up: {got:?}");
    let got = start(&registry, aws.environment()).get(&manifest(REPOSITORY, "v1"));
    assert_says(&got, &["AWS_ACCESS_KEY_ID", "AWS_EC2_METADATA_DISABLED"]);
    assert_eq!((got.status, aws.0.requests().len()), (403, 0));
}

#[test]
fn refused_ecr_logins_are_reported_with_their_error_code() {
    for (status, code, temporary) in [
        (400, "AccessDeniedException", false),
        (400, "UnrecognizedClientException", false),
        (400, "ThrottlingException", true),
        (500, "ServerException", true),
    ] {
        let (aws, registry, _) = amazon();
        aws.refuse_ecr(status, code);
        let larder = start(&registry, keys(aws.environment()));
        let got = larder.get(&manifest(REPOSITORY, "v1"));
        assert_says(&got, &[code, "ecr:GetAuthorizationToken"]);
        assert_eq!(got.status == 403, !temporary, "{code}: {got:?}");
    }
}
