//! The few XML documents of S3, written and searched as text.
//!
//! Must not know operations.

use std::time::SystemTime;

use time::UtcDateTime;
use time::macros::format_description;

const DECLARATION: &str = "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n";
const NAMESPACE: &str = "http://s3.amazonaws.com/doc/2006-03-01/";

/// A document with this root, whose content is already XML.
pub fn document(root: &str, content: &str) -> Vec<u8> {
    format!("{DECLARATION}<{root} xmlns=\"{NAMESPACE}\">{content}</{root}>").into_bytes()
}

/// The document of an error.
pub fn error(code: &str, message: &str, resource: &str, id: &str) -> Vec<u8> {
    let content = element("Code", code)
        + &element("Message", message)
        + &element("Resource", resource)
        + &element("RequestId", id);
    format!("{DECLARATION}<Error>{content}</Error>").into_bytes()
}

/// An element with text.
pub fn element(name: &str, text: &str) -> String {
    format!("<{name}>{}</{name}>", escape(text))
}

/// `2009-10-12T17:50:30.000Z`.
pub fn timestamp(time: SystemTime) -> String {
    let format =
        format_description!("[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:3]Z");
    UtcDateTime::from(time).format(format).expect("every component is formatted")
}

/// The contents of all elements of this name, in their order. Elements of one name must not be nested.
pub fn all<'a>(xml: &'a str, name: &str) -> Vec<&'a str> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let pieces = xml.split(open.as_str()).skip(1);
    pieces.filter_map(|piece| piece.split_once(close.as_str())).map(|(inner, _)| inner).collect()
}

/// The text of the first element of this name.
pub fn text(xml: &str, name: &str) -> Option<String> {
    all(xml, name).first().map(|text| unescape(text))
}

/// A key for a listing with `encoding-type=url`.
pub fn url_encode(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'*' | b'/' => {
                out.push(char::from(byte));
            }
            b' ' => out.push('+'),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn escape(text: &str) -> String {
    let mut out = String::new();
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            _ => out.push(letter),
        }
    }
    out
}

/// Unknown entities stay as they are.
fn unescape(text: &str) -> String {
    let mut pieces = text.split('&');
    let mut out = pieces.next().unwrap_or("").to_owned();
    for piece in pieces {
        match piece.split_once(';').and_then(|(name, rest)| Some((entity(name)?, rest))) {
            Some((letter, rest)) => {
                out.push(letter);
                out.push_str(rest);
            }
            None => {
                out.push('&');
                out.push_str(piece);
            }
        }
    }
    out
}

fn entity(name: &str) -> Option<char> {
    match name {
        "amp" => Some('&'),
        "lt" => Some('<'),
        "gt" => Some('>'),
        "quot" => Some('"'),
        "apos" => Some('\''),
        _ => {
            let number = name.strip_prefix('#')?;
            let code = match number.strip_prefix('x') {
                Some(digits) => u32::from_str_radix(digits, 16),
                None => number.parse(),
            };
            char::from_u32(code.ok()?)
        }
    }
}
