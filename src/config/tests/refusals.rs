//! What is refused, and the text of the error.

use super::super::{Overrides, load};
use super::settings;
use crate::certificates::IdentityFiles;
use crate::http::{ClientAuth, ServerTlsSettings};

#[test]
fn errors_name_line_and_column() {
    for (text, place, words) in [
        ("prt: 1", "larder.yaml:1:1:", "unknown key prt: did you mean port?"),
        ("port: x", "larder.yaml:1:7:", "port: x is not a port (0 to 65535)"),
        ("port: -1", "larder.yaml:1:7:", "(0 to 65535)"),
        ("workers: 1.5", "larder.yaml:1:10:", "whole number"),
        ("port: 99999", "larder.yaml:1:7:", "port: 99999 is not a port (0 to 65535)"),
        ("tagTtl: 5", "larder.yaml:1:9:", "unit"),
        ("logLevel: loud", "larder.yaml:1:11:", "debug, info, warn, error"),
        ("host: nowhere", "larder.yaml:1:7:", "IP address"),
        ("port: 1\nport: 2", "larder.yaml:2:1:", "the key port is given twice"),
        ("registries:\n  - name: a b", "larder.yaml:2:11:", "host name"),
        ("registries:\n  - scheme: http", "larder.yaml:2:", "name"),
        ("registries:\n  - name: a.io\n    scheme: ftp", "larder.yaml:3:13:", "http"),
        ("registries:\n  - name: a.io\n    endpoints: [a]", "larder.yaml:3:", "URL"),
        ("registries:\n  - name: a.io\n    endpoints: [{u: a}]", "larder.yaml:3:", "url"),
        ("registries:\n  - name: a.io\n    rateLimit: 5 MB", "larder.yaml:3:16:", "10MB"),
        ("workers: 0", "larder.yaml:1:10:", "workers: 0 is not a whole number from 1"),
        ("pullTimeout: 0", "larder.yaml:1:14:", "20s"),
        ("{port: 1, maxDownloads: 0}", "larder.yaml:1:", "maxDownloads: 0 is not"),
        ("unlistedPorts: [443, 99999]", "larder.yaml:1:", "99999 is not a port"),
        (
            "registries:\n  - name: a.io\n    rateLimit: 5",
            "larder.yaml:3:16:",
            "rateLimit: 5 has no unit",
        ),
        ("registries:\n  - name: a.io\n    rateLimit: 0", "larder.yaml:3:16:", "leave it out"),
        ("registries:\n  - name: a.io\n    maxDownloads: x", "larder.yaml:3:19:", "whole"),
        ("tags: [{pattern: '/(/', tagTtl: 1m}]", "larder.yaml:1:18:", "not a pattern"),
        ("tags: [{pattern: x, hold: 3}]", "larder.yaml:1:", "unit"),
        ("tags: [{tagTtl: 1m}]", "larder.yaml:1:", "pattern"),
        ("deny: [alpine:3]", "larder.yaml:1:8:", "without tags"),
        ("allow: ['/(/']", "larder.yaml:1:9:", "not a pattern"),
        ("events: {types: [damaged]}", "larder.yaml:1:", "webhook"),
        ("events: {webhook: ftp://x}", "larder.yaml:1:19:", "https://alerts.example.com"),
        ("events: {webhook: 'http://x', types: [tag]}", "larder.yaml:1:", "tag-moved, tag-held"),
        ("sync: [{name: 'a b'}]", "larder.yaml:1:", "letters, digits"),
        ("sync: [{name: preload}]", "larder.yaml:1:", "preloadImages"),
        ("serverAuthConfig: {oidc: [{audience: x, allow: [{}]}]}", "larder.yaml:1:", "issuer"),
        ("serverAuthConfig: {oidc: [{issuer: 'https://a'}]}", "larder.yaml:1:", "audience"),
        ("serverAuthConfig: {oidc: [{issuer: 'http://a'}]}", "larder.yaml:1:", "https URL"),
        ("serverAuthConfig: {oidc: [{audience: ' '}]}", "larder.yaml:1:", "such as larder"),
        (
            "serverAuthConfig: {oidc: [{user: ''}]}",
            "larder.yaml:1:",
            "a claim is a key such as sub",
        ),
        (
            "serverAuthConfig: {oidc: [{allow: [{claims: {a: '/(/'}}]}]}",
            "larder.yaml:1:",
            "pattern",
        ),
        ("serverAuthConfig: {oidc: [{allow: [{claims: x}]}]}", "larder.yaml:1:", "map"),
        (
            "serverAuthConfig: {oidc: [{allow: [{claims: {}}]}]}",
            "larder.yaml:1:",
            "claims is empty",
        ),
        ("serverAuthConfig: {oidc: [{allow: [{repositories: []}]}]}", "larder.yaml:1:", "is empty"),
        (
            "serverAuthConfig:\n  oidc:\n    - allow:\n        - claims:",
            "larder.yaml:4:",
            "claims: the key has no value",
        ),
        (
            "serverAuthConfig:\n  oidc:\n    - allow:\n        - repositories: ~",
            "larder.yaml:4:",
            "repositories: the key has no value",
        ),
        (
            "serverAuthConfig: {oidc: [{allow: [{repositories: [a*]}]}]}",
            "larder.yaml:1:",
            "docker.io",
        ),
        (
            "sync:\n  - name: a\n    every: 59s",
            "larder.yaml:3:12:",
            "every: 59s is too short: at least 1m",
        ),
        ("sync:\n  - name: a\n    every: 6", "larder.yaml:3:12:", "unit"),
        (
            "sync:\n  - name: a\n    cron: 0 3 * *",
            "larder.yaml:3:11:",
            "cron: \"0 3 * *\" is not a schedule",
        ),
        ("sync:\n  - name: a\n    newestBy: age", "larder.yaml:3:15:", "use one of semver, date"),
        ("sync:\n  - name: a\n    newest: 0", "larder.yaml:3:13:", "whole number from 1"),
        ("sync:\n  - name: a\n    images: ['app:/(/']", "larder.yaml:3:", "not a pattern"),
        ("sync:\n  - name: a\n    images: [quay.io/*]", "larder.yaml:3:", "only the tag"),
        ("sync: [{images: [alpine]}]", "larder.yaml:1:", "name"),
        ("platforms: [linux]", "larder.yaml:1:13:", "linux/amd64"),
        ("onUpstreamDelete: burn", "larder.yaml:1:19:", "keep"),
        ("cacheSize: big", "larder.yaml:1:12:", "10MB"),
        ("freeSpace: 101%", "larder.yaml:1:12:", "10%"),
        ("pin: ['/(/']", "larder.yaml:1:", "not a pattern"),
        ("pin: quay.io/org/app", "larder.yaml:1:", "this is a list"),
        ("management: 8090", "larder.yaml:1:13:", "this is a map"),
        ("pruneConfig: {type: age}", "larder.yaml:1:21:", "accessed"),
        ("unlistedRegistries: maybe", "larder.yaml:1:21:", "allow"),
        (
            "registries:\n  - name: a.io\n    auth: {token: {provider: gcr}}",
            "larder.yaml:3:30:",
            "only token provider is ecr",
        ),
        (
            "registries:\n  - name: a.io\n    auth: {token: {providerOpts: role=x}}",
            "larder.yaml:3:34:",
            "profile=NAME",
        ),
        (
            "registries:\n  - name: a.io\n    auth: {credentialHelper: ../x}",
            "larder.yaml:3:30:",
            "absolute path",
        ),
        (
            "registries:\n  - name: a.io\n    repositories: [{prefix: \"\", auth: {}}]",
            "larder.yaml:3:29:",
            "whole components",
        ),
    ] {
        let error = settings(text).unwrap_err();
        assert!(error.starts_with(place) && error.contains(words), "{text}: {error}");
    }
}

#[test]
fn similar_keys_and_values_are_suggested() {
    for (text, words) in [
        ("prt: 1", "unknown key prt: did you mean port?"),
        ("imagepath: /x", "did you mean imagePath?"),
        ("scrub: {evry: 1d}", "unknown key evry: did you mean every? Allowed: every, rate"),
        ("pruneConfig: {type: create}", "unknown value create: did you mean created?"),
        ("onUpstreamDelete: burn", "unknown value burn: use one of keep, drop"),
        ("logLevel: warning", "unknown log level warning: did you mean warn?"),
        ("logFormat: jsn", "unknown log format jsn: did you mean json?"),
        ("xyz: 1", "unknown key xyz: use one of imagePath, logLevel"),
        ("serverAuthConfig: {passwd: /x}", "htpasswd"),
    ] {
        let error = settings(text).unwrap_err();
        assert!(error.contains(words), "{text}: {error}");
    }
}

#[test]
fn contradictions_are_refused() {
    for (text, words) in [
        ("port: 8081\nhealth: 8081", "port and health are both 8081"),
        ("port: 8081\nhost: 127.0.0.1\nmanagement: {port: 8081}", "port and management.port"),
        ("management: {port: 8081}\nhealth: 8081", "management.port and health are both 8081"),
        ("management: {tokenFile: /t}", "port"),
        ("tags: [{pattern: x}]", "the rule for x needs tagTtl or hold"),
        ("registries: [{name: a.io, tags: [{pattern: x}]}]", "the rule for x needs tagTtl or hold"),
        ("sync: [{name: a, every: 1h}]", "sync: a: it names no images"),
        ("sync: [{name: a, images: [x]}]", "sync: a: it has no schedule"),
        ("sync: [{name: a, images: [x], every: 1h, cron: '0 3 * * *'}]", "exclude each other"),
        ("sync: [{name: a, images: [x], every: 1h, newestBy: date}]", "newestBy needs newest"),
        (
            "sync: [{name: a, images: [x], every: 1h}, {name: a, images: [y], every: 1h}]",
            "sync: a: the name is given twice",
        ),
        (
            "serverAuthConfig: {oidc: [{issuer: 'https://a', audience: x, allow: []}]}",
            "serverAuthConfig.oidc: https://a: allow has no entries",
        ),
        (
            "serverAuthConfig: {oidc: [{issuer: 'https://a', audience: x, keys: /k, ca: /c, allow: [{}]}]}",
            "keys excludes ca and tokenFile",
        ),
        (
            "serverAuthConfig: {oidc: [{issuer: 'https://a', audience: x, allow: [{}]}, \
             {issuer: 'https://a', audience: y, allow: [{}]}]}",
            "the issuer is given twice",
        ),
        (
            "serverAuthConfig: {oidc: [{issuer: 'https://a', audience: x, allow: [{claims: {'': y}}]}]}",
            "a claim is a key such as sub",
        ),
        ("cacheSize: 0", "cacheSize: 0 would keep nothing"),
        ("pruneConfig: {enabled: true, count: -2}", "pruneConfig.count"),
        ("pruneConfig: {enabled: true, count: 0}", "pruneConfig.count"),
        ("pruneConfig: {enabled: true, duration: 0s}", "pruneConfig.duration"),
        ("unlistedPorts: [443, 0]", "unlistedPorts"),
        ("pruneConfig: {enabled: true, frequency: '0'}", "pruneConfig.frequency"),
        ("registries: [{name: a.io}, {name: A.IO}]", "listed twice"),
        ("registries: [{name: a.io, aliases: [x]}, {name: b.io, aliases: [X]}]", "given twice"),
        ("registries: [{name: a.io, aliases: [b.io]}, {name: b.io}]", "name of a listed"),
        ("registries: [{name: a.io, aliases: [\"x/y\"]}]", "letters"),
        ("registries: [{name: a.io, auth: {user: u}}]", "needs password"),
        ("registries: [{name: a.io, auth: {password: p}}]", "needs auth.user"),
        ("registries: [{name: a.io, auth: {user: u, password: p, passwordFile: /f}}]", "keep one"),
        ("registries: [{name: a.io, auth: {user: u, passwordFromEnv: LARDER_UNSET}}]", "not set"),
        ("registries: [{name: a.io, tls: {cert: /c}}]", "needs tls.key"),
        ("registries: [{name: a.io, endpoints: []}]", "endpoints is empty"),
        ("registries: [{name: a.io, endpoints: [\"http://b\", \"http://b/\"]}]", "twice"),
        (
            "registries: [{name: a.io, endpoints: [\"http://b\", \"http://c\"], tls: {}}]",
            "belong to one of them",
        ),
        ("registries: [{name: a.io, auth: {credentialHelper: x, dockerConfig: /d}}]", "keep one"),
        (
            "registries: [{name: a.io, auth: {token: {provider: ecr, static: t}}}]",
            "token.static and token.provider",
        ),
        ("registries: [{name: a.io, auth: {user: u, credentialHelper: x}}]", "auth.user"),
        ("registries: [{name: a.io, auth: {expiry: 1h}}]", "needs auth.credentialHelper"),
        ("registries: [{name: a.io, auth: {credentialHelper: x, expiry: 1s}}]", "at least 60s"),
        ("registries: [{name: a.io, auth: {token: {expiry: 1h}}}]", "needs auth.token.provider"),
        (
            "registries: [{name: a.io, repositories: [{prefix: x, auth: {}}, \
                 {prefix: x, auth: {}}]}]",
            "given twice",
        ),
        ("registries: [{name: a.io, repositories: [{prefix: x, auth: {user: u}}]}]", "x: auth"),
    ] {
        let error = settings(text).unwrap_err();
        assert!(error.contains(words), "{text}: {error}");
    }
}

#[test]
fn incomplete_server_tls_is_refused() {
    let tls = |text: &str| settings(&format!("serverTlsConfig: {text}")).map(|it| it.tls);
    let identity = IdentityFiles { cert: "/c".into(), key: "/k".into() };
    for (text, clients) in [
        ("{cert: /c, key: /k}", ClientAuth::None),
        ("{cert: /c, key: /k, ca: /a, clientAuth: none}", ClientAuth::None),
        ("{cert: /c, key: /k, clientAuth: verify}", ClientAuth::Verify { ca: None }),
        (
            "{cert: /c, key: /k, ca: /a, clientAuth: verify}",
            ClientAuth::Verify { ca: Some("/a".into()) },
        ),
    ] {
        let expected = ServerTlsSettings { identity: identity.clone(), clients };
        assert_eq!(tls(text), Ok(Some(expected)), "{text}");
    }
    for text in ["{}", "{clientAuth: none}"] {
        assert_eq!(tls(text), Ok(None), "{text}");
    }
    for text in ["{cert: /c}", "{key: /k}", "{ca: /a}", "{clientAuth: verify}"] {
        assert!(tls(text).unwrap_err().contains("both are needed"), "{text}");
    }
    assert!(tls("{cert: /c, key: /k, clientAuth: maybe}").unwrap_err().contains("verify"));
    let unused = settings("serverTlsConfig: {cert: /c, key: /k, ca: /a}").unwrap();
    assert_eq!(unused.without_effect, ["serverTlsConfig.ca (without clientAuth: verify)"]);
    let open = settings("serverAuthConfig: {}").unwrap();
    assert_eq!(open.without_effect, ["serverAuthConfig (without htpasswd and oidc)"]);
}

#[test]
fn error_does_not_quote_secrets_of_the_file() {
    let error =
        settings("registries:\n  - name: a.io\n    auth: {password: hunter2, x: 1}").unwrap_err();
    assert!(!error.contains("hunter2"), "{error}");
}

#[test]
fn missing_file_is_named() {
    let over =
        Overrides { config_file: Some("/nonexistent/x.yaml".into()), ..Overrides::default() };
    assert!(load(over).unwrap_err().to_string().contains("/nonexistent/x.yaml"));
}

#[test]
fn parents_are_larders_and_listed_once() {
    for (text, words) in [
        ("[{url: 'https://a.io', kind: registry}]", "https://a.io: a parent has many registries"),
        ("['https://a.io', {url: 'https://a.io'}]", "https://a.io: it is listed twice"),
        ("[{url: 'https://a.io', tls: {cert: /c}}]", "https://a.io: tls.cert needs tls.key"),
    ] {
        let error = settings(&format!("parents: {text}")).unwrap_err().to_string();
        assert!(error.contains("parents: ") && error.contains(words), "{error}");
    }
}

#[test]
fn peers_are_named_in_one_way() {
    for (text, words) in [
        ("{}", "name the members with dns or urls"),
        ("{dns: a.svc, urls: ['http://a:1']}", "exclude each other"),
        ("{urls: ['http://a:1', 'http://b:1', 'http://A:1/']}", "A:1 is listed twice"),
        ("{dns: 'a.svc:8080'}", "set peers.port"),
        ("{dns: 'a b'}", "not a host name"),
        ("{dns: a.svc, tls: {key: /k}}", "tls.key needs tls.cert"),
    ] {
        let error = settings(&format!("peers: {text}")).unwrap_err().to_string();
        assert!(error.contains("peers: ") && error.contains(words), "{error}");
    }
}

#[test]
fn bucket_is_named_completely() {
    let keys = "bucket: b, endpoint: 'https://s3.lan', accessKeyId: k, secretAccessKey: s";
    assert!(settings(&format!("objectStore: {{{keys}}}")).is_ok());
    for (more, words) in [
        ("secretAccessKeyFile: /s", "keep one of"),
        ("partSize: 1MiB", "must be 5MiB to 5GiB"),
        ("partSize: 6GiB", "must be 5MiB to 5GiB"),
        ("region: ''", "is not the name of a region"),
        ("region: 'eu central'", "is not the name of a region"),
        ("region: \"eu\\e[31m\"", "is not the name of a region"),
        ("profile: p", "either accessKeyId or profile"),
        (
            "redirect: true, redirectEndpoint: 'https://s3.example.com/b'",
            "redirectEndpoint: leave out the path",
        ),
        ("prefix: a//b", "prefix is"),
        ("maxSize: 0", "would keep nothing"),
        ("unusedFor: 0", "would keep nothing"),
        ("readOnly: true, maxSize: 1GB", "readOnly excludes"),
    ] {
        let error = settings(&format!("objectStore: {{{keys}, {more}}}")).unwrap_err();
        assert!(error.contains("objectStore: ") && error.contains(words), "{error}");
    }
    for (entry, words) in [
        ("{bucket: 'a/b', endpoint: 'https://s3.lan'}", "not the name of a bucket"),
        ("{bucket: b, endpoint: 'https://s3.lan', accessKeyId: k}", "belong together"),
        ("{endpoint: 'https://s3.lan'}", "bucket"),
        ("{bucket: b, endpoint: 'http://h/some/path'}", "endpoint: leave out the path after h:"),
        (
            "{bucket: b, endpoint: 'https://s3.lan', accessKeyId: '', secretAccessKey: s}",
            "is not an access key id",
        ),
    ] {
        let error = settings(&format!("objectStore: {entry}")).unwrap_err();
        assert!(error.contains(words), "{error}");
    }
}

#[test]
fn keys_that_restrict_something_need_a_value() {
    for key in [
        "serverTlsConfig",
        "serverAuthConfig",
        "allowedHosts",
        "allow",
        "deny",
        "airGapped",
        "unlistedRegistries",
    ] {
        let error = settings(&format!("{key}:\nport: 1")).unwrap_err();
        assert!(
            error.contains(&format!("1:{}: {key}: the key has no value", key.len() + 1)),
            "{error}"
        );
    }
    for text in [
        "pruneConfig: {dryRun: }",
        "serverTlsConfig: {cert: }",
        "serverTlsConfig: {key: }",
        "serverTlsConfig: {clientAuth: }",
        "registries: [{name: quay.io, access: }]",
        "registries: [{name: quay.io, endpoints: }]",
        "registries: [{name: quay.io, endpoints: [{url: 'http://a', access: }]}]",
        "registries: [{name: quay.io, repositories: [{prefix: a, access: }]}]",
        "objectStore: {readOnly: }",
    ] {
        let error = settings(text).unwrap_err();
        assert!(
            error.contains("the key has no value: give one, or omit the key"),
            "{text}: {error}"
        );
    }
    let omitted = "serverAuthConfig: {oidc: [{issuer: 'https://a', audience: b, allow: [{}]}]}";
    assert!(settings(omitted).is_ok());
}

#[test]
fn errors_quote_the_file_without_control_characters_and_briefly() {
    let long = "y".repeat(100_000);
    for text in [
        r#"registries: [{name: a.io, aliases: ["\e[31m\nlarder: forged"]}]"#,
        r#"tags: [{pattern: "*\e/x"}]"#,
        r#"registries: [{name: a.io, auth: {username: a, passwordFromEnv: "\e[31m"}}]"#,
        r#"serverAuthConfig: {oidc: [{issuer: "https://x\n/\u202e", audience: a, allow: []}]}"#,
        r#"sync: [{name: a, every: "0\e"}]"#,
        r#"pin: ["*\u202e"]"#,
        &format!("sync: [{{name: a, every: {}5s}}]", "0".repeat(100_000)),
        &format!("objectStore: {{uploadRate: {}5}}", "0".repeat(100_000)),
        &format!("pin: ['*{long}']"),
        &format!("port: {long}"),
        &format!("{long}: 1"),
    ] {
        let error = settings(text).unwrap_err();
        assert!(error.chars().count() < 3100, "{}", error.len());
        assert!(!error.contains(|char: char| char.is_control() || char == '\u{202e}'), "{error:?}");
    }
}
