//! Errors of S3, and the faults that answer with one.
//!
//! Must not know why a request is refused.

use super::super::answer::Answer;
use super::super::fault::Fault;
use super::xml;

/// An error response.
#[derive(Clone, Debug)]
pub struct Refusal {
    pub status: u16,
    pub code: &'static str,
    pub message: String,
    pub cause: Cause,
    /// An additional header.
    pub header: Option<(&'static str, String)>,
}

/// What caused an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The state of the bucket, which a correct client may meet.
    State,
    /// A request that a correct client never sends.
    Client,
}

impl Refusal {
    pub fn state(status: u16, code: &'static str, message: &str) -> Refusal {
        Refusal { status, code, message: message.to_owned(), cause: Cause::State, header: None }
    }

    pub fn client(status: u16, code: &'static str, message: &str) -> Refusal {
        Refusal { status, code, message: message.to_owned(), cause: Cause::Client, header: None }
    }

    pub fn with(mut self, name: &'static str, value: &str) -> Refusal {
        self.header = Some((name, value.to_owned()));
        self
    }

    pub fn no_such_key() -> Refusal {
        Refusal::state(404, "NoSuchKey", "The specified key does not exist.")
    }

    pub fn precondition_failed() -> Refusal {
        let message = "At least one of the pre-conditions you specified did not hold";
        Refusal::state(412, "PreconditionFailed", message)
    }

    pub fn invalid_argument(message: &str) -> Refusal {
        Refusal::client(400, "InvalidArgument", message)
    }

    pub fn malformed_xml() -> Refusal {
        let message = "The XML you provided was not well-formed or did not validate against our \
                       published schema";
        Refusal::client(400, "MalformedXML", message)
    }

    pub fn answer(&self, resource: &str, id: &str) -> Answer {
        let body = xml::error(self.code, &self.message, resource, id);
        let mut answer = Answer::new(self.status, "application/xml", body);
        self.header.iter().for_each(|(name, value)| answer.set(name, value));
        answer
    }
}

/// Errors of S3. None of these requests has an effect.
impl Fault {
    /// This status with the XML of an error.
    pub fn s3_error(status: u16, code: &str) -> Fault {
        let headers = vec![("Content-Type".to_owned(), "application/xml".to_owned())];
        Fault::Status(status, headers, xml::error(code, "scripted", "/", "scripted"))
    }

    /// Status 200 with the XML of an error, as Amazon answers a completion or a batch that fails late.
    pub fn s3_error_in_200(code: &str) -> Fault {
        Fault::s3_error(200, code)
    }

    /// 503 SlowDown.
    pub fn slow_down() -> Fault {
        Fault::s3_error(503, "SlowDown")
    }

    /// 404 NoSuchKey: a read that does not see an object yet.
    pub fn no_such_key() -> Fault {
        Fault::s3_error(404, "NoSuchKey")
    }

    /// The request has its effect, but the connection ends (FIN) without a response.
    pub fn response_lost() -> Fault {
        Fault::Performed(Box::new(Fault::CloseBeforeHead))
    }
}
