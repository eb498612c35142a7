//! The configuration in effect, and the configuration of clients that follows from it.

use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use serde_json::{Value, json};

use super::super::hosts::without_port;
use super::super::status::Refusal;
use super::Handlers;
use crate::client_config::{
    AUDIENCE, Client, DIAL_TIMEOUT, Fallback, Mirror, Registry, Server, Trust,
};
use crate::http::Request;
use crate::prune::timestamp;

/// What is shown about the configuration.
#[derive(Debug, Clone)]
pub struct ConfigurationReport {
    /// The path of the file; `None` without a file.
    pub file: Option<String>,
    /// When the settings in effect were loaded.
    pub loaded: SystemTime,
    /// The settings in effect as YAML, without passwords.
    pub effective: String,
    /// The changed settings that take effect after a restart.
    pub after_restart: Vec<String>,
    /// Why the current file is not in effect, and since when.
    pub refused: Option<(SystemTime, String)>,
    /// The address of the port for clients.
    pub address: SocketAddr,
    /// Whether that port uses TLS.
    pub is_tls: bool,
    /// The listed registries.
    pub registries: Vec<Registry>,
}

/// The current report, shared by several owners.
#[derive(Clone)]
pub struct ConfigurationInForce(Arc<Mutex<Arc<ConfigurationReport>>>);

impl ConfigurationInForce {
    /// With the settings at the start.
    pub fn new(report: ConfigurationReport) -> ConfigurationInForce {
        ConfigurationInForce(Arc::new(Mutex::new(Arc::new(report))))
    }

    /// Changes the report.
    pub fn change(&self, change: impl FnOnce(&mut ConfigurationReport)) {
        // Replaced as a whole, so it is valid even after a panic.
        let mut current = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        change(Arc::make_mut(&mut current));
    }

    pub(super) fn report(&self) -> Arc<ConfigurationReport> {
        Arc::clone(&self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

pub(super) fn configuration(handlers: &Handlers) -> Value {
    let report = handlers.configuration.report();
    json!({
        "file": report.file,
        "loaded": timestamp(report.loaded),
        "afterRestart": report.after_restart,
        "refused": report.refused.as_ref().map(|(since, text)| {
            json!({ "since": timestamp(*since), "text": text })
        }),
        "effective": report.effective,
    })
}

/// The files that make a client pull through this server.
pub(super) fn client_configuration(
    handlers: &Handlers,
    request: &Request,
) -> Result<Value, Refusal> {
    let query = handlers.query(request, &["client", "server"])?;
    let report = handlers.configuration.report();
    let (word, client) = match query.text("client") {
        None => ("containerd", Client::Containerd),
        Some(word) => {
            let client = word.parse();
            (word, client.map_err(|error| Refusal::Parameter(format!("client: {error}")))?)
        }
    };
    let (server, assumptions) = match query.parsed("server")? {
        Some(server) => (server, Vec::new()),
        None => assumed_server(&report, request.header("host").unwrap_or_default()),
    };
    let url = server.url();
    let mirror = Mirror {
        servers: vec![server],
        registries: report.registries.clone(),
        trust: Trust::default(),
        dial_timeout: DIAL_TIMEOUT,
        fallback: Fallback::Registry,
        audience: AUDIENCE.into(),
    };
    let documents = mirror.documents(client);
    let documents = documents.map_err(|error| Refusal::Parameter(error.to_string()))?;
    let files: Vec<Value> = documents
        .into_iter()
        .map(|document| {
            let path = match document.path {
                Some(path) => format!("{}/{path}", client.usual_place()),
                None => client.usual_place().to_owned(),
            };
            json!({ "path": path, "text": document.text })
        })
        .collect();
    Ok(json!({
        "client": word,
        "server": url,
        "assumptions": assumptions,
        "files": files,
        "effect": client.when_it_takes_effect(),
    }))
}

/// The address of the port for clients on the host by which this request has reached the server, and what that assumes.
fn assumed_server(report: &ConfigurationReport, host: &str) -> (Server, Vec<&'static str>) {
    let (ip, port) = (report.address.ip(), report.address.port());
    let name = without_port(host);
    let authority = match name.parse::<IpAddr>() {
        Ok(IpAddr::V6(ip)) => format!("[{ip}]:{port}"),
        _ => format!("{name}:{port}"),
    };
    let scheme = if report.is_tls { "https" } else { "http" };
    let mut assumptions = Vec::new();
    let server = match format!("{scheme}://{authority}").parse() {
        Ok(server) => {
            assumptions.push(
                "clients reach the server under the name by which you opened this page, at the port of the configuration",
            );
            server
        }
        Err(_) => Server::new(report.is_tls, report.address.to_string()),
    };
    if ip.is_loopback() {
        assumptions.push("the server listens on a loopback address, so only clients on its own machine can connect");
    } else if is_loopback(name) {
        assumptions.push("the name is that of your own machine, as through a tunnel: replace it by one that clients can reach");
    }
    if report.is_tls {
        assumptions.push("clients trust the server's certificate");
    }
    (server, assumptions)
}

fn is_loopback(name: &str) -> bool {
    name.eq_ignore_ascii_case("localhost")
        || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(address: &str, is_tls: bool) -> ConfigurationReport {
        ConfigurationReport {
            file: None,
            loaded: SystemTime::UNIX_EPOCH,
            effective: String::new(),
            after_restart: vec![],
            refused: None,
            address: address.parse().unwrap(),
            is_tls,
            registries: vec![],
        }
    }

    #[test]
    fn clients_use_the_host_of_the_request_and_the_port_of_the_configuration() {
        for (address, is_tls, host, expected, assumptions) in [
            ("0.0.0.0:8080", false, "node.test:8090", "http://node.test:8080", 1),
            ("0.0.0.0:8080", true, "10.0.0.5:8090", "https://10.0.0.5:8080", 2),
            ("[::]:8080", false, "[2001:db8::1]:8090", "http://[2001:db8::1]:8080", 1),
            ("0.0.0.0:8080", false, "localhost:8090", "http://localhost:8080", 2),
            ("127.0.0.1:8080", false, "127.0.0.1:8090", "http://127.0.0.1:8080", 2),
            ("10.0.0.9:8080", false, "not a name", "http://10.0.0.9:8080", 0),
        ] {
            let (server, all) = assumed_server(&report(address, is_tls), host);
            assert_eq!((&*server.url(), all.len()), (expected, assumptions), "{host}");
        }
    }
}
