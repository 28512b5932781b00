//! Checks a request against its table in AWS's order and words: first that every member has the
//! right JSON type, then every constraint, all violations in one message.

use crate::error::ApiError;
use crate::shape::{Bounds, Member, Shape, Text};
use serde_json::{Map, Value};
use std::fmt::Write;

/// Violations that one error lists at most, so that a small request cannot cause a huge answer.
const VIOLATIONS_MAX: usize = 100;
/// Characters of an offending value that an error repeats at most.
const ECHO_CHARS_MAX: usize = 4096;

/// Checks `input` and takes out of it what `members` do not name and what is null, so that what
/// remains deserializes.
///
/// # Errors
/// The first member of a wrong JSON type, or else all violated constraints.
pub fn check(members: &[Member], input: &mut Map<String, Value>) -> Result<(), ApiError> {
    let mut report = Report {
        violations: Vec::new(),
    };
    report.members(members, input, "")?;
    report.finish()
}

struct Report {
    violations: Vec<String>,
}

impl Report {
    fn finish(self) -> Result<(), ApiError> {
        let count = self.violations.len();
        if count == 0 {
            return Ok(());
        }
        let plural = if count == 1 { "" } else { "s" };
        let list = self.violations.join("; ");
        Err(ApiError::validation(format!(
            "{count} validation error{plural} detected: {list}"
        )))
    }

    /// Notes that `shown` (the value as text, none when it is sensitive) breaks `constraint`.
    fn violated(&mut self, shown: Option<&str>, path: &str, constraint: &str) {
        if self.violations.len() >= VIOLATIONS_MAX {
            return;
        }
        let value = match shown {
            Some(text) => format!("Value {text} at"),
            None => "Value at".to_owned(),
        };
        self.violations.push(format!(
            "{value} '{path}' failed to satisfy constraint: {constraint}"
        ));
    }

    fn members(
        &mut self,
        members: &[Member],
        input: &mut Map<String, Value>,
        path: &str,
    ) -> Result<(), ApiError> {
        input.retain(|name, value| {
            !value.is_null() && members.iter().any(|member| member.name == name)
        });
        for member in members {
            let path = join(path, member.name);
            match input.get_mut(member.name) {
                Some(value) => self.value(member.shape, value, &path)?,
                None if member.required => {
                    self.violated(Some("null"), &path, "Member must not be null");
                }
                None => {}
            }
        }
        Ok(())
    }

    fn value(&mut self, shape: &Shape, value: &mut Value, path: &str) -> Result<(), ApiError> {
        match (shape, value) {
            (Shape::Text(rules), Value::String(text)) => self.text(rules, text, path),
            (Shape::Integer(bounds), Value::Number(number)) => {
                let number = as_i32(number).ok_or_else(|| wrong_type(shape, path))?;
                for constraint in bounds.broken_by(number.into(), "value") {
                    self.violated(Some(&format!("'{number}'")), path, &constraint);
                }
            }
            (Shape::Boolean, Value::Bool(_)) => {}
            (Shape::List(member, length), Value::Array(items)) => {
                self.list(member, *length, items, path)?;
            }
            (Shape::Map { key, value, length }, Value::Object(entries)) => {
                self.map(key, value, *length, entries, path)?;
            }
            (Shape::Structure(members), Value::Object(input)) => {
                self.members(members, input, path)?;
            }
            (Shape::Union(members), Value::Object(input)) => {
                self.members(members, input, path)?;
                if input.len() != 1 {
                    self.violated(None, path, "Member must have exactly one member set");
                }
            }
            (Shape::Unit, Value::Object(input)) => input.clear(),
            (shape, _) => return Err(wrong_type(shape, path)),
        }
        Ok(())
    }

    fn text(&mut self, rules: &Text, text: &str, path: &str) {
        let broken = rules.broken_by(text);
        if broken.is_empty() {
            return;
        }
        let shown = (!rules.sensitive).then(|| quoted(text));
        for constraint in broken {
            self.violated(shown.as_deref(), path, &constraint);
        }
    }

    fn list(
        &mut self,
        member: &Shape,
        length: Bounds,
        items: &mut [Value],
        path: &str,
    ) -> Result<(), ApiError> {
        let broken = length.broken_by(count(items.len()), "length");
        if !broken.is_empty() {
            let shown = (!is_sensitive(member)).then(|| quoted(&java_list(items)));
            for constraint in broken {
                self.violated(shown.as_deref(), path, &constraint);
            }
        }
        if let Shape::Text(rules) = member {
            return self.text_items(rules, items, path);
        }
        for (index, item) in items.iter_mut().enumerate() {
            self.value(member, item, &format!("{path}.{}.member", index + 1))?;
        }
        Ok(())
    }

    /// AWS reports strings in a list as one violation of the list, whichever of them is at fault.
    fn text_items(&mut self, rules: &Text, items: &[Value], path: &str) -> Result<(), ApiError> {
        let mut at_fault = false;
        for item in items {
            let text = item.as_str().ok_or_else(|| not_text(path))?;
            at_fault |= !rules.broken_by(text).is_empty();
        }
        if at_fault {
            let shown = (!rules.sensitive).then(|| quoted(&java_list(items)));
            let constraint = format!("Member must satisfy constraint: [{}]", rules.all());
            self.violated(shown.as_deref(), path, &constraint);
        }
        Ok(())
    }

    fn map(
        &mut self,
        key_rules: &Text,
        value_rules: &Text,
        length: Bounds,
        entries: &Map<String, Value>,
        path: &str,
    ) -> Result<(), ApiError> {
        let mut broken = length.broken_by(count(entries.len()), "length");
        let mut key_at_fault = false;
        let mut value_at_fault = false;
        for (key, value) in entries {
            let value = value.as_str().ok_or_else(|| not_text(path))?;
            key_at_fault |= !key_rules.broken_by(key).is_empty();
            value_at_fault |= !value_rules.broken_by(value).is_empty();
        }
        if key_at_fault {
            let all = key_rules.all();
            broken.push(format!("Map keys must satisfy constraint: [{all}]"));
        }
        if value_at_fault {
            let all = value_rules.all();
            broken.push(format!("Map value must satisfy constraint: [{all}]"));
        }
        if !broken.is_empty() {
            let sensitive = key_rules.sensitive || value_rules.sensitive;
            let shown = (!sensitive).then(|| quoted(&java_map(entries)));
            for constraint in broken {
                self.violated(shown.as_deref(), path, &constraint);
            }
        }
        Ok(())
    }
}

impl Bounds {
    fn broken_by(self, number: i64, what: &str) -> Vec<String> {
        let mut broken = Vec::new();
        if let Some(max) = self.max
            && number > max
        {
            broken.push(at_most(what, max));
        }
        if let Some(min) = self.min
            && number < min
        {
            broken.push(at_least(what, min));
        }
        broken
    }
}

impl Text {
    fn broken_by(&self, text: &str) -> Vec<String> {
        let mut broken = Vec::new();
        if self.length.min.is_some() || self.length.max.is_some() {
            broken = self.length.broken_by(count(text.chars().count()), "length");
        }
        if let Some(pattern) = self.pattern
            && !pattern.matches(text)
        {
            broken.push(must_match(pattern.text));
        }
        if !self.one_of.is_empty() && !self.one_of.contains(&text) {
            broken.push(must_be_one_of(self.one_of));
        }
        broken
    }

    /// All constraints, for where AWS lists them instead of the broken ones.
    fn all(&self) -> String {
        let max = self.length.max.map(|max| at_most("length", max));
        let min = self.length.min.map(|min| at_least("length", min));
        let pattern = self.pattern.map(|pattern| must_match(pattern.text));
        let one_of = (!self.one_of.is_empty()).then(|| must_be_one_of(self.one_of));
        let all: Vec<String> = [max, min, pattern, one_of].into_iter().flatten().collect();
        all.join(", ")
    }
}

fn at_most(what: &str, max: i64) -> String {
    format!("Member must have {what} less than or equal to {max}")
}

fn at_least(what: &str, min: i64) -> String {
    format!("Member must have {what} greater than or equal to {min}")
}

fn must_match(pattern: &str) -> String {
    format!("Member must satisfy regular expression pattern: {pattern}")
}

fn must_be_one_of(words: &[&str]) -> String {
    format!("Member must satisfy enum value set: [{}]", words.join(", "))
}

/// The error for a value of the wrong JSON type.
pub(crate) fn wrong_type(shape: &Shape, path: &str) -> ApiError {
    let expected = match shape {
        // The one such text that was recorded; it names no member.
        Shape::Unit => return ApiError::serialization("Expected null"),
        Shape::Text(_) => "string",
        Shape::Integer(_) => "integer",
        Shape::Boolean => "boolean",
        Shape::List(..) => "list",
        Shape::Map { .. } => "map",
        Shape::Structure(_) | Shape::Union(_) => "structure",
    };
    ApiError::serialization(format!("Expected {expected} at '{path}'"))
}

fn not_text(path: &str) -> ApiError {
    wrong_type(&Shape::Text(Text::ANY), path)
}

fn is_sensitive(shape: &Shape) -> bool {
    match shape {
        Shape::Text(rules) => rules.sensitive,
        Shape::List(member, _) => is_sensitive(member),
        Shape::Map { key, value, .. } => key.sensitive || value.sensitive,
        Shape::Structure(members) | Shape::Union(members) => {
            members.iter().any(|member| is_sensitive(member.shape))
        }
        Shape::Integer(_) | Shape::Boolean | Shape::Unit => false,
    }
}

fn as_i32(number: &serde_json::Number) -> Option<i32> {
    number.as_i64().and_then(|wide| i32::try_from(wide).ok())
}

fn count(length: usize) -> i64 {
    i64::try_from(length).unwrap_or(i64::MAX)
}

/// AWS spells paths with lower-case members even where the wire has `PascalCase`.
fn join(path: &str, name: &str) -> String {
    let mut joined = path.to_owned();
    if !joined.is_empty() {
        joined.push('.');
    }
    let mut chars = name.chars();
    joined.extend(chars.next().map(|first| first.to_ascii_lowercase()));
    joined.push_str(chars.as_str());
    joined
}

fn quoted(text: &str) -> String {
    match text.char_indices().nth(ECHO_CHARS_MAX) {
        Some((end, _)) => format!("'{}…'", &text[..end]),
        None => format!("'{text}'"),
    }
}

/// Values as Java prints them, which is what AWS repeats.
fn java(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(items) => java_list(items),
        Value::Object(entries) => java_map(entries),
        Value::Null | Value::Bool(_) | Value::Number(_) => value.to_string(),
    }
}

fn java_list(items: &[Value]) -> String {
    let items: Vec<String> = items.iter().map(java).collect();
    format!("[{}]", items.join(", "))
}

fn java_map(entries: &Map<String, Value>) -> String {
    let mut text = String::from("{");
    for (index, (key, value)) in entries.iter().enumerate() {
        let comma = if index == 0 { "" } else { ", " };
        let _ = write!(text, "{comma}{key}={}", java(value));
    }
    text.push('}');
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_connectors_error_is_word_for_word() {
        static SUBNET: Shape = Shape::Text(Text::ANY);
        static SUBNETS: Shape = Shape::List(&SUBNET, Bounds::new(1, 16));
        static VPC: Shape = Shape::Structure(&[Member::body("SubnetIds", &SUBNETS).required()]);
        static CONFIGURATION: Shape =
            Shape::Structure(&[Member::body("VpcEgressConfiguration", &VPC)]);
        let members = [Member::body("Configuration", &CONFIGURATION)];

        let ids: Vec<String> = (1..=17).map(|n| format!("subnet-{n}")).collect();
        let input = json!({"Configuration": {"VpcEgressConfiguration": {"SubnetIds": ids}}});
        let mut input = input.as_object().unwrap().clone();
        let error = check(&members, &mut input).unwrap_err();
        let expected = format!(
            "1 validation error detected: Value '[{}]' at \
             'configuration.vpcEgressConfiguration.subnetIds' failed to satisfy constraint: \
             Member must have length less than or equal to 16",
            ids.join(", ")
        );
        assert_eq!(error.message(), Some(expected.as_str()));
    }

    #[test]
    fn what_the_table_does_not_name_and_nulls_are_taken_out() {
        let members = [
            Member::body("a", &Shape::Boolean),
            Member::body("b", &Shape::Unit),
        ];
        let mut input = json!({"a": true, "b": null, "c": 1})
            .as_object()
            .unwrap()
            .clone();
        check(&members, &mut input).unwrap();
        assert_eq!(Value::Object(input), json!({"a": true}));
    }
}
