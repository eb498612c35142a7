//! The fields that name images, and how references are put together from their values.

use std::fmt::{self, Display};

use super::document::{Content, Document, NodeId};
use super::{Findings, Form, Found, Place, Skipped};
use crate::oci::{Digest, PartReference, quoted, quoted_up_to};

/// The most characters of the path of a field. Paths in Kubernetes have about a hundred.
const FIELD_CHARS_MAX: usize = 300;
/// Environment variables with which operators receive the images that they deploy.
const RELATED_IMAGE: &str = "RELATED_IMAGE_";

/// Adds the references in a document to `findings`.
pub(super) fn find(document: &Document<'_>, form: Form, findings: &mut Findings) {
    let mut finder = Finder { document, form, findings, path: Vec::new() };
    if let Some(root) = document.root() {
        finder.visit(root, Parent::Other);
    }
}

/// A part of the path to a field.
enum Step {
    /// The key of a map.
    Key(NodeId),
    /// An entry of a list, from 0.
    Index(usize),
}

/// The field that a value belongs to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Parent {
    /// It names one image.
    Image,
    /// A list of images.
    Images,
    /// An entry of such a list.
    Entry,
    /// It may name an image, or something else: only a reference with a tag or digest counts.
    Perhaps,
    /// Several of those, in a list or a map.
    PerhapsMany,
    Other,
}

impl Parent {
    fn of(key: &str) -> Parent {
        match key {
            "images" => Parent::Images,
            "imageVolume" => Parent::Image,
            key if is_image(key) => Parent::Image,
            key if is_perhaps_image(key) => Parent::Perhaps,
            key if ["Images", "_images", "-images"].iter().any(|suffix| key.ends_with(suffix)) => {
                Parent::PerhapsMany
            }
            _ => Parent::Other,
        }
    }
}

/// Whether a field or variable of this name names an image.
fn is_image(name: &str) -> bool {
    let suffixes = ["Image", "_image", "-image", "_IMAGE"];
    name == "image"
        || suffixes.iter().any(|suffix| name.ends_with(suffix))
        || name.starts_with(RELATED_IMAGE)
}

/// Whether a field of this name may name an image: `imageName`, `runnerImageRef`. Others of these names have the URL of a
/// picture, or the name of a virtual machine's image.
fn is_perhaps_image(name: &str) -> bool {
    let ends = ["Name", "Ref", "Reference", "Url", "URL", "Uri", "URI"];
    let image = ends.iter().find_map(|end| name.strip_suffix(end));
    image.is_some_and(|image| image == "image" || image.ends_with("Image"))
}

/// The fields of a map below `images` that are parts of references.
const PARTS: [&str; 6] = ["registry", "repository", "name", "tag", "digest", "pullPolicy"];

struct Finder<'a, 'text> {
    document: &'a Document<'text>,
    form: Form,
    findings: &'a mut Findings,
    path: Vec<Step>,
}

impl Finder<'_, '_> {
    /// Visits each node once. Aliases are not followed: what they stand for is visited where it is defined.
    fn visit(&mut self, id: NodeId, parent: Parent) {
        let document = self.document;
        match &document.node(id).content {
            Content::Scalar(_) | Content::Alias(_) => {
                let is_reference = matches!(parent, Parent::Image | Parent::Entry);
                match document.scalar(id) {
                    Some(text) if is_reference => self.add(id, text),
                    Some(text) if parent == Parent::Perhaps && is_complete(text.trim()) => {
                        self.add(id, text);
                    }
                    _ => {}
                }
            }
            Content::List(entries) => {
                let parent = match parent {
                    Parent::Images => Parent::Entry,
                    Parent::PerhapsMany => Parent::Perhaps,
                    _ => Parent::Other,
                };
                for (index, entry) in entries.iter().enumerate() {
                    self.within(Step::Index(index), |finder| {
                        finder.add_argument(*entry);
                        finder.visit(*entry, parent);
                    });
                }
            }
            Content::Map(_) => self.visit_map(Map { document, id }, parent),
        }
    }

    fn visit_map(&mut self, map: Map<'_>, parent: Parent) {
        self.add_variable(map);
        self.add_parts(map, parent);
        // The status of an object lists what nodes have, under any name of the same content. The specification, which
        // is in the same object, has the reference that is pulled.
        let is_object = map.has("apiVersion") && map.has("kind");
        // Older charts have two strings: `image` and `tag`.
        let tag = map.text("tag").or(map.text("imageTag")).filter(|_| self.form == Form::Values);
        for (key, value) in map.entries() {
            let name = self.document.scalar(*key).unwrap_or_default();
            if is_object && name == "status" {
                continue;
            }
            let is_of_many = matches!(parent, Parent::Images | Parent::PerhapsMany);
            let parent = match Parent::of(name) {
                Parent::Other if is_of_many && !PARTS.contains(&name) => Parent::Perhaps,
                of_name => of_name,
            };
            let untagged = self
                .document
                .scalar(*value)
                .filter(|text| parent == Parent::Image && !is_null(text) && !is_complete(text));
            self.within(Step::Key(*key), |finder| match (untagged, tag) {
                (Some(text), Some((_, tag))) => finder.add(*value, &format!("{text}:{tag}")),
                _ => finder.visit(*value, parent),
            });
        }
    }

    /// Adds the value of an argument such as `--reloader-image=quay.io/org/app:1`, an entry of a list.
    fn add_argument(&mut self, id: NodeId) {
        let document = self.document;
        let option = document.scalar(id).and_then(|text| text.trim().strip_prefix("--"));
        if let Some((name, value)) = option.and_then(|option| option.split_once('='))
            && (is_image(name) || name.ends_with(".image"))
            && is_complete(value)
        {
            self.add(id, value);
        }
    }

    /// Adds a variable in the form of an environment variable or of a parameter: `name` and `value`.
    fn add_variable(&mut self, map: Map<'_>) {
        let Some((_, name)) = map.text("name") else { return };
        if let Some(key) = map.key("value").filter(|_| is_image(name))
            && let Some((id, text)) = map.text("value")
        {
            self.within(Step::Key(key), |finder| finder.add(id, text));
        }
    }

    /// Adds a reference whose parts are fields of a map.
    fn add_parts(&mut self, map: Map<'_>, parent: Parent) {
        let is_kustomize = ["newName", "newTag", "digest"].iter().any(|name| map.has(name));
        let is_pair = map.has("tag") || map.has("digest");
        let parts = match (parent, self.form) {
            // Image volumes of Kubernetes.
            (Parent::Image, _) if map.has("reference") => Parts::new(map, &["reference"], &[]),
            (Parent::Entry, _) if map.has("name") && is_kustomize => {
                Parts::new(map, &["newName", "name"], &["newTag", "tag"])
            }
            (Parent::Entry, _) if map.text("name").is_some_and(|(_, name)| is_complete(name)) => {
                Parts::new(map, &["name"], &[])
            }
            (Parent::Image | Parent::Entry, Form::Values) => {
                Parts::new(map, &["repository", "name"], &["tag", "version"])
            }
            (_, Form::Values) if is_pair => Parts::new(map, &["repository"], &["tag"]),
            _ => return,
        };
        let is_merged = parent == Parent::Image && map.has("<<");
        match parts {
            Some(parts) => self.add_joined(map, &parts),
            None if is_merged => self.skip(map.id, "merge keys (<<) are not supported"),
            None => {}
        }
    }

    fn add_joined(&mut self, map: Map<'_>, parts: &Parts<'_>) {
        let registry = map.text("registry").filter(|_| self.form == Form::Values);
        let name = match registry {
            Some((_, registry)) => format!("{}/{}", registry.trim_end_matches('/'), parts.name),
            None => parts.name.to_owned(),
        };
        self.within(Step::Key(parts.key), |finder| match (parts.digest, parts.tag) {
            (Some(digest), _) => finder.add(parts.id, &format!("{name}@{digest}")),
            (None, Some(tag)) => finder.add(parts.id, &format!("{name}:{tag}")),
            (None, None) if parts.needs_tag && !is_complete(&name) => {
                finder.skip(parts.id, &format!("{}: there is no tag or digest", quoted(&name)));
            }
            (None, None) => finder.add(parts.id, &name),
        });
    }

    /// Adds the reference in `text`, the value of a node, or reports why it is none.
    fn add(&mut self, id: NodeId, text: &str) {
        let text = text.trim();
        if is_null(text) || is_boolean_or_number(text) {
            return;
        }
        let reason = if text.contains("{{") {
            "a template; render it first".to_owned()
        } else if text.contains('$') {
            "a variable that is not expanded".to_owned()
        } else if text.parse::<Digest>().is_ok() {
            "an image ID, which names no repository".to_owned()
        } else {
            match PartReference::parse(text) {
                Ok(parsed) => {
                    let (name, reference) = parsed.or_latest();
                    let place = self.place(id);
                    self.findings.found.push(Found { name, reference, place });
                    return;
                }
                Err(error) => error.to_string(),
            }
        };
        self.skip(id, &format!("{}: {reason}", quoted(text)));
    }

    fn skip(&mut self, id: NodeId, reason: &str) {
        let place = self.place(id);
        self.findings.skipped.push(Skipped { place, reason: reason.to_owned() });
    }

    fn place(&self, id: NodeId) -> Place {
        let path = Path { document: self.document, steps: &self.path };
        Place { line: self.document.node(id).line, field: quoted_up_to(FIELD_CHARS_MAX, path) }
    }

    fn within(&mut self, step: Step, visit: impl FnOnce(&mut Self)) {
        self.path.push(step);
        visit(self);
        self.path.pop();
    }
}

/// Whether a text is a reference with a tag or digest.
fn is_complete(text: &str) -> bool {
    PartReference::parse(text).is_ok_and(|parsed| parsed.reference.is_some())
}

/// Whether a scalar is one of YAML's forms of no value.
fn is_null(text: &str) -> bool {
    matches!(text, "" | "~" | "null" | "Null" | "NULL")
}

/// Whether a scalar is of another type than a text. As a name, it would be valid.
fn is_boolean_or_number(text: &str) -> bool {
    let is_number = text.starts_with(|first: char| first.is_ascii_digit() || "+-.".contains(first))
        && text.parse::<f64>().is_ok();
    is_number || matches!(text, "true" | "false" | "yes" | "no" | "on" | "off")
}

/// A map of a document.
#[derive(Clone, Copy)]
struct Map<'a> {
    document: &'a Document<'a>,
    id: NodeId,
}

impl<'a> Map<'a> {
    fn entries(self) -> &'a [(NodeId, NodeId)] {
        match &self.document.node(self.id).content {
            Content::Map(entries) => entries,
            _ => &[],
        }
    }

    fn entry(self, name: &str) -> Option<(NodeId, NodeId)> {
        let is_it = |entry: &&(NodeId, NodeId)| self.document.scalar(entry.0) == Some(name);
        self.entries().iter().find(is_it).copied()
    }

    fn has(self, name: &str) -> bool {
        self.entry(name).is_some()
    }

    fn key(self, name: &str) -> Option<NodeId> {
        self.entry(name).map(|(key, _)| key)
    }

    /// The text of a field that has a value.
    fn text(self, name: &str) -> Option<(NodeId, &'a str)> {
        let (_, value) = self.entry(name)?;
        let text = self.document.scalar(value)?.trim();
        (!is_null(text)).then_some((value, text))
    }
}

/// The parts of a reference.
struct Parts<'a> {
    /// The key and the value of the name.
    key: NodeId,
    id: NodeId,
    name: &'a str,
    tag: Option<&'a str>,
    digest: Option<&'a str>,
    /// Whether the name alone does not say which image is meant.
    needs_tag: bool,
}

impl<'a> Parts<'a> {
    /// The parts in the first fields of these names that have a value. If there are no names of tags, the first name
    /// is a complete reference.
    fn new(map: Map<'a>, names: &[&str], tags: &[&str]) -> Option<Parts<'a>> {
        let named = names.iter().find(|name| map.text(name).is_some())?;
        let (id, name) = map.text(named)?;
        let needs_tag = !tags.is_empty();
        Some(Parts {
            key: map.key(named)?,
            id,
            name,
            tag: tags.iter().find_map(|tag| map.text(tag)).map(|(_, tag)| tag),
            digest: map.text("digest").map(|(_, digest)| digest).filter(|_| needs_tag),
            needs_tag,
        })
    }
}

/// The path of a field, as `kubectl` and `jq` write it.
struct Path<'a> {
    document: &'a Document<'a>,
    steps: &'a [Step],
}

impl Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_plain = |key: &str| {
            key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte))
        };
        for (index, step) in self.steps.iter().enumerate() {
            match step {
                Step::Index(entry) => write!(f, "[{entry}]")?,
                Step::Key(id) => match self.document.scalar(*id).unwrap_or_default() {
                    key if !is_plain(key) => write!(f, "[\"{key}\"]")?,
                    key if index == 0 => f.write_str(key)?,
                    key => write!(f, ".{key}")?,
                },
            }
        }
        Ok(())
    }
}
