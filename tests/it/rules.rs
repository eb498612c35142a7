//! `allow` and `deny`: which repositories are served. Proves docs/configuration.md, "Which images are served".

use crate::support::client::{get, head};
use crate::support::larder::{blob, until};
use crate::support::site::Site;

#[test]
fn refused_repositories_are_not_served_even_if_they_are_cached() {
    let (registry, site, images) = Site::with_samples(&["app:1", "base:1"]);
    site.configure("deny: ['*/base']");
    let server = site.serve();
    registry.clear_requests();
    let [app, base] = &images[..] else { panic!("two images") };
    assert_eq!(get(server.address(), &app.target()).status, 200);
    let refused = get(server.address(), &base.target());
    assert_eq!((refused.status, refused.error_code().as_str()), (403, "DENIED"));
    assert!(refused.text().contains("is refused by the rule */base of deny"), "{}", refused.text());
    assert_eq!(head(server.address(), &base.target()).status, 403);
    for digest in base.digests() {
        let got = get(server.address(), &blob("library/base", &digest));
        assert_eq!(got.status, 404, "403 for a blob would be final for clients");
    }
    assert_eq!(get(server.address(), "/v2/library/base/tags/list?ns=docker.io").status, 403);
    let by_digest =
        base.target().replace("/manifests/1", &format!("/manifests/{}", base.image.digest()));
    assert_eq!(get(server.address(), &by_digest).status, 403);
    assert_eq!(registry.requests().len(), 0, "the registry is not asked");
    let (code, stdout, stderr) = site.run(&["load", "--attempts", "3", "base:1"]);
    assert_eq!(code, Some(1));
    assert!(format!("{stdout}{stderr}").contains("of deny"), "{stdout}{stderr}");
    let log = server.log();
    assert!(log.contains("reason=refused"), "{log}");
}

#[test]
fn only_allowed_repositories_are_served_and_a_reload_changes_the_rules() {
    let (_registry, site, images) = Site::with_samples(&["app:1", "base:1"]);
    site.configure("allow: [docker.io/app]");
    let server = site.serve();
    let [app, base] = &images[..] else { panic!("two images") };
    assert_eq!(get(server.address(), &app.target()).status, 200);
    let refused = get(server.address(), &base.target());
    assert_eq!(refused.status, 403);
    assert!(refused.text().contains("no rule of allow covers it"), "{}", refused.text());
    site.configure("allow: [docker.io]\ndeny: [docker.io/app]");
    until("the new rules", || get(server.address(), &base.target()).status == 200);
    assert_eq!(get(server.address(), &app.target()).status, 403);
}

#[test]
fn built_in_image_is_always_served() {
    let (_registry, site) = Site::empty("helloWorld: true\nallow: [quay.io]");
    let server = site.serve();
    let got = get(server.address(), "/v2/library/hello-world/manifests/latest?ns=docker.io");
    assert_eq!(got.status, 200);
    assert_eq!(get(server.address(), "/v2/library/app/manifests/1?ns=docker.io").status, 403);
}
