//! The metrics that dashboard, rules and documentation name, compared with the metrics that Larder exports.
//!
//! [`everything`] touches each exported metric. PromQL is not parsed; it is searched for names, selectors and groupings.
//! `promtool` parses it in `.ci/run`.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::time::Duration;

use larder::metrics::{
    ANSWERS, AccessCheck, BucketGauges, EndpointGauges, Gauges, IssuerGauges, Metrics, PoolGauges,
    Removal, SyncGauges, UsageGauges,
};
use regex_lite::Regex;
use serde_json::Value;

const DASHBOARD: &str = "charts/larder/dashboards/larder.json";
const RULES: &str = "charts/larder/rules/larder.yaml";
const DOCUMENTATION: &str = "docs/metrics.md";

/// Labels that Prometheus adds to every series.
const ADDED_LABELS: [&str; 2] = ["job", "instance"];
/// Labels with a fixed set of values.
const CLOSED_LABELS: [&str; 4] = ["how", "kind", "why", "route"];

#[test]
fn every_dashboard_metric_is_exported_with_its_labels() {
    let text = read(DASHBOARD);
    let dashboard: Value = serde_json::from_str(&text).unwrap();
    let mut expressions = Vec::new();
    // Variables use a language around PromQL with the same names and selectors.
    strings(&dashboard, &["expr", "definition"], &mut expressions);
    assert!(expressions.len() > 40, "no expressions found in the dashboard");
    let series = rendered();
    assert_eq!(unknown(&text, &expressions, &series, &BTreeMap::new()), [""; 0]);
}

#[test]
fn every_dashboard_legend_uses_labels_of_its_expression() {
    let dashboard: Value = serde_json::from_str(&read(DASHBOARD)).unwrap();
    let series = rendered();
    let label = regex(r"\{\{(\w+)\}\}");
    let mut legends = 0;
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let (expression, legend) = (text(target, "expr"), text(target, "legendFormat"));
            for label in label.captures_iter(legend) {
                legends += 1;
                let label = &label[1];
                let grouping = groupings(expression);
                let is_left = match grouping.is_empty() {
                    true => labels_of(expression, &series, &BTreeMap::new()).contains(label),
                    false => grouping.contains(label),
                };
                assert!(is_left, "{}: {expression} leaves no {label}", panel["title"]);
            }
        }
    }
    assert!(legends > 20, "no legends found in the dashboard");
}

#[test]
fn every_rule_metric_is_exported_with_its_labels() {
    let rules = rules();
    let expressions: Vec<String> = rules.iter().map(|rule| text(rule, "expr").to_owned()).collect();
    let records = records(&rules, &rendered());
    assert_eq!(unknown(&read(RULES), &expressions, &rendered(), &records), [""; 0]);
}

#[test]
fn recorded_names_have_a_colon_and_rules_use_only_defined_ones() {
    let rules = rules();
    let records = records(&rules, &rendered());
    assert!(!records.is_empty() && records.keys().all(|name| name.starts_with("larder:")));
    let name = regex(r"larder:[a-z0-9_:]+");
    for rule in &rules {
        for name in name.find_iter(text(rule, "expr")) {
            assert!(records.contains_key(name.as_str()), "{} is not recorded", name.as_str());
        }
    }
}

#[test]
fn every_alert_has_a_delay_a_severity_and_advice() {
    let rules = rules();
    let alerts: Vec<&Value> = rules.iter().filter(|rule| rule["alert"].is_string()).collect();
    assert!(alerts.len() > 10, "no alerts found");
    for alert in alerts {
        let name = text(alert, "alert");
        assert!(name.starts_with("Larder"), "{name}");
        assert!(alert["for"].is_string(), "{name} does not wait");
        let severity = text(&alert["labels"], "severity");
        assert!(["critical", "warning", "info"].contains(&severity), "{name}: {severity}");
        for (annotation, least) in [("summary", 20), ("description", 100)] {
            let message = text(&alert["annotations"], annotation);
            assert!(message.len() >= least, "the {annotation} of {name} is too short: {message}");
        }
    }
}

#[test]
fn alerts_and_their_severities_are_documented() {
    let row = regex(r"(?m)^\| `(Larder\w+)` \| (\w+) \|");
    let documentation = read(DOCUMENTATION);
    let rows = row.captures_iter(&documentation);
    let documented: BTreeSet<_> = rows.map(|row| (row[1].to_owned(), row[2].to_owned())).collect();
    let rules = rules();
    let alerts = rules.iter().filter(|rule| rule["alert"].is_string());
    let severity = |rule: &Value| text(&rule["labels"], "severity").to_owned();
    let alerts: BTreeSet<_> =
        alerts.map(|rule| (text(rule, "alert").to_owned(), severity(rule))).collect();
    assert_eq!(documented, alerts);
}

#[test]
fn every_metric_is_documented_with_its_type_and_its_labels() {
    let row = regex(r"(?m)^\| `(larder_\w+)` \| (\w+) \| ([^|]*)\| .+ \|$");
    let documentation = read(DOCUMENTATION);
    let mut documented = BTreeMap::new();
    for row in row.captures_iter(&documentation) {
        let labels = row[3].split([',', '`', ' ']).filter(|label| !label.is_empty());
        let labels: BTreeSet<String> = labels.map(str::to_owned).collect();
        let before = documented.insert(row[1].to_owned(), (row[2].to_owned(), labels));
        assert!(before.is_none(), "{} is listed twice", &row[1]);
    }
    let rendered = rendered().into_iter().map(|(name, series)| {
        let labels = series.labels.into_keys().filter(|label| label != "le").collect();
        (name, (series.kind, labels))
    });
    assert_eq!(documented, rendered.collect());
}

// ---- Exported metrics ------------------------------------------------------------------------------------------

/// All series with one name.
#[derive(Debug, Default)]
struct Series {
    /// Counter, gauge or histogram.
    kind: String,
    /// Labels and their exported values.
    labels: BTreeMap<String, BTreeSet<String>>,
}

/// The families by name. Histograms are listed without the suffixes of their series.
type AllSeries = BTreeMap<String, Series>;

fn rendered() -> AllSeries {
    let (metrics, gauges) = everything();
    let text = metrics.render(&gauges);
    let kind = regex(r"^# TYPE (\w+) (\w+)$");
    let sample = regex(r"^(larder_\w+)(?:\{(.*)\})? \S+$");
    let label = regex(r#"(\w+)="([^"]*)""#);
    let (mut all, mut kinds) = (AllSeries::new(), BTreeMap::new());
    for line in text.lines() {
        if let Some(found) = kind.captures(line) {
            kinds.insert(found[1].to_owned(), found[2].to_owned());
        }
        let Some(found) = sample.captures(line) else {
            assert!(line.starts_with('#'), "not a sample: {line}");
            continue;
        };
        let name = family(&found[1]);
        let series = all.entry(name.to_owned()).or_default();
        series.kind = kinds[name.trim_end_matches("_total")].clone();
        for pair in label.captures_iter(found.get(2).map_or("", |labels| labels.as_str())) {
            series.labels.entry(pair[1].to_owned()).or_default().insert(pair[2].to_owned());
        }
    }
    // Every registered family must have been touched; otherwise a missing one would go unnoticed.
    assert_eq!(kinds.len(), all.len(), "{kinds:?} {:?}", all.keys());
    all
}

/// A name without the suffix of a histogram series.
fn family(name: &str) -> &str {
    let of_histogram = ["_bucket", "_sum", "_count"];
    of_histogram.iter().find_map(|suffix| name.strip_suffix(suffix)).unwrap_or(name)
}

/// Touches every counter and sets every gauge. A new field of [`Gauges`] must be set here to compile.
fn everything() -> (Metrics, Gauges) {
    let metrics = Metrics::default();
    for (kind, how) in
        ["manifest", "blob", "list"].iter().flat_map(|kind| ANSWERS.map(|how| (kind, how)))
    {
        metrics.answered(kind, how, "docker.io");
    }
    for route in ["manifest", "blob", "tags", "referrers", "ping", "other"] {
        metrics.responded(route, 200, Duration::from_millis(3), 1);
    }
    metrics.asked_upstream("docker.io", "ok");
    metrics.checked_access("docker.io", AccessCheck::Granted);
    metrics.downloaded("done");
    metrics.completed("complete");
    for removal in [Removal::Evicted, Removal::Pruned] {
        metrics.removed(removal, 1, 1);
    }
    for kind in ["manifest", "blob"] {
        metrics.not_cached(kind);
        metrics.received_bytes("registry");
        metrics.uploaded("sent");
    }
    for counter in [
        &metrics.fetched_bytes,
        &metrics.uploaded_bytes,
        &metrics.redirected,
        &metrics.redirected_bytes,
        &metrics.retries,
        &metrics.resumed,
        &metrics.scrubbed_blobs,
        &metrics.scrubbed_bytes,
        &metrics.scrub_damaged,
    ] {
        counter.inc();
    }
    (metrics, every_gauge())
}

fn every_gauge() -> Gauges {
    let endpoint = EndpointGauges {
        registry: "docker.io".into(),
        url: "https://registry-1.docker.io".into(),
        is_open: true,
        rate_limit_remaining: Some(1),
        rate_limit: Some(100),
    };
    let usage = UsageGauges {
        as_of_seconds: 1,
        images: 1,
        complete_images: 1,
        manifests: 1,
        manifest_bytes: 1,
        blobs: 1,
        blob_bytes: 1,
        registries: vec![("docker.io".into(), 1, 1)],
    };
    let pool = |name| PoolGauges { name, fetchers: 1, busy: 1, queued: 1, queued_in_background: 1 };
    Gauges {
        bucket: Some(BucketGauges { is_open: true, is_failing: true, queued: 1 }),
        version: "1.2.3",
        started_seconds: 1.0,
        is_ready: true,
        is_offline: false,
        connections: 1,
        response_memory_bytes: 1,
        busy_workers: 1,
        worker_queue: 1,
        flights: vec![("blob", 1), ("manifest", 1), ("other", 1)],
        pools: vec![pool("blobs"), pool("manifests")],
        completions: vec![("queued", 1)],
        endpoints: vec![endpoint],
        failed_handshakes: 1,
        damaged_files: 1,
        events: larder::events::TYPES.iter().map(|(_, name)| (*name, 1)).collect(),
        events_dropped: 1,
        disk_used_bytes: Some(1),
        disk_free_bytes: Some(1),
        disk_size_bytes: Some(1),
        disk_free_inodes: Some(1),
        disk_inodes: Some(1),
        cache_size_bytes: Some(1),
        free_space_bytes: Some(1),
        syncs: vec![SyncGauges {
            name: "base".into(),
            succeeded_seconds: Some(1),
            images: 1,
            missing: 1,
        }],
        issuers: vec![IssuerGauges {
            issuer: "https://i.example".into(),
            keys: 1,
            is_failing: true,
        }],
        usage: Some(usage),
    }
}

// ---- Named metrics ---------------------------------------------------------------------------------------------

/// References of a file to metrics or labels that do not exist.
fn unknown(
    text: &str,
    expressions: &[String],
    series: &AllSeries,
    records: &BTreeMap<String, BTreeSet<String>>,
) -> Vec<String> {
    let mut findings = Vec::new();
    // Search the complete file, so that no expression is missed.
    for name in regex(r"\blarder_[a-z_]+").find_iter(text) {
        if !series.contains_key(family(name.as_str())) {
            findings.push(format!("{} is not rendered", name.as_str()));
        }
    }
    let selector = regex(r"\b(larder_[a-z_]+)\{([^}]*)\}");
    let matcher = regex(r#"(\w+)\s*(=~|!~|!=|=)\s*"([^"]*)""#);
    for expression in expressions {
        for found in selector.captures_iter(expression) {
            let Some(of) = series.get(family(&found[1])) else { continue };
            for matcher in matcher.captures_iter(&found[2]) {
                let (label, wanted) = (&matcher[1], &matcher[3]);
                match of.labels.get(label) {
                    Some(values) if CLOSED_LABELS.contains(&label) => {
                        let unknown = wanted.split('|').filter(|word| !values.contains(*word));
                        findings.extend(unknown.map(|word| format!("no {label} is {word}")));
                    }
                    Some(_) => {}
                    None if ADDED_LABELS.contains(&label) => {}
                    None => findings.push(format!("{} has no {label}: {expression}", &found[1])),
                }
            }
        }
        let there = labels_of(expression, series, records);
        let missing = groupings(expression).into_iter().filter(|label| !there.contains(label));
        findings.extend(missing.map(|label| format!("there is no {label} in {expression}")));
    }
    findings
}

/// The labels of the metrics in an expression.
fn labels_of(
    expression: &str,
    series: &AllSeries,
    records: &BTreeMap<String, BTreeSet<String>>,
) -> BTreeSet<String> {
    let mut labels: BTreeSet<String> = ADDED_LABELS.iter().map(ToString::to_string).collect();
    for name in regex(r"\blarder[_:][a-z0-9_:]+").find_iter(expression) {
        let name = name.as_str();
        labels.extend(records.get(name).into_iter().flatten().cloned());
        labels
            .extend(series.get(family(name)).into_iter().flat_map(|of| of.labels.keys().cloned()));
    }
    labels
}

/// The labels that an expression groups by or joins on.
fn groupings(expression: &str) -> BTreeSet<String> {
    let grouping = regex(r"\b(?:by|on|without|ignoring|group_left|group_right)\s*\(([^)]*)\)");
    let lists = grouping.captures_iter(expression).map(|found| found[1].to_owned());
    let labels =
        lists.flat_map(|list| list.split(',').map(|l| l.trim().to_owned()).collect::<Vec<_>>());
    labels.filter(|label| !label.is_empty()).collect()
}

/// The recorded metrics with their possible labels.
fn records(rules: &[Value], series: &AllSeries) -> BTreeMap<String, BTreeSet<String>> {
    let records = rules.iter().filter(|rule| rule["record"].is_string());
    let labels = |expression: &str| match groupings(expression) {
        labels if labels.is_empty() => labels_of(expression, series, &BTreeMap::new()),
        labels => labels,
    };
    records.map(|rule| (text(rule, "record").to_owned(), labels(text(rule, "expr")))).collect()
}

// ---- Files -----------------------------------------------------------------------------------------------------

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path))
        .expect("a file of this project")
}

fn regex(expression: &str) -> Regex {
    Regex::new(expression).expect("an expression of this file")
}

fn rules() -> Vec<Value> {
    let file: Value = serde_saphyr::from_str(&read(RULES)).expect("rules are YAML");
    let groups = file["groups"].as_array().expect("rules have groups");
    let rules = groups.iter().map(|group| group["rules"].as_array().expect("groups have rules"));
    rules.flatten().cloned().collect()
}

#[track_caller]
fn text<'a>(value: &'a Value, key: &str) -> &'a str {
    value[key].as_str().unwrap_or_else(|| panic!("there is no {key} in {value}"))
}

/// All texts below these keys, at any depth.
fn strings(value: &Value, keys: &[&str], found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            for (key, value) in map {
                match value {
                    Value::String(text) if keys.contains(&key.as_str()) => found.push(text.clone()),
                    value => strings(value, keys, found),
                }
            }
        }
        Value::Array(list) => list.iter().for_each(|value| strings(value, keys, found)),
        _ => {}
    }
}
