//! The vocabulary in which a request's members and their constraints are written down: a few
//! structs of plain data, made to be read as a table. `model` is the table, `validate` its reader.

use regex::Regex;
use std::sync::OnceLock;

/// A member of a structure, a union or a request.
#[derive(Debug)]
pub struct Member {
    pub(crate) name: &'static str,
    pub(crate) shape: &'static Shape,
    pub(crate) required: bool,
    pub(crate) location: Location,
}

/// The part of a request that carries a member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Location {
    Body,
    Path,
    Query,
}

impl Member {
    /// An optional member of the body.
    #[must_use]
    pub const fn body(name: &'static str, shape: &'static Shape) -> Self {
        Self {
            name,
            shape,
            required: false,
            location: Location::Body,
        }
    }

    /// A label of the path; always required.
    #[must_use]
    pub const fn path(name: &'static str, shape: &'static Shape) -> Self {
        Self {
            name,
            shape,
            required: true,
            location: Location::Path,
        }
    }

    /// An optional query parameter.
    #[must_use]
    pub const fn query(name: &'static str, shape: &'static Shape) -> Self {
        Self {
            name,
            shape,
            required: false,
            location: Location::Query,
        }
    }

    /// The same member, required.
    #[must_use]
    pub const fn required(mut self) -> Self {
        self.required = true;
        self
    }
}

/// What a value must look like.
#[derive(Debug)]
pub enum Shape {
    /// A string.
    Text(Text),
    /// A whole number of 32 bits.
    Integer(Bounds),
    /// True or false.
    Boolean,
    /// A list of values of one shape.
    List(&'static Shape, Bounds),
    /// String keys and string values.
    Map {
        /// What the keys must look like.
        key: &'static Text,
        /// What the values must look like.
        value: &'static Text,
        /// How many entries there may be.
        length: Bounds,
    },
    /// Named members.
    Structure(&'static [Member]),
    /// Named members of which exactly one is present.
    Union(&'static [Member]),
    /// `{}`.
    Unit,
}

/// Limits of a number or a length, both included.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub(crate) min: Option<i64>,
    pub(crate) max: Option<i64>,
}

impl Bounds {
    /// No limits.
    pub const NONE: Self = Self {
        min: None,
        max: None,
    };

    /// From `min` to `max`.
    #[must_use]
    pub const fn new(min: i64, max: i64) -> Self {
        Self {
            min: Some(min),
            max: Some(max),
        }
    }

    /// `min` or more.
    #[must_use]
    pub const fn at_least(min: i64) -> Self {
        Self {
            min: Some(min),
            max: None,
        }
    }
}

/// What a string must look like.
#[derive(Debug, Clone, Copy)]
pub struct Text {
    pub(crate) length: Bounds,
    pub(crate) pattern: Option<&'static Pattern>,
    pub(crate) one_of: &'static [&'static str],
    pub(crate) sensitive: bool,
}

impl Text {
    /// Any string.
    pub const ANY: Self = Self {
        length: Bounds::NONE,
        pattern: None,
        one_of: &[],
        sensitive: false,
    };

    /// A string of `min` to `max` characters.
    #[must_use]
    pub const fn new(min: i64, max: i64) -> Self {
        Self {
            length: Bounds::new(min, max),
            ..Self::ANY
        }
    }

    /// One of a few words.
    #[must_use]
    pub const fn one_of(words: &'static [&'static str]) -> Self {
        Self {
            one_of: words,
            ..Self::ANY
        }
    }

    /// The same, and the whole of it matches the pattern.
    #[must_use]
    pub const fn matching(mut self, pattern: &'static Pattern) -> Self {
        self.pattern = Some(pattern);
        self
    }

    /// The same, and errors never repeat it.
    #[must_use]
    pub const fn sensitive(mut self) -> Self {
        self.sensitive = true;
        self
    }
}

/// A regular expression in AWS's spelling, compiled when first needed.
#[derive(Debug)]
pub struct Pattern {
    pub(crate) text: &'static str,
    compiled: OnceLock<Regex>,
}

impl Pattern {
    /// The pattern of this text, which is compiled later.
    #[must_use]
    pub const fn new(text: &'static str) -> Self {
        Self {
            text,
            compiled: OnceLock::new(),
        }
    }

    /// Whether the whole of `value` matches.
    ///
    /// # Panics
    /// When the text is not a regular expression: a mistake in `model`, which its test finds.
    #[must_use]
    pub fn matches(&self, value: &str) -> bool {
        self.compiled
            .get_or_init(|| {
                Regex::new(&format!(r"\A(?:{})\z", self.text))
                    .expect("a pattern in the model is a regular expression")
            })
            .is_match(value)
    }
}
