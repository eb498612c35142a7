//! **FakeAws: the AWS services that a login to ECR needs.**
//!
//! As with the real services, `X-Amz-Target` distinguishes ECR and STS, and paths the metadata services. All
//! of them are one [`FakeRegistry`], so every request is recorded, and an unscripted one fails the test.
//!
//! ```ignore
//! let aws = FakeAws::start();
//! aws.hand_out("password");
//! let environment = AwsEnvironment { keys: …, ..aws.environment() };
//! ```

use larder::upstream::{AwsEnvironment, Endpoint, Scheme};
use serde_json::json;

use super::wire::Recorded;
use super::{FakeRegistry, Fault, On, base64};

/// The path of the container credentials service, see [`FakeAws::lend`].
pub const CONTAINER_PATH: &str = "/v1/credentials";
/// The token of the metadata service for subsequent requests.
pub const METADATA_TOKEN: &str = "metadata-token";
const ROLES: &str = "/latest/meta-data/iam/security-credentials/";

/// See the module documentation.
pub struct FakeAws(pub FakeRegistry);

impl FakeAws {
    pub fn start() -> FakeAws {
        FakeAws(FakeRegistry::start())
    }

    pub fn endpoint(&self) -> Endpoint {
        Endpoint::new(Scheme::Http, &self.0.host())
    }

    /// An environment with these services and no other source of keys.
    pub fn environment(&self) -> AwsEnvironment {
        AwsEnvironment {
            ecr_endpoint: Some(self.endpoint()),
            sts_endpoint: Some(self.endpoint()),
            ..AwsEnvironment::default()
        }
    }

    /// ECR answers with this password, which expires after twelve hours.
    pub fn hand_out(&self, password: &str) {
        self.answer(On::path("POST", "/").with_header("x-amz-target"), &authorization(password));
    }

    /// As [`FakeAws::hand_out`], for the next request only.
    pub fn hand_out_once(&self, password: &str) {
        let on = On::path("POST", "/").with_header("x-amz-target").times(1);
        self.answer(on, &authorization(password));
    }

    /// ECR answers with this error.
    pub fn refuse_ecr(&self, status: u16, code: &str) {
        let body = json!({"__type": code, "message": "for arn:aws:iam::1:role/secret-name"});
        let on = On::path("POST", "/").with_header("x-amz-target");
        self.0.fault(on, Fault::Status(status, Vec::new(), body.to_string().into_bytes()));
    }

    /// STS returns the keys of this name for any token.
    pub fn assume(&self, id: &str) {
        let xml = format!(
            "<AssumeRoleWithWebIdentityResponse><AssumeRoleWithWebIdentityResult><Credentials>\
             <AccessKeyId>{id}</AccessKeyId><SecretAccessKey>lent/secret+=</SecretAccessKey>\
             <SessionToken>session-of-{id}</SessionToken>\
             <Expiration>2030-01-01T00:00:00Z</Expiration></Credentials>\
             </AssumeRoleWithWebIdentityResult></AssumeRoleWithWebIdentityResponse>"
        );
        let on = On::path("POST", "/").without_header("x-amz-target");
        self.0.fault(on, Fault::Status(200, Vec::new(), xml.into_bytes()));
    }

    /// STS answers with this error.
    pub fn refuse_sts(&self, status: u16, code: &str) {
        let xml = format!("<ErrorResponse><Error><Code>{code}</Code></Error></ErrorResponse>");
        let on = On::path("POST", "/").without_header("x-amz-target");
        self.0.fault(on, Fault::Status(status, Vec::new(), xml.into_bytes()));
    }

    /// The container service and the instance service return the keys of this name.
    pub fn lend(&self, id: &str) {
        let keys = json!({
            "Code": "Success",
            "AccessKeyId": id,
            "SecretAccessKey": "lent",
            "Token": format!("session-of-{id}"),
            "Expiration": "2030-01-01T00:00:00Z",
        });
        self.answer(On::path("GET", CONTAINER_PATH), &keys.to_string());
        self.answer(On::path("PUT", "/latest/api/token"), METADATA_TOKEN);
        self.answer(On::path("GET", ROLES), "the-role\n");
        self.answer(On::path("GET", &format!("{ROLES}the-role")), &keys.to_string());
    }

    /// The requests to ECR.
    pub fn logins(&self) -> Vec<Recorded> {
        let mut posted = self.0.requests_for("POST", "/");
        posted.retain(|request| request.header("x-amz-target").is_some());
        posted
    }

    fn answer(&self, on: On, body: &str) {
        self.0.fault(on, Fault::Status(200, Vec::new(), body.as_bytes().to_vec()));
    }
}

fn authorization(password: &str) -> String {
    // A time in 2030: later than the configured expiry, whatever the clock of the machine.
    let token = base64(format!("AWS:{password}").as_bytes());
    json!({"authorizationData": [{"authorizationToken": token, "expiresAt": 1.9e9}]}).to_string()
}
