//! The tables in `docs/configuration.md` and the schema of the configuration in the chart's values are generated
//! from the declared keys. These tests fail if the files differ; with `LARDER_BLESS` set they write the files.

use std::fs;
use std::path::Path;

use serde_json::{Value as Json, json};

use super::super::file::File;
use super::super::keys::{Applies, Key, Map, Shape, Value};

const COMMAND: &str = "make generate";
/// The lines before and after a generated table.
const TABLE: [&str; 2] = ["<!-- Generated: make generate -->\n", "<!-- end -->\n"];
/// The lines before and after the members of the configuration's schema.
const CONFIGURATION: [&str; 2] = ["        \"configuration\": {\n", "        }\n"];
/// The schema of the configuration, as a JSON pointer.
const POINTER: &str = "#/properties/serverConfig/properties/configuration";

#[test]
fn documented_keys_are_those_of_the_parser() {
    let (mut global, mut of_registry) = (Table::default(), Table::default());
    for key in &keys() {
        let columns = Some((key.flag, key.applies));
        match (key.name, map_of(&key.shape)) {
            ("registries", Some((_, map))) => {
                global.row(key.name, key, columns);
                // The rules for tags are in the other table.
                of_registry.seen.push("TagRuleEntry");
                map.keys.iter().for_each(|key| of_registry.add("", key, None));
            }
            _ => global.add("", key, columns),
        }
    }
    compare("docs/configuration.md", |text| {
        let header =
            "| key | flag | default | reload | meaning |\n| --- | --- | --- | --- | --- |\n";
        let end = splice(text, 0, TABLE, &format!("{header}{}", global.rows));
        let header = "| key | default | meaning |\n| --- | --- | --- |\n";
        splice(text, end, TABLE, &format!("{header}{}", of_registry.rows));
    });
}

#[test]
fn keys_of_the_charts_schema_are_those_of_the_parser() {
    let description =
        "A key with which Larder would not start is an error here; Larder checks the values.";
    let map = Map { name: "File", keys: keys() };
    let members =
        members(&map, r#"["object", "string", "null"]"#, description, POINTER, &mut vec![]);
    let lines: String = members.lines().map(|line| format!("          {line}\n")).collect();
    compare("charts/larder/values.schema.json", |text| {
        splice(text, 0, CONFIGURATION, &lines);
        assert!(serde_json::from_str::<Json>(text).is_ok(), "{text}");
    });
}

pub(super) fn keys() -> Vec<Key> {
    let Shape::Map(map) = File::shape() else { panic!("a file is a map") };
    map.keys
}

/// The map that a value is or contains, after `.`, or after `[].` for a list.
pub(super) fn map_of(shape: &Shape) -> Option<(&'static str, &Map)> {
    match shape {
        Shape::Scalar => None,
        Shape::Map(map) | Shape::ScalarOrMap(map) => Some((".", map)),
        Shape::List(entry) => map_of(entry).map(|(_, map)| ("[].", map)),
    }
}

/// Compares a file with what `change` makes of it, or writes the file.
fn compare(file: &str, change: impl Fn(&mut String)) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let old = fs::read_to_string(&path).unwrap();
    let mut new = old.clone();
    change(&mut new);
    if std::env::var_os("LARDER_BLESS").is_some() {
        return fs::write(&path, new).unwrap();
    }
    let line = old.lines().zip(new.lines()).find(|(old, new)| old != new);
    assert!(old == new, "{file} differs from the declared keys, run {COMMAND}: {line:#?}");
}

/// Replaces what is between two lines, after the position `from`. Returns the end of the new text.
fn splice(text: &mut String, from: usize, [first, last]: [&str; 2], new: &str) -> usize {
    let begin = from + text[from..].find(first).expect("the first line") + first.len();
    let rest = &text[begin..];
    let length = if rest.starts_with(last) {
        0
    } else {
        rest.find(&format!("\n{last}")).expect("the last line") + 1
    };
    text.replace_range(begin..begin + length, new);
    begin + new.len()
}

/// Rows of Markdown.
#[derive(Default)]
struct Table {
    rows: String,
    /// The maps whose keys have rows. Other keys that lead to the same map refer to them.
    seen: Vec<&'static str>,
}

impl Table {
    /// Adds a key and the keys below it. `columns` are those that only the keys of the top level have.
    fn add(&mut self, path: &str, key: &Key, columns: Option<(Option<&str>, Option<Applies>)>) {
        let path = format!("{path}{}", key.name);
        self.row(&path, key, columns);
        let Some((separator, map)) = map_of(&key.shape) else { return };
        if !self.seen.contains(&map.name) {
            self.seen.push(map.name);
            let columns = columns.map(|(_, applies)| (None, applies));
            let path = format!("{path}{separator}");
            map.keys.iter().for_each(|key| self.add(&path, key, columns));
        }
    }

    fn row(&mut self, path: &str, key: &Key, columns: Option<(Option<&str>, Option<Applies>)>) {
        let mut cells = vec![format!("`{path}`"), default(key), meaning(key)];
        if let Some((flag, applies)) = columns {
            cells.insert(1, flag.map(|flag| format!("`{flag}`")).unwrap_or_default());
            cells.insert(3, reload(applies).to_owned());
        }
        let cells =
            cells.iter().map(|cell| if cell.is_empty() { " ".into() } else { format!(" {cell} ") });
        self.rows += &format!("|{}|\n", cells.collect::<Vec<String>>().join("|"));
    }
}

fn reload(applies: Option<Applies>) -> &'static str {
    match applies {
        Some(Applies::AtOnce) => "at once",
        Some(Applies::AtOnceUnlessToggled) => "at once; on or off: restart",
        Some(Applies::Restart) => "restart",
        Some(Applies::Commands) | None => "",
    }
}

fn default(key: &Key) -> String {
    match (&key.default, key.default_in_words) {
        (None, _) => "required".into(),
        (Some(_), Some(words)) => words.into(),
        (Some(Json::Null), None) => "none".into(),
        (Some(Json::Array(list)), None) if list.is_empty() => "none".into(),
        (Some(Json::Object(_)), None) => String::new(),
        (Some(Json::String(text)), None) => text.clone(),
        (Some(other), None) => other.to_string(),
    }
}

fn meaning(key: &Key) -> String {
    let lines: Vec<&str> = key.doc.iter().map(|line| line.trim()).collect();
    lines.join(" ")
}

/// The maps that have a schema, and where.
type Seen = Vec<(&'static str, String)>;

/// The members of a map's schema, without the braces around them.
fn members(map: &Map, types: &str, description: &str, pointer: &str, seen: &mut Seen) -> String {
    seen.push((map.name, pointer.to_owned()));
    let required =
        map.keys.iter().filter(|key| key.default.is_none()).map(|key| format!("\"{}\"", key.name));
    let required: Vec<String> = required.collect();
    let required = match required.is_empty() {
        true => String::new(),
        false => format!("\"required\": [{}],\n", required.join(", ")),
    };
    let properties = map.keys.iter().map(|key| {
        let pointer = format!("{pointer}/properties/{}", key.name);
        let schema = schema(&key.shape, &summary(key), &pointer, seen);
        format!("  \"{}\": {}", key.name, indented(&schema))
    });
    let properties: Vec<String> = properties.collect();
    let (description, properties) = (json!(description), properties.join(",\n"));
    format!(
        "\"description\": {description},\n\"type\": {types},\n\"additionalProperties\": false,\n{required}\
         \"properties\": {{\n{properties}\n}}"
    )
}

/// The schema of a value. A map that has a schema already is a reference to it.
fn schema(shape: &Shape, description: &str, pointer: &str, seen: &mut Seen) -> String {
    let (map, types) = match shape {
        Shape::Map(map) => (map, r#"["object", "null"]"#),
        Shape::ScalarOrMap(map) => (map, r#"["string", "object"]"#),
        Shape::List(entry) if map_of(entry).is_some() => {
            let items = schema(entry, description, &format!("{pointer}/items"), seen);
            let types = r#"["array", "null"]"#;
            return format!("{{\n  \"type\": {types},\n  \"items\": {}\n}}", indented(&items));
        }
        Shape::Scalar | Shape::List(_) => {
            return format!("{{\"description\": {}}}", json!(description));
        }
    };
    match seen.iter().find(|(name, _)| *name == map.name) {
        Some((_, before)) => format!("{{\"$ref\": \"{before}\"}}"),
        None => {
            let members = members(map, types, description, pointer, seen);
            format!("{{\n  {}\n}}", indented(&members))
        }
    }
}

fn indented(text: &str) -> String {
    text.replace('\n', "\n  ")
}

/// The first sentence of the documentation, without Markdown's links.
fn summary(key: &Key) -> String {
    let meaning = meaning(key);
    let first = meaning.split_once(". ").map_or(meaning.trim_end_matches('.'), |(first, _)| first);
    let mut text = String::new();
    for part in first.split('[') {
        match part.split_once("](") {
            Some((label, rest)) => {
                text += label;
                text += rest.split_once(')').map_or("", |(_, rest)| rest);
            }
            None if text.is_empty() => text += part,
            None => text += &format!("[{part}"),
        }
    }
    text
}
