//! The generated text for each client, in full where it is short.

use super::*;

pub(super) fn mirror(servers: &[&str]) -> Mirror {
    Mirror {
        servers: servers.iter().map(|server| server.parse().unwrap()).collect(),
        registries: Vec::new(),
        trust: Trust::default(),
        dial_timeout: DIAL_TIMEOUT,
        fallback: Fallback::Registry,
        audience: AUDIENCE.into(),
    }
}

fn corp() -> Registry {
    let name = "registry.corp:5000".parse().unwrap();
    Registry { name, alias: Some("corp".into()), is_plain: true }
}

fn trust() -> Trust {
    let identity = Some(("/n.crt".into(), "/n.key".into()));
    Trust { ca: Some("/ca.crt".into()), identity, is_unverified: false }
}

/// The generated texts without their first line.
fn texts(mirror: &Mirror, client: Client) -> Vec<String> {
    let documents = mirror.documents(client).unwrap();
    let body = |text: &str| {
        assert!(text.starts_with(MARK), "{text}");
        text.split_once('\n').unwrap().1.to_owned()
    };
    documents.iter().map(|document| body(&document.text)).collect()
}

#[test]
fn containerd_tries_larder_before_the_registry() {
    let mirror = Mirror { registries: vec![corp()], ..mirror(&["http://localhost:31080"]) };
    let documents = mirror.documents(Client::Containerd).unwrap();
    let paths: Vec<&str> = documents.iter().filter_map(|it| it.path.as_deref()).collect();
    assert_eq!(paths, ["_default/hosts.toml", "registry.corp:5000/hosts.toml"]);
    let host = "[host.\"http://localhost:31080\"]\n  capabilities = [\"pull\", \"resolve\"]\n  \
                dial_timeout = \"2s\"\n";
    assert_eq!(
        texts(&mirror, Client::Containerd),
        [format!("\n{host}"), format!("server = \"http://registry.corp:5000\"\n\n{host}"),]
    );
}

#[test]
fn containerd_gets_certificates_for_larder_with_tls() {
    let mirror = Mirror {
        trust: Trust { is_unverified: true, ..trust() },
        dial_timeout: Duration::from_millis(500),
        ..mirror(&["https://larder.example"])
    };
    assert_eq!(
        texts(&mirror, Client::Containerd),
        ["\n[host.\"https://larder.example\"]\n  capabilities = [\"pull\", \"resolve\"]\n  \
          dial_timeout = \"500ms\"\n  ca = \"/ca.crt\"\n  client = [[\"/n.crt\", \"/n.key\"]]\n  \
          skip_verify = true\n"]
    );
}

#[test]
fn a_timeout_below_a_millisecond_is_not_zero() {
    let dial_timeout = Duration::from_micros(250);
    let text = texts(&Mirror { dial_timeout, ..mirror(&["a:1"]) }, Client::Containerd).remove(0);
    assert!(text.contains("dial_timeout = \"250000ns\""), "0s would disable the timeout: {text}");
}

#[test]
fn containerd_without_fallback_has_no_server_but_larder() {
    let alone = Mirror { fallback: Fallback::None, ..mirror(&["larder:8080"]) };
    let keys = "capabilities = [\"pull\", \"resolve\"]\ndial_timeout = \"2s\"\n";
    assert_eq!(
        texts(&alone, Client::Containerd),
        [format!("server = \"http://larder:8080\"\n{keys}\n[host]\n")]
    );
    let both = Mirror { fallback: Fallback::None, ..mirror(&["a:1", "b:2"]) };
    let text = texts(&both, Client::Containerd).remove(0);
    assert!(
        text.starts_with("server = \"http://b:2\"\n") && text.contains("[host.\"http://a:1\"]")
    );
}

#[test]
fn docker_hub_falls_back_to_its_api_host() {
    let hub = Registry::named("docker.io".parse().unwrap());
    let mirror = Mirror { registries: vec![hub], ..mirror(&["larder:8080"]) };
    let text = texts(&mirror, Client::Containerd).remove(1);
    assert!(text.starts_with("server = \"https://registry-1.docker.io\"\n"), "{text}");
}

#[test]
fn podman_gets_the_registry_in_the_path_and_an_alias_for_a_port() {
    let mirror = Mirror { registries: vec![corp()], ..mirror(&["larder:8080"]) };
    let text = texts(&mirror, Client::RegistriesConf).remove(0);
    for part in [
        "\n[[registry]]\nprefix = \"registry.corp:5000\"\nlocation = \"registry.corp:5000\"\n\
         insecure = true\n[[registry.mirror]]\nlocation = \"larder:8080/corp\"\ninsecure = true\n",
        "\n[[registry]]\nprefix = \"quay.io\"\nlocation = \"quay.io\"\n[[registry.mirror]]\n\
         location = \"larder:8080/quay.io\"\ninsecure = true\n",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn podman_without_fallback_uses_the_last_larder_as_the_registry() {
    let mirror = Mirror {
        fallback: Fallback::None,
        trust: trust(),
        ..mirror(&["https://a:1", "https://b:2"])
    };
    let text = texts(&mirror, Client::RegistriesConf).remove(0);
    let part = "\n[[registry]]\nprefix = \"quay.io\"\nlocation = \"b:2/quay.io\"\n[[registry.mirror]]\n\
                location = \"a:1/quay.io\"\n";
    assert!(text.contains(part), "{text}");
    assert!(!text.contains("insecure"), "{text}");
    assert!(text.contains("# Copy /ca.crt to /etc/containers/certs.d/a:1/ca.crt"), "{text}");
}

#[test]
fn a_registry_with_a_port_needs_an_alias_for_clients_that_name_it_in_the_path() {
    let registry = Registry { alias: None, ..corp() };
    let mirror = Mirror { registries: vec![registry], ..mirror(&["larder:8080"]) };
    let refused = Err(MirrorError::NoAlias("registry.corp:5000".parse().unwrap()));
    assert_eq!(mirror.documents(Client::RegistriesConf), refused);
    assert!(mirror.documents(Client::Containerd).is_ok());
}

#[test]
fn existing_docker_settings_are_kept() {
    let mirror = mirror(&["http://larder:8080"]);
    let json = |text: &str| -> serde_json::Value {
        serde_json::from_str(&mirror.daemon_json(text).unwrap()).unwrap()
    };
    let alone = serde_json::json!({"registry-mirrors": ["http://larder:8080"]});
    for text in ["", " \n", "{}", r#"{"registry-mirrors": ["http://larder:8080/"]}"#] {
        assert_eq!(json(text), alone, "{text}");
    }
    assert_eq!(
        json(r#"{"debug": true, "registry-mirrors": ["http://other"]}"#),
        serde_json::json!({"debug": true, "registry-mirrors": ["http://larder:8080", "http://other"]})
    );
    for text in ["[]", "{", r#"{"registry-mirrors": "http://other"}"#] {
        assert!(matches!(mirror.daemon_json(text), Err(MirrorError::DaemonJson(_))), "{text}");
    }
}

#[test]
fn k3s_gets_the_url_of_a_plain_http_registry() {
    let mirror = Mirror { registries: vec![corp()], ..mirror(&["a:1"]) };
    let endpoints = |mirror: &Mirror| -> Vec<String> {
        let text = texts(mirror, Client::K3s).remove(0);
        let entry = text.split_once("\"registry.corp:5000\":\n    endpoint:\n").unwrap().1;
        entry.lines().map(str::to_owned).collect()
    };
    let (larder, itself) = ("      - \"http://a:1\"", "      - \"http://registry.corp:5000\"");
    assert_eq!(endpoints(&mirror), [larder, itself]);
    assert_eq!(endpoints(&Mirror { fallback: Fallback::None, ..mirror }), [larder]);
}

#[test]
fn k3s_mirrors_all_registries_with_a_star_and_lists_certificates_separately() {
    let corp = Registry { is_plain: false, ..corp() };
    let mirror = Mirror { registries: vec![corp], trust: trust(), ..mirror(&["https://a:1"]) };
    let expected = "mirrors:\n  \"*\":\n    endpoint:\n      - \"https://a:1\"\n  \
                    \"registry.corp:5000\":\n    endpoint:\n      - \"https://a:1\"\nconfigs:\n  \
                    \"a:1\":\n    tls:\n      ca_file: \"/ca.crt\"\n      cert_file: \"/n.crt\"\n      \
                    key_file: \"/n.key\"\n";
    assert_eq!(texts(&mirror, Client::K3s), [expected]);
    assert_eq!(texts(&mirror, Client::Rke2), [expected]);
}

#[test]
fn buildkit_gets_an_entry_for_larders_host() {
    let text = texts(&mirror(&["larder:8080"]), Client::BuildKit).remove(0);
    for part in [
        "\n[registry.\"docker.io\"]\n  mirrors = [\"larder:8080\"]\n",
        "\n[registry.\"larder:8080\"]\n  http = true\n",
    ] {
        assert!(text.contains(part), "{text}");
    }
}

#[test]
fn buildkit_uses_tls_for_a_server_on_loopback() {
    for (server, host) in [("https://localhost:8443", "localhost:8443"), ("https://a", "a")] {
        let text =
            texts(&Mirror { trust: trust(), ..mirror(&[server]) }, Client::BuildKit).remove(0);
        let entry = format!(
            "\n[registry.\"{host}\"]\n  http = false\n  ca = [\"/ca.crt\"]\n  \
             [[registry.\"{host}\".keypair]]\n    key = \"/n.key\"\n    cert = \"/n.crt\"\n"
        );
        assert!(text.ends_with(&entry), "{text}");
        let text = texts(&mirror(&[server]), Client::BuildKit).remove(0);
        assert!(text.ends_with(&format!("\n[registry.\"{host}\"]\n  http = false\n")), "{text}");
    }
}

#[test]
fn unsupported_settings_are_refused() {
    let no_fallback = Mirror { fallback: Fallback::None, ..mirror(&["larder:8080"]) };
    for client in [Client::Docker, Client::BuildKit] {
        assert_eq!(no_fallback.documents(client), Err(MirrorError::AlwaysFallsBack));
    }
    let plain_http = Mirror { trust: trust(), ..mirror(&["http://larder:8080"]) };
    assert_eq!(plain_http.documents(Client::Containerd), Err(MirrorError::TrustInTheClear));
}

#[test]
fn servers_and_clients_are_parsed() {
    for (text, url) in [
        ("larder", "http://larder"),
        ("http://10.0.0.1:31080/", "http://10.0.0.1:31080"),
        ("https://[::1]:8443", "https://[::1]:8443"),
        ("http://[10.0.0.1]:31080", "http://10.0.0.1:31080"),
        ("http://[10.0.0.1]", "http://10.0.0.1"),
    ] {
        assert_eq!(text.parse::<Server>().unwrap().url(), url);
    }
    for text in [
        "",
        "ftp://larder",
        "http://larder/path",
        "http://",
        "a b",
        "http://u@larder",
        "http://[]:31080",
        "http://[larder]:31080",
        "http://[10.0.0.1]x",
    ] {
        assert_eq!(text.parse::<Server>(), Err(MirrorError::Server(text.into())), "{text}");
    }
    for (text, client) in [
        ("CRI-O", Client::RegistriesConf),
        ("skopeo", Client::RegistriesConf),
        ("k3s", Client::K3s),
    ] {
        assert_eq!(text.parse(), Ok(client), "{text}");
    }
    assert!("cri".parse::<Client>().unwrap_err().to_string().contains("containerd, crio"));
}

#[test]
fn the_kubelet_gets_a_provider_for_the_named_registries() {
    let quay = Registry::named("quay.io".parse().unwrap());
    let named = Mirror { registries: vec![corp(), quay], ..mirror(&["larder:8080"]) };
    let text = texts(&named, Client::Kubelet).remove(0);
    let (comments, yaml) = text.split_once("\napiVersion").unwrap();
    assert!(comments.lines().all(|line| line.starts_with('#')), "{comments}");
    for words in [
        "--image-credential-provider-config",
        "--image-credential-provider-bin-dir",
        "request-serviceaccounts-token-audience",
    ] {
        assert!(comments.contains(words), "{words}: {comments}");
    }
    assert_eq!(
        yaml,
        r#": kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
  - name: larder
    apiVersion: credentialprovider.kubelet.k8s.io/v1
    args:
      - credential-provider
    matchImages:
      - "registry.corp:5000"
      - "quay.io"
    defaultCacheDuration: 0s
    tokenAttributes:
      serviceAccountTokenAudience: "larder"
      cacheType: Token
      requireServiceAccount: true
"#
    );
    let any = mirror(&["larder:8080"]);
    assert_eq!(any.documents(Client::Kubelet), Err(MirrorError::NoRegistry));
    let other = Mirror { audience: "a\"b".into(), registries: vec![corp()], ..any };
    let text = texts(&other, Client::Kubelet).remove(0);
    assert!(text.contains(r#"serviceAccountTokenAudience: "a\"b""#), "{text}");
    let none = Mirror { audience: " ".into(), ..mirror(&["larder:8080"]) };
    assert_eq!(none.documents(Client::Kubelet), Err(MirrorError::Audience));
}

#[test]
fn quotes_in_a_path_are_escaped() {
    let ca = Some("/a\"b\\c".to_owned());
    let mirror = Mirror { trust: Trust { ca, ..Trust::default() }, ..mirror(&["https://a"]) };
    let text = texts(&mirror, Client::Containerd).remove(0);
    assert!(text.contains(r#"ca = "/a\"b\\c""#), "{text}");
}
