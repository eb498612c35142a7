//! Compares responses with `docs/openapi.yaml`.
//!
//! Supports the part of JSON Schema that the document uses. Undocumented fields are errors.

use std::collections::BTreeSet;

use serde_json::Value;

/// The document.
pub struct Description {
    document: Value,
}

impl Description {
    pub fn read() -> Description {
        let text = include_str!("../../../docs/openapi.yaml");
        Description { document: serde_saphyr::from_str(text).expect("the document is YAML") }
    }

    /// Every operation, such as `GET /livez`.
    pub fn operations(&self) -> BTreeSet<String> {
        let paths = self.document["paths"].as_object().expect("paths");
        let of_path = |(path, methods): (&String, &Value)| {
            let methods: Vec<String> =
                methods.as_object().expect("methods").keys().cloned().collect();
            methods.into_iter().map(|method| format!("{} {path}", method.to_uppercase())).collect()
        };
        paths.iter().flat_map(|each| -> Vec<String> { of_path(each) }).collect()
    }

    /// Asserts that the response of an operation with this status matches the document.
    #[track_caller]
    pub fn check(&self, operation: &str, status: u16, content_type: &str, body: &str) {
        let (method, path) = operation.split_once(' ').expect("a method and a path");
        let responses = &self.document["paths"][path][method.to_lowercase()]["responses"];
        let response = self.followed(&responses[status.to_string()]);
        assert!(response.is_object(), "{operation} does not answer {status}");
        let content = response["content"].as_object().expect("the content of a response");
        let kind = content_type.split(';').next().unwrap_or_default();
        let described = content.get(kind);
        let schema = &described.unwrap_or_else(|| panic!("{operation}: {content_type}"))["schema"];
        if kind == "application/json" {
            let value: Value = serde_json::from_str(body).expect("JSON");
            let allowed = self.properties(schema);
            self.compare(schema, &value, &allowed, &format!("{operation} {status}"));
        }
    }

    /// The target of a reference.
    fn followed<'a>(&'a self, schema: &'a Value) -> &'a Value {
        match schema["$ref"].as_str().and_then(|path| path.strip_prefix('#')) {
            Some(pointer) => self.document.pointer(pointer).expect("the target of the reference"),
            None => schema,
        }
    }

    /// The possible fields of an object.
    fn properties(&self, schema: &Value) -> BTreeSet<String> {
        let schema = self.followed(schema);
        let own =
            schema["properties"].as_object().into_iter().flatten().map(|(key, _)| key.clone());
        let parts = schema["allOf"].as_array().into_iter().flatten();
        own.chain(parts.flat_map(|part| self.properties(part))).collect()
    }

    #[track_caller]
    fn compare(&self, schema: &Value, value: &Value, allowed: &BTreeSet<String>, place: &str) {
        let schema = self.followed(schema);
        for part in schema["allOf"].as_array().into_iter().flatten() {
            self.compare(part, value, allowed, place);
        }
        if let Some(kind) = schema.get("type") {
            let kinds: Vec<&str> = match kind {
                Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
                one => one.as_str().into_iter().collect(),
            };
            let is = kinds.iter().any(|kind| is_a(kind, value));
            assert!(is, "{place} is {value}, and should be one of {kinds:?}");
        }
        if let Some(words) = schema["enum"].as_array() {
            assert!(words.contains(value), "{place} is {value}, and should be one of {words:?}");
        }
        if let Some(constant) = schema.get("const") {
            assert_eq!(value, constant, "{place}");
        }
        if schema["format"] == "date-time"
            && let Some(time) = value.as_str()
        {
            assert!(time.len() == 20 && time.ends_with('Z'), "{place} is {time}");
        }
        if let Some(fields) = value.as_object() {
            for required in schema["required"].as_array().into_iter().flatten() {
                let name = required.as_str().expect("a name");
                assert!(fields.contains_key(name), "{place} lacks {name}: {value}");
            }
            for (name, field) in fields {
                assert!(allowed.contains(name), "{place} has the undocumented field {name}");
                if let Some(of_field) = schema["properties"].get(name) {
                    let place = format!("{place}.{name}");
                    self.compare(of_field, field, &self.properties(of_field), &place);
                }
            }
        }
        if let (Some(items), Some(all)) = (schema.get("items"), value.as_array()) {
            for each in all {
                self.compare(items, each, &self.properties(items), &format!("{place}[]"));
            }
        }
    }
}

fn is_a(kind: &str, value: &Value) -> bool {
    match kind {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => false,
    }
}
