//! The `--name=value` options before an instruction's arguments.

use super::{DockerfileError, invalid};

/// The options of one instruction. What is not taken is refused by [`Flags::finish`].
#[derive(Debug)]
pub(super) struct Flags {
    line: usize,
    keyword: &'static str,
    left: Vec<(String, Option<String>)>,
}

impl Flags {
    /// Takes the options off the front of `arguments`; answers what follows them.
    pub(super) fn split<'a>(
        line: usize,
        keyword: &'static str,
        arguments: &'a str,
    ) -> (Self, &'a str) {
        let mut left = Vec::new();
        let mut rest = arguments.trim_start();
        while rest.starts_with("--") {
            let (word, after) = first_word(rest);
            rest = after.trim_start();
            // A lone `--` ends the options.
            let Some(flag) = word.strip_prefix("--").filter(|flag| !flag.is_empty()) else {
                break;
            };
            let (name, value) = match flag.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (flag, None),
            };
            left.push((name.to_owned(), value));
        }
        let flags = Self {
            line,
            keyword,
            left,
        };
        (flags, rest)
    }

    /// All values of an option that may stand several times.
    pub(super) fn every(&mut self, name: &str) -> Result<Vec<String>, DockerfileError> {
        let mut values = Vec::new();
        let mut left = Vec::new();
        for (flag, value) in std::mem::take(&mut self.left) {
            match value {
                Some(value) if flag == name => values.push(value),
                None if flag == name => return Err(self.without_value(name)),
                value => left.push((flag, value)),
            }
        }
        self.left = left;
        Ok(values)
    }

    /// The value of an option.
    pub(super) fn value(&mut self, name: &str) -> Result<Option<String>, DockerfileError> {
        let mut values = self.every(name)?;
        if values.len() > 1 {
            return Err(self.twice(name));
        }
        Ok(values.pop())
    }

    /// Whether a switch is on: `--name`, `--name=true` or `--name=false`.
    pub(super) fn switch(&mut self, name: &str) -> Result<bool, DockerfileError> {
        let Some(at) = self.left.iter().position(|(flag, _)| flag == name) else {
            return Ok(false);
        };
        let (_, value) = self.left.remove(at);
        if self.left.iter().any(|(flag, _)| flag == name) {
            return Err(self.twice(name));
        }
        truth(value.as_deref()).ok_or_else(|| {
            let value = value.unwrap_or_default();
            let problem = format!("--{name} is true or false, not `{value}`");
            invalid(self.line, problem)
        })
    }

    /// Refuses what is left.
    pub(super) fn finish(self) -> Result<(), DockerfileError> {
        match self.left.first() {
            None => Ok(()),
            Some((name, _)) => Err(invalid(
                self.line,
                format!("{} has no option --{name}", self.keyword),
            )),
        }
    }

    fn twice(&self, name: &str) -> DockerfileError {
        invalid(self.line, format!("--{name} is given more than once"))
    }

    fn without_value(&self, name: &str) -> DockerfileError {
        invalid(self.line, format!("--{name} has no value"))
    }
}

/// A switch's value; none at all is true.
pub(super) fn truth(value: Option<&str>) -> Option<bool> {
    match value {
        None | Some("" | "1" | "true" | "True" | "TRUE") => Some(true),
        Some("0" | "false" | "False" | "FALSE") => Some(false),
        Some(_) => None,
    }
}

/// The first word, without its quotes and escapes, and what follows it.
fn first_word(text: &str) -> (String, &str) {
    let mut word = String::new();
    let mut quote = None;
    let mut chars = text.char_indices();
    while let Some((at, c)) = chars.next() {
        match quote {
            Some(open) if c == open => quote = None,
            None if c == '\'' || c == '"' => quote = Some(c),
            None if c.is_whitespace() => return (word, &text[at..]),
            _ if c == '\\' => word.extend(chars.next().map(|(_, escaped)| escaped)),
            _ => word.push(c),
        }
    }
    (word, "")
}
