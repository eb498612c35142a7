//! Which fields of real documents are found, where, and what is reported instead.

use super::{Findings, Form, Place, find};

const DIGEST: &str = "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

/// The references with their fields, and the lines of both lists in the order of the text.
fn found(findings: &Findings) -> Vec<(String, &str, usize)> {
    let line = |place: &Place| place.line;
    let found = findings.found.iter();
    found.map(|e| (e.name.with(&e.reference), e.place.field.as_str(), line(&e.place))).collect()
}

fn skipped(findings: &Findings) -> Vec<String> {
    let text = |line: usize, field: &str, reason: &str| format!("{line}: {field}: {reason}");
    let each = findings.skipped.iter();
    each.map(|each| text(each.place.line, &each.place.field, &each.reason)).collect()
}

/// Expects exactly these references in a text without errors.
#[track_caller]
fn finds(form: Form, text: &str, expected: &[(&str, &str, usize)]) {
    let findings = find(text, form);
    let found = found(&findings);
    let found: Vec<_> =
        found.iter().map(|(image, field, line)| (image.as_str(), *field, *line)).collect();
    assert_eq!(found, expected, "{:?}\n{text}", findings.skipped);
    assert_eq!((findings.skipped, findings.errors), (vec![], vec![]), "{text}");
}

#[track_caller]
fn skips(form: Form, text: &str, expected: &[&str]) {
    let findings = find(text, form);
    assert_eq!(skipped(&findings), expected, "{text}");
    assert_eq!((findings.found, findings.errors), (vec![], vec![]), "{text}");
}

#[test]
fn deployment_with_all_kinds_of_containers() {
    let text = "\
apiVersion: apps/v1
kind: Deployment
metadata:
  name: web
  annotations:
    note: 'image: not/followed:1'
spec:
  template:
    spec:
      initContainers:
      - {name: init, image: busybox}
      containers:
      - name: web
        image: \"quay.io/team/web:1.2\"
        imagePullPolicy: Always
      - image: 'registry.corp:5000/side:v1'
      ephemeralContainers:
      - name: debug
        image: nicolaka/netshoot
        targetContainerName: web
      volumes:
      - name: model
        image:
          reference: ghcr.io/models/llm:3
          pullPolicy: IfNotPresent
status:
  image: ignored:1
";
    let pod = |rest: &str| format!("spec.template.spec.{rest}");
    finds(
        Form::Manifests,
        text,
        &[
            ("docker.io/library/busybox:latest", &pod("initContainers[0].image"), 11),
            ("quay.io/team/web:1.2", &pod("containers[0].image"), 14),
            ("registry.corp:5000/side:v1", &pod("containers[1].image"), 16),
            ("docker.io/nicolaka/netshoot:latest", &pod("ephemeralContainers[0].image"), 19),
            ("ghcr.io/models/llm:3", &pod("volumes[0].image.reference"), 24),
        ],
    );
}

#[test]
fn list_of_kubectl_lists_what_is_specified_and_not_what_nodes_report() {
    let pinned = format!("quay.io/team/app@{DIGEST}");
    let text = format!(
        "apiVersion: v1\nitems:\n- apiVersion: v1\n  kind: Pod\n  spec:\n    containers:\n    \
         - image: quay.io/team/app:1@{DIGEST}\n  status:\n    containerStatuses:\n    \
         - image: {DIGEST}\n      imageID: quay.io/team/app@{DIGEST}\n- apiVersion: batch/v1\n  \
         kind: CronJob\n  spec:\n    jobTemplate:\n      spec:\n        template:\n          spec:\n            \
         containers: [{{image: alpine:3.20}}]\nkind: List\n"
    );
    finds(
        Form::Manifests,
        &text,
        &[
            (&pinned, "items[0].spec.containers[0].image", 7),
            (
                "docker.io/library/alpine:3.20",
                "items[1].spec.jobTemplate.spec.template.spec.containers[0].image",
                19,
            ),
        ],
    );
    let json = r#"{"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "v1", "kind": "Pod", "spec": {"containers": [{"image": "a\u002fb:1"}]},
         "status": {"containerStatuses": [{"image": "c/d:1"}]}}]}"#;
    finds(Form::Manifests, json, &[("docker.io/a/b:1", "items[0].spec.containers[0].image", 2)]);
}

#[test]
fn custom_resources_and_operators() {
    let text = "\
apiVersion: monitoring.coreos.com/v1
kind: Prometheus
spec: {image: 'quay.io/prometheus/prometheus:v3.1.0', thanos: {baseImage: quay.io/thanos/thanos}}
---
apiVersion: argoproj.io/v1alpha1
kind: Workflow
spec:
  arguments:
    parameters: [{name: tool-image, value: alpine:3}]
  templates:
  - container: {image: docker/whalesay:latest, command: [cowsay, '{{inputs.parameters.text}}']}
---
kind: ClusterServiceVersion
metadata:
  annotations: {containerImage: 'quay.io/op/operator:1', alm-examples: '[{\"image\": \"x/y:1\"}]'}
spec:
  env:
  - {name: RELATED_IMAGE_PROXY, value: quay.io/op/proxy:1}
  - name: RELATED_IMAGE_AGENT
    value: quay.io/op/agent:1
  - {name: DEFAULT_IMAGE, valueFrom: {configMapKeyRef: {}}}
  - {name: OTHER, value: quay.io/not/listed:1}
  relatedImages: [{name: proxy, image: quay.io/op/related:1}]
---
kind: ConfigMap
data: {sidecar-image: a/b:1, PAUSE_IMAGE: registry.k8s.io/pause:3.10, RELATED_IMAGE_X: c/d:2, imagePullPolicy: Always}
";
    finds(
        Form::Manifests,
        text,
        &[
            ("quay.io/prometheus/prometheus:v3.1.0", "spec.image", 3),
            ("quay.io/thanos/thanos:latest", "spec.thanos.baseImage", 3),
            ("docker.io/library/alpine:3", "spec.arguments.parameters[0].value", 9),
            ("docker.io/docker/whalesay:latest", "spec.templates[0].container.image", 11),
            ("quay.io/op/operator:1", "metadata.annotations.containerImage", 15),
            ("quay.io/op/proxy:1", "spec.env[0].value", 18),
            ("quay.io/op/agent:1", "spec.env[1].value", 20),
            ("quay.io/op/related:1", "spec.relatedImages[0].image", 23),
            ("docker.io/a/b:1", "data.sidecar-image", 26),
            ("registry.k8s.io/pause:3.10", "data.PAUSE_IMAGE", 26),
            ("docker.io/c/d:2", "data.RELATED_IMAGE_X", 26),
        ],
    );
}

#[test]
fn compose_file_with_anchors_and_merge_keys() {
    let text = "\
x-base: &base
  image: &image redis:7
  restart: always
services:
  cache: {<<: *base}
  web:
    image: *image
  other:
    <<: *base
    image: nginx
  built: {build: .}
";
    finds(
        Form::Manifests,
        text,
        &[
            ("docker.io/library/redis:7", "x-base.image", 2),
            ("docker.io/library/redis:7", "services.web.image", 7),
            ("docker.io/library/nginx:latest", "services.other.image", 10),
        ],
    );
}

#[test]
fn kustomization_and_lists_of_images() {
    let text = format!(
        "images:\n- name: controller\n  newName: quay.io/op/controller\n  newTag: v1\n- name: nginx\n  \
         newTag: 1.10\n- name: app\n  newName: quay.io/team/app\n  digest: {DIGEST}\n- name: ghcr.io/a/b:1\n\
         - quay.io/c/d\n- {{name: logo, url: x.png}}\n"
    );
    let pinned = format!("quay.io/team/app@{DIGEST}");
    finds(
        Form::Manifests,
        &text,
        &[
            ("quay.io/op/controller:v1", "images[0].newName", 3),
            ("docker.io/library/nginx:1.10", "images[1].name", 5),
            (&pinned, "images[2].newName", 8),
            ("ghcr.io/a/b:1", "images[3].name", 10),
            ("quay.io/c/d:latest", "images[4]", 11),
        ],
    );
    skips(
        Form::Manifests,
        "images: [{name: a, newName: b/c}]",
        &["1: images[0].newName: b/c: there is no tag or digest"],
    );
}

const VALUES: &str = "\
image:
  registry: quay.io
  repository: team/app
  tag: 1.10
sidecar:
  image: {repository: ghcr.io/a/b, tag: '', digest: DIGEST}
proxy:
  repository: envoyproxy/envoy
  tag: v1.31
worker:
  image: team/worker
  tag: v2
toolImage: {name: c/tool, version: v3}
plain: {image: 'alpine:3', tag: unused}
dependencies: [{repository: 'https://charts.example.com', version: 1.2.3}]
";

#[test]
fn values_files_are_read_on_request() {
    let text = VALUES.replace("DIGEST", DIGEST);
    let pinned = format!("ghcr.io/a/b@{DIGEST}");
    finds(
        Form::Values,
        &text,
        &[
            ("quay.io/team/app:1.10", "image.repository", 3),
            (&pinned, "sidecar.image.repository", 6),
            ("docker.io/envoyproxy/envoy:v1.31", "proxy.repository", 8),
            ("docker.io/team/worker:v2", "worker.image", 11),
            ("docker.io/c/tool:v3", "toolImage.name", 13),
            ("docker.io/library/alpine:3", "plain.image", 14),
        ],
    );
    finds(
        Form::Manifests,
        &text,
        &[
            ("docker.io/team/worker:latest", "worker.image", 11),
            ("docker.io/library/alpine:3", "plain.image", 14),
        ],
    );
    skips(
        Form::Values,
        "image: {repository: a/b, tag: ''}\nx: &x {pullPolicy: Always}\ny: {image: {<<: *x, tag: v1}}\n",
        &[
            "1: image.repository: a/b: there is no tag or digest",
            "3: y.image: merge keys (<<) are not supported",
        ],
    );
}

#[test]
fn fields_that_may_name_images_count_if_they_have_references() {
    let text = "\
spec:
  imageName: ghcr.io/cloudnative-pg/postgresql:16.1
  imageRef: quay.io/a/b:1
  imageUrl: quay.io/c/d:2
  runnerImageReference: e/f:3
containerImages: [g/h:4, icon.png]
jobImages: {a: ji/a:1, size: 12}
images: {web: 'nginx:1.27', registry: 'registry.corp:5000', pullPolicy: Always}
args:
- --config-reloader-image=quay.io/arg/img:1
- --image=i/j:5
- --proxy.image=k/l:6
- --image-pull-policy=Always
- --image=untagged
- --listen=a/b:1
";
    finds(
        Form::Manifests,
        text,
        &[
            ("ghcr.io/cloudnative-pg/postgresql:16.1", "spec.imageName", 2),
            ("quay.io/a/b:1", "spec.imageRef", 3),
            ("quay.io/c/d:2", "spec.imageUrl", 4),
            ("docker.io/e/f:3", "spec.runnerImageReference", 5),
            ("docker.io/g/h:4", "containerImages[0]", 6),
            ("docker.io/ji/a:1", "jobImages.a", 7),
            ("docker.io/library/nginx:1.27", "images.web", 8),
            ("quay.io/arg/img:1", "args[0]", 10),
            ("docker.io/i/j:5", "args[1]", 11),
            ("docker.io/k/l:6", "args[2]", 12),
        ],
    );
    for text in [
        "imagePullPolicy: IfNotPresent\nimageTag: v1\nimageSize: 12\nimageName: ubuntu-22.04\n",
        "imageUrl: 'https://example.com/logo.png'\nimageRef: 7d3f2c9a-1b\nimageRef: {kind: Image, name: x}\n",
        "profileImages: [a.png, 'https://example.com/b.png:1']\nimagesPerPage: 'a:1'\n",
    ] {
        finds(Form::Manifests, text, &[]);
    }
}

#[test]
fn stream_of_json_objects_is_read_to_its_end() {
    let text = "{\"image\": \"a/b:1\"}\n{\"x\":\n {\"image\": \"c/d:2\"}}{\"image\": \"e/f:3\"}\n\n\
                {\"image\": \"A B\"}\n";
    let findings = find(text, Form::Manifests);
    let expected = [
        ("docker.io/a/b:1".to_owned(), "image", 1),
        ("docker.io/c/d:2".to_owned(), "x.image", 3),
        ("docker.io/e/f:3".to_owned(), "image", 3),
    ];
    assert_eq!(found(&findings), expected, "{:?}", findings.errors);
    assert!(skipped(&findings)[0].starts_with("5: image: A B"), "{:?}", findings.skipped);
    assert_eq!(findings.errors, vec![]);
}

#[test]
fn values_that_are_not_references_are_reported() {
    let text = format!(
        "a: {{image: 'nginx:${{TAG:-1.25}}'}}\nb: {{image: '{{{{workflow.image}}}}'}}\nc: {{image: 'A B'}}\n\
         d: {{image: 'https://x.io/a'}}\ne: {{image: {DIGEST}}}\n'f.g/h': {{osImage: \"Ubuntu\\e 22\"}}\n"
    );
    let repository = "the components of a repository must be lower-case letters and digits, separated by one of \
                      '.', '_', '__' or dashes, and joined by '/'";
    let id = format!("5: e.image: {DIGEST}: an image ID, which names no repository");
    let findings = find(&text, Form::Manifests);
    let skipped = skipped(&findings);
    assert_eq!(skipped.len(), 6, "{skipped:#?}");
    assert_eq!(skipped[0], "1: a.image: nginx:${TAG:-1.25}: a variable that is not expanded");
    assert_eq!(skipped[1], "2: b.image: {{workflow.image}}: a template; render it first");
    assert_eq!(skipped[2], format!("3: c.image: A B: {repository}"));
    assert!(skipped[3].starts_with("4: d.image: https://x.io/a: "), "{}", skipped[3]);
    assert_eq!(skipped[4], id);
    assert_eq!(skipped[5], format!("6: [\"f.g/h\"].osImage: Ubuntu\\u{{1b}} 22: {repository}"));
    assert_eq!((findings.found, findings.errors), (vec![], vec![]));
}

#[test]
fn empty_values_and_values_of_other_types_are_no_images() {
    for text in [
        "",
        "# nothing\n",
        "---\n---\n",
        "image:\n",
        "image: ''\n",
        "image: ~\n",
        "hasImage: true\nbaseImage: 'no'\nimage: 12\n",
        "image: [a, b]\n",
        "image: {type: string, description: the image to run}\n",
        "properties: {repository: {type: string}, tag: {type: string}}\n",
        "images: nginx\n",
        "just a text",
        "{\"image\": null}",
    ] {
        finds(Form::Manifests, text, &[]);
        finds(Form::Values, text, &[]);
    }
}

#[test]
fn broken_document_does_not_hide_the_others() {
    let text = "image: a/one:1\n---\nimage: [a/two:1\n---\nimage: a/three:1\n---\n? {a: b}\n: x\n---\nimage: a/four:1\n";
    let findings = find(text, Form::Manifests);
    let images: Vec<_> = found(&findings).iter().map(|(image, ..)| image.clone()).collect();
    let expected = ["docker.io/a/one:1", "docker.io/a/three:1", "docker.io/a/four:1"];
    assert_eq!(images, expected, "{:?}", findings.errors);
    let errors: Vec<_> = findings.errors.iter().map(|e| (e.line, e.to_string())).collect();
    assert_eq!(errors.len(), 2, "{errors:?}");
    assert!((3..=4).contains(&errors[0].0) && errors[0].1.starts_with("not valid YAML: "));
    assert_eq!(errors[1], (7, "not valid YAML: a key that is not a text".to_owned()));
}

#[test]
fn source_of_a_helm_chart_is_refused_with_advice() {
    for text in [
        "kind: Deployment\nspec:\n  image: {{ .Values.image }}\n",
        "{{- if .Values.enabled }}\nkind: Pod\nspec: {image: a/b:1}\n{{- end }}\n",
        "kind: Pod\nspec:\n  containers:\n    {{- toYaml .Values.containers | nindent 4 }}\n---\nimage: {{ .x }}\n",
    ] {
        let findings = find(text, Form::Manifests);
        assert_eq!((&findings.found[..], findings.errors.len()), (&[][..], 1), "{text}");
        let error = findings.errors[0].to_string();
        assert!(error.contains("run helm template"), "{text}: {error}");
    }
}

#[test]
fn line_ends_and_byte_order_marks_of_windows() {
    let text = "\u{feff}kind: Pod\r\nspec:\r\n  image: a/b:1\r\n---\r\nimage: >-\r\n  c/d:2\r\n";
    finds(
        Form::Manifests,
        text,
        &[("docker.io/a/b:1", "spec.image", 3), ("docker.io/c/d:2", "image", 6)],
    );
}

#[test]
fn nested_aliases_and_deep_documents_are_bounded() {
    let mut laughs = "a0: &a0 {image: 'x/y:1'}\n".to_owned();
    for level in 1..60 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(", ");
        laughs.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
    }
    finds(Form::Values, &laughs, &[("docker.io/x/y:1", "a0.image", 1)]);
    finds(
        Form::Values,
        "&a {image: x, self: *a, images: [*a]}",
        &[("docker.io/library/x:latest", "image", 1)],
    );
    let chain: String = (1..100_000).map(|n| format!("- &a{n} [*a{}]\n", n - 1)).collect();
    finds(Form::Manifests, &format!("- &a0 x\n{chain}"), &[]);
    let list = format!("{}a/b:1{}", "[".repeat(100_000), "]".repeat(100_000));
    let flow = format!("{}image: a/b:1{}", "{a: ".repeat(500), "}".repeat(500));
    let block: String = (0..500).map(|n| format!("{}a:\n", " ".repeat(n))).collect();
    for text in [list, flow, block] {
        let findings = find(&text, Form::Manifests);
        assert_eq!((findings.found.len(), findings.errors.len()), (0, 1));
    }
    let long = format!("{}image: {}\n", "x".repeat(1000), "y".repeat(100_000));
    finds(Form::Manifests, &long, &[]);
}

#[test]
fn unreadable_documents_are_reported_up_to_a_limit() {
    let findings = find(&"[\n---\n".repeat(10_000), Form::Manifests);
    assert_eq!(findings.errors.len(), super::UNREADABLE_MAX);
}
