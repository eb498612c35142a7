//! `section!`: declares the keys of one map of the configuration file, each in one place.
//!
//! An entry says what a running server does with a changed value (keys of the top level only), the key, the
//! field and its type, the default, the flag that overrides it, and, as a doc comment, its documentation:
//!
//! ```text
//! /// The port to listen on; 0 picks a free port and prints it.
//! Restart "port" port: Port = Port(8080), flag "--port";
//! ```
//!
//! An entry without a default is required. Everything else follows from the entry:
//!
//! - parsing: `deny_unknown_fields` refuses unknown keys, and `null` is the default, unless the entry has `not_null`;
//! - `larder config show`: [`Serialize`](serde::Serialize), unset keys left out, and [`Section::unset`] for those;
//! - the difference between two configurations: [`Section::changed`];
//! - the tables in `docs/configuration.md` and the schema of the chart: `Value::shape`, in tests only.
//!
//! A doc comment is printed in `docs/configuration.md`, so it is written for users. `, default "…"` replaces
//! what that page shows as the default, where the value itself says too little. `, parser "not_null"` refuses
//! a key without a value, where the default would allow more than the operator intended.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// What happens when a reload finds another value for a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Applies {
    /// A running server uses the new value.
    AtOnce,
    /// A running server uses a new value, but does not switch the feature on or off.
    AtOnceUnlessToggled,
    /// The new value takes effect after a restart.
    Restart,
    /// Servers do not use the key: commands do, and each command reads the file itself.
    Commands,
}

/// A key of a section, what a reload does with it, and whether its values in two files differ.
pub(super) type Comparison<T> = (&'static str, Applies, fn(&T, &T) -> bool);

/// A key of a section, whether a section leaves it out, and its default in words.
pub(super) type Unset<T> = (&'static str, fn(&T) -> bool, Option<&'static str>);

/// A map of keys, declared by `section!`.
pub(super) trait Section: Sized + 'static {
    const COMPARISONS: &'static [Comparison<Self>];
    /// Each key, whether it is unset, and its default in words.
    const UNSET: &'static [Unset<Self>];

    /// The keys that are not set, with what applies instead.
    fn unset(&self) -> impl Iterator<Item = (&'static str, &'static str)> {
        let unset = Self::UNSET.iter().filter(|(_, is_unset, _)| is_unset(self));
        unset.map(|(key, _, words)| (*key, words.unwrap_or("none")))
    }

    /// The keys whose values differ in `new`, and what a running server does about it.
    fn changed(&self, new: &Self) -> impl Iterator<Item = (&'static str, Applies)> {
        let changed = Self::COMPARISONS.iter().filter(|(.., differs)| differs(self, new));
        changed.map(|(key, applies, _)| (*key, *applies))
    }
}

/// The value of a key.
pub(super) trait Value {
    /// Whether `config show` leaves the key out.
    fn is_unset(&self) -> bool {
        false
    }

    /// What a file may contain for it, for the documentation and the chart's schema.
    #[cfg(test)]
    fn shape() -> Shape {
        Shape::Scalar
    }
}

impl Value for bool {}
impl Value for i64 {}
impl Value for String {}
impl Value for std::path::PathBuf {}

impl<T: Value> Value for Option<T> {
    fn is_unset(&self) -> bool {
        self.is_none()
    }

    #[cfg(test)]
    fn shape() -> Shape {
        T::shape()
    }
}

impl<T: Value> Value for Vec<T> {
    fn is_unset(&self) -> bool {
        self.is_empty()
    }

    #[cfg(test)]
    fn shape() -> Shape {
        Shape::List(Box::new(T::shape()))
    }
}

/// What a file may contain for a key.
#[cfg(test)]
pub(super) enum Shape {
    /// A text, a number or a boolean.
    Scalar,
    List(Box<Shape>),
    Map(Map),
    /// The short form of a map: a text.
    ScalarOrMap(Map),
}

/// A section: the name of its type, and its keys in the order of their declaration.
#[cfg(test)]
pub(super) struct Map {
    pub(super) name: &'static str,
    pub(super) keys: Vec<Key>,
}

/// What was declared for a key.
#[cfg(test)]
pub(super) struct Key {
    pub(super) name: &'static str,
    /// The lines of the doc comment.
    pub(super) doc: &'static [&'static str],
    pub(super) flag: Option<&'static str>,
    /// `None` if the key is required.
    pub(super) default: Option<serde_json::Value>,
    pub(super) default_in_words: Option<&'static str>,
    /// `None` below the top level.
    pub(super) applies: Option<Applies>,
    pub(super) shape: Shape,
}

/// The value of a key that may be omitted, but not be empty.
pub(super) fn not_null<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<T>, D::Error> {
    let value = Option::deserialize(deserializer)?;
    value
        .map(Some)
        .ok_or_else(|| D::Error::custom("the key has no value: give one, or omit the key"))
}

macro_rules! section {
    (@written $type:ty) => { $type };
    (@written $type:ty = $default:expr) => { Option<$type> };
    (@value $written:expr) => { $written };
    (@value $written:expr, $default:expr) => { $written.unwrap_or_else(|| $default) };
    (@option) => { None };
    (@option $value:expr) => { Some($value) };
    (@json $type:ty) => { None };
    (@json $type:ty = $default:expr) => {{
        let default: $type = $default;
        serde_json::to_value(default).ok()
    }};
    (
        $(#[doc = $about:literal])*
        $name:ident {
            $(
                $(#[doc = $doc:literal])*
                $($applies:ident)? $key:literal $field:ident: $type:ty $(= $default:expr)?
                $(, flag $flag:literal)? $(, default $words:literal)? $(, parser $parser:literal)?;
            )*
        }
    ) => {
        $(#[doc = $about])*
        #[derive(Debug, Clone, PartialEq, serde::Serialize)]
        pub(super) struct $name {
            $(
                $(#[doc = $doc])*
                #[serde(rename = $key, skip_serializing_if = "Value::is_unset")]
                pub(super) $field: $type,
            )*
        }

        const _: () = {
            /// What the file has: `None` is the default.
            #[derive(serde::Deserialize)]
            #[serde(deny_unknown_fields)]
            struct Written {
                $( #[serde(rename = $key $(, default, deserialize_with = $parser)?)] $field: section!(@written $type $(= $default)?), )*
            }

            impl<'de> serde::Deserialize<'de> for $name {
                fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<$name, D::Error> {
                    let written = Written::deserialize(deserializer)?;
                    Ok($name { $( $field: section!(@value written.$field $(, $default)?), )* })
                }
            }
        };

        impl Section for $name {
            const COMPARISONS: &'static [Comparison<$name>] =
                &[ $( $( ($key, Applies::$applies, |old, new| old.$field != new.$field), )? )* ];
            const UNSET: &'static [Unset<$name>] =
                &[ $( ($key, |section| section.$field.is_unset(), section!(@option $($words)?)), )* ];
        }

        impl Value for $name {
            #[cfg(test)]
            fn shape() -> Shape {
                let keys = vec![ $( Key {
                    name: $key,
                    doc: &[ $( $doc ),* ],
                    flag: section!(@option $($flag)?),
                    default: section!(@json $type $(= $default)?),
                    default_in_words: section!(@option $($words)?),
                    applies: section!(@option $(Applies::$applies)?),
                    shape: <$type as Value>::shape(),
                }, )* ];
                Shape::Map(Map { name: stringify!($name), keys })
            }
        }
    };
}

/// The values of keys that have a fixed set of them.
macro_rules! names {
    ($($(#[doc = $about:literal])* $name:ident { $($variant:ident),* })*) => { $(
        $(#[doc = $about])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
        #[serde(rename_all = "lowercase")]
        pub(super) enum $name { $($variant),* }

        impl Value for $name {}
    )* };
}

pub(super) use {names, section};
