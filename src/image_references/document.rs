//! YAML documents as trees whose values know their lines.
//!
//! The nodes are in one list and name each other by index. So an alias is an index too: it is not expanded, and a
//! document with nested aliases takes no more memory than its text. Scalars are the text in the file: a tag `1.10`
//! must not become the number 1.1.

use std::borrow::Cow;
use std::collections::HashMap;

use granit_parser::{Event, Parser, StrInput};

use crate::oci::quoted;

/// The most levels of lists and maps in block style, and again in flow style. Objects of Kubernetes have about
/// twenty; the code that visits a document recurses once per level.
const NESTING_MAX: usize = 128;

/// The longest text that may be a reference or the name of a field. So aliases of long texts cost little.
const TEXT_BYTES_MAX: usize = 4096;

/// The position of a node in its document.
pub(super) type NodeId = usize;

/// A value of a document.
pub(super) struct Node<'text> {
    /// Where it begins; from 1.
    pub(super) line: usize,
    pub(super) content: Content<'text>,
}

pub(super) enum Content<'text> {
    Scalar(Cow<'text, str>),
    List(Vec<NodeId>),
    /// Keys are scalars.
    Map(Vec<(NodeId, NodeId)>),
    /// The anchored node, which is never an alias itself.
    Alias(NodeId),
}

/// A document that was read completely.
pub(super) struct Document<'text> {
    nodes: Vec<Node<'text>>,
}

/// Why a document cannot be read.
pub(super) struct Unreadable {
    /// From 1.
    pub(super) line: usize,
    pub(super) reason: String,
}

impl<'text> Document<'text> {
    /// The outermost value; `None` for a document without content.
    pub(super) fn root(&self) -> Option<NodeId> {
        (!self.nodes.is_empty()).then_some(0)
    }

    pub(super) fn node(&self, id: NodeId) -> &Node<'text> {
        &self.nodes[id]
    }

    /// The text of a scalar, or of one that an alias stands for. `None` for one that is too long for a name.
    pub(super) fn scalar(&self, id: NodeId) -> Option<&str> {
        let content = match &self.nodes[id].content {
            Content::Alias(anchored) => &self.nodes[*anchored].content,
            content => content,
        };
        match content {
            Content::Scalar(text) if text.len() <= TEXT_BYTES_MAX => Some(text),
            _ => None,
        }
    }
}

/// The documents of a text, in order. One that cannot be read does not affect those after it.
pub(super) struct Documents<'text> {
    parser: Parser<'text, StrInput<'text>>,
    is_at_end: bool,
}

impl<'text> Documents<'text> {
    pub(super) fn new(text: &'text str) -> Documents<'text> {
        let options = granit_parser::options! {
            flow_nesting_limit: NESTING_MAX,
            block_nesting_limit: NESTING_MAX,
        };
        Documents { parser: Parser::new_from_str_with_options(text, options), is_at_end: false }
    }

    fn read(&mut self) -> Result<Option<Document<'text>>, Unreadable> {
        let mut builder = Builder::default();
        while let Some(event) = self.parser.next_event() {
            let (event, span) = event.map_err(|error| Unreadable {
                line: error.marker().line(),
                reason: quoted(error.info()),
            })?;
            match event {
                Event::StreamEnd => break,
                Event::DocumentEnd => return Ok(Some(Document { nodes: builder.nodes })),
                event => builder.add(event, span.start.line())?,
            }
        }
        self.is_at_end = true;
        Ok(None)
    }
}

impl<'text> Iterator for Documents<'text> {
    type Item = Result<Document<'text>, Unreadable>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.is_at_end {
            return None;
        }
        let document = self.read();
        if document.is_err() {
            // It fails only for input that cannot be read, and this input is in memory.
            self.is_at_end = !self.parser.proceed_next_document().unwrap_or(false);
        }
        document.transpose()
    }
}

/// A document that is being read.
#[derive(Default)]
struct Builder<'text> {
    nodes: Vec<Node<'text>>,
    /// The lists and maps that have not ended, the innermost last.
    open: Vec<Open>,
    /// The nodes with an anchor, by the parser's number of the anchor.
    anchors: HashMap<usize, NodeId>,
}

struct Open {
    id: NodeId,
    /// The key of a map whose value comes next.
    key: Option<NodeId>,
}

impl<'text> Builder<'text> {
    fn add(&mut self, event: Event<'text>, line: usize) -> Result<(), Unreadable> {
        let (content, anchor) = match event {
            Event::Scalar(text, _, anchor, _) => (Content::Scalar(text), anchor),
            Event::SequenceStart(_, anchor, _) => (Content::List(Vec::new()), anchor),
            Event::MappingStart(_, anchor, _) => (Content::Map(Vec::new()), anchor),
            Event::Alias(anchor) => match self.anchors.get(&anchor) {
                Some(anchored) => (Content::Alias(*anchored), 0),
                None => return refuse(line, "an alias without an anchor"),
            },
            Event::SequenceEnd | Event::MappingEnd => {
                self.open.pop();
                return Ok(());
            }
            _ => return Ok(()),
        };
        let id = self.nodes.len();
        let is_scalar = matches!(content, Content::Scalar(_));
        let is_collection = matches!(content, Content::List(_) | Content::Map(_));
        self.nodes.push(Node { line, content });
        if anchor != 0 {
            self.anchors.insert(anchor, id);
        }
        if let Some(parent) = self.open.last_mut() {
            match (&mut self.nodes[parent.id].content, parent.key.take()) {
                (Content::List(entries), _) => entries.push(id),
                (Content::Map(entries), Some(key)) => entries.push((key, id)),
                _ if is_scalar => parent.key = Some(id),
                _ => return refuse(line, "a key that is not a text"),
            }
        }
        if is_collection {
            self.open.push(Open { id, key: None });
        }
        Ok(())
    }
}

fn refuse(line: usize, reason: &str) -> Result<(), Unreadable> {
    Err(Unreadable { line, reason: reason.to_owned() })
}
