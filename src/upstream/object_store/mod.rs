//! stub
use std::io::{self, Read};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use super::auth::{AwsEnvironment, Secret};
use super::error::{UpstreamError, UpstreamErrorKind};
use super::network::{Endpoint, ProxySettings, TlsSettings};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectStoreSettings {
    pub endpoint: Endpoint,
    pub bucket: String,
    pub prefix: String,
    pub region: String,
    pub addressing: Addressing,
    pub tls: TlsSettings,
    pub keys: KeySettings,
    pub part_bytes: u64,
}
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Addressing { Path, VirtualHost }
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct KeySettings { pub fixed: Option<FixedKeys>, pub profile: Option<String>, pub environment: AwsEnvironment }
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FixedKeys { pub id: String, pub secret: Secret, pub session_token: Option<Secret> }
pub struct ObjectStore { settings: ObjectStoreSettings }
pub struct Object { pub start: u64, pub end: Option<u64>, pub size: Option<u64>, pub reader: Box<dyn Read + Send> }
pub struct ReadObject { pub bytes: Vec<u8>, pub etag: Option<String>, pub modified: Option<SystemTime> }
pub struct ObjectHead { pub size: u64, pub etag: Option<String>, pub modified: Option<SystemTime> }
pub enum Condition { None, IfAbsent, IfMatch(String) }
pub enum Put { Done { etag: Option<String> }, Exists }
pub struct Listed { pub key: String, pub size: u64, pub modified: Option<SystemTime> }
pub struct Page { pub objects: Vec<Listed>, pub next: Option<String> }
#[derive(Debug, Clone, Default)]
pub struct Probe { pub error: Option<UpstreamError>, pub is_readable: bool, pub is_writable: bool, pub has_create_if_absent: bool, pub verifies_checksum: bool, pub verifies_content_hash: bool }
pub trait UploadSource: Sync {
    fn size(&self) -> u64;
    fn sha256(&self) -> Option<[u8; 32]>;
    fn open(&self, from: u64, length: u64) -> io::Result<Box<dyn Read + Send + '_>>;
    fn is_cancelled(&self) -> bool;
}
impl ObjectStore {
    pub fn new(settings: ObjectStoreSettings, _: Arc<ProxySettings>) -> ObjectStore { ObjectStore { settings } }
    pub fn settings(&self) -> &ObjectStoreSettings { &self.settings }
    pub fn url(&self) -> String { self.settings.endpoint.url() }
    fn no<T>(&self) -> Result<T, UpstreamError> { Err(UpstreamError::new(self.url(), UpstreamErrorKind::OutOfService)) }
    pub fn get(&self, _: &str, _: u64, _: Option<u64>) -> Result<Object, UpstreamError> { self.no() }
    pub fn read(&self, _: &str, _: u64) -> Result<ReadObject, UpstreamError> { self.no() }
    pub fn head(&self, _: &str) -> Result<ObjectHead, UpstreamError> { self.no() }
    pub fn put(&self, _: &str, _: &[u8], _: Condition) -> Result<Put, UpstreamError> { self.no() }
    pub fn upload(&self, _: &str, _: &dyn UploadSource, _: Condition) -> Result<Put, UpstreamError> { self.no() }
    pub fn delete(&self, _: &[String]) -> Result<usize, UpstreamError> { self.no() }
    pub fn list(&self, _: &str, _: Option<&str>) -> Result<Page, UpstreamError> { self.no() }
    pub fn probe(&self, _: &str) -> Probe { Probe::default() }
    pub fn presigned_get(&self, _: &str, _: Duration) -> Result<String, UpstreamError> { self.no() }
}
