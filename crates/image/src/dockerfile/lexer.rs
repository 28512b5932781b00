//! A Dockerfile's text to its instructions' lines: directives, comments, continued lines and
//! here-documents. The rules are BuildKit's.

use super::expand::split_words;
use super::{DockerfileError, invalid, unsupported};
use dormouse_core::limits;

/// Most here-documents of one instruction.
const DOCUMENTS_MAX: usize = 64;

/// A whole Dockerfile.
#[derive(Debug)]
pub(super) struct Text {
    /// The escape character, a backslash unless a directive says otherwise.
    pub(super) escape: char,
    pub(super) lines: Vec<Line>,
}

/// One instruction, however many lines it is written on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Line {
    /// Where it begins, from 1.
    pub(super) number: usize,
    /// Its text, continued lines joined; never empty.
    pub(super) text: String,
    pub(super) documents: Vec<HereDoc>,
}

/// A here-document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct HereDoc {
    pub(super) name: String,
    /// Whether variables in it are replaced: its name was not quoted.
    pub(super) expand: bool,
    /// Written `<<-`: leading tabs are taken away.
    chomp: bool,
    /// What stands between its opening and its end, as written.
    pub(super) raw: String,
}

impl HereDoc {
    /// The document that `word` opens, if it is `<<NAME`, without its content.
    pub(super) fn opened_by(word: &str) -> Option<Self> {
        let rest = word.trim_start_matches(|c: char| c.is_ascii_digit());
        let rest = rest.strip_prefix("<<")?;
        let (rest, chomp) = match rest.strip_prefix('-') {
            Some(rest) => (rest, true),
            None => (rest, false),
        };
        if rest.is_empty() || rest.contains('<') || split_words(rest, '\\')?.len() != 1 {
            return None;
        }
        let name = unquote(rest)?;
        Some(Self {
            expand: name == rest,
            name,
            chomp,
            raw: String::new(),
        })
    }

    /// What the document says.
    pub(super) fn content(&self) -> String {
        if !self.chomp {
            return self.raw.clone();
        }
        let lines = self.raw.split_inclusive('\n');
        lines.map(|line| line.trim_start_matches('\t')).collect()
    }
}

impl Text {
    pub(super) fn parse(text: &str) -> Result<Self, DockerfileError> {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let escape = directives(text)?;
        let mut reader = Reader {
            lines: text.split_inclusive('\n'),
            number: 0,
        };
        let mut lines: Vec<Line> = Vec::new();
        while let Some(first) = reader.next() {
            let number = reader.number;
            let Some(mut line) = instruction(&mut reader, first, number, escape)? else {
                continue;
            };
            if lines.len() == limits::DOCKERFILE_STEPS_MAX {
                let max = limits::DOCKERFILE_STEPS_MAX;
                return Err(DockerfileError::TooManySteps { line: number, max });
            }
            if takes_documents(&line.text) {
                line.documents = documents(&mut reader, &line)?;
            }
            lines.push(line);
        }
        Ok(Self { escape, lines })
    }
}

/// The text's lines as they are, with their ends.
struct Reader<'t> {
    lines: std::str::SplitInclusive<'t, char>,
    number: usize,
}

impl<'t> Reader<'t> {
    fn next(&mut self) -> Option<&'t str> {
        let line = self.lines.next()?;
        self.number += 1;
        Some(line)
    }
}

/// The instruction that begins with `first`, or none when that is empty or a comment.
fn instruction(
    reader: &mut Reader<'_>,
    first: &str,
    number: usize,
    escape: char,
) -> Result<Option<Line>, DockerfileError> {
    let first = without_end(first).trim_start();
    if first.is_empty() || first.starts_with('#') {
        return Ok(None);
    }
    let (mut text, mut goes_on) = continued(first, escape);
    while goes_on {
        let Some(line) = reader.next() else { break };
        let line = without_end(line);
        let content = line.trim_start();
        if content.is_empty() || content.starts_with('#') {
            continue;
        }
        let (part, more) = continued(line, escape);
        text.push_str(&part);
        goes_on = more;
    }
    if text.contains('\0') {
        return Err(invalid(number, "there is a NUL byte"));
    }
    let text = text.trim().to_owned();
    Ok((!text.is_empty()).then_some(Line {
        number,
        text,
        documents: Vec::new(),
    }))
}

fn without_end(line: &str) -> &str {
    let line = line.strip_suffix('\n').unwrap_or(line);
    line.strip_suffix('\r').unwrap_or(line)
}

/// A line without the escape character at its end, and whether that was there. A doubled one stands
/// for itself.
fn continued(line: &str, escape: char) -> (String, bool) {
    let trimmed = line.trim_end_matches([' ', '\t']);
    match trimmed.strip_suffix(escape) {
        Some(rest) if !rest.ends_with(escape) => (rest.to_owned(), true),
        _ => (line.to_owned(), false),
    }
}

/// Whether `<<NAME` opens a document in this instruction.
fn takes_documents(text: &str) -> bool {
    let mut rest = text;
    loop {
        let (keyword, after) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
        match keyword.to_ascii_uppercase().as_str() {
            "ONBUILD" => rest = after.trim_start(),
            "RUN" | "COPY" | "ADD" => return true,
            _ => return false,
        }
    }
}

fn documents(reader: &mut Reader<'_>, line: &Line) -> Result<Vec<HereDoc>, DockerfileError> {
    let words = split_words(&line.text, '\\').unwrap_or_default();
    let mut documents = Vec::new();
    for mut document in words.iter().filter_map(|word| HereDoc::opened_by(word)) {
        if documents.len() == DOCUMENTS_MAX {
            let problem = format!("there are more than {DOCUMENTS_MAX} here-documents");
            return Err(invalid(line.number, problem));
        }
        loop {
            let Some(raw) = reader.next() else {
                let problem = format!("the here-document {} has no end", document.name);
                return Err(invalid(line.number, problem));
            };
            let end = without_end(raw);
            let end = if document.chomp {
                end.trim_start_matches('\t')
            } else {
                end
            };
            if end == document.name {
                break;
            }
            document.raw.push_str(raw);
        }
        if document.raw.contains('\0') {
            return Err(invalid(line.number, "there is a NUL byte"));
        }
        documents.push(document);
    }
    Ok(documents)
}

/// A word without its quotes and escapes; none when a quote is not closed.
fn unquote(word: &str) -> Option<String> {
    let mut out = String::new();
    let mut quote = None;
    let mut chars = word.chars();
    while let Some(c) = chars.next() {
        match quote {
            Some(open) if c == open => quote = None,
            Some('\'') => out.push(c),
            None if matches!(c, '\'' | '"') => quote = Some(c),
            _ if c == '\\' => out.extend(chars.next()),
            _ => out.push(c),
        }
    }
    quote.is_none().then_some(out)
}

/// Reads the directives at the top; answers the escape character.
fn directives(text: &str) -> Result<char, DockerfileError> {
    let mut seen: Vec<&str> = Vec::new();
    let mut escape = '\\';
    for (index, line) in text.lines().enumerate() {
        let number = index + 1;
        let Some((name, value)) = directive(line) else {
            break;
        };
        let Some(name) = ["syntax", "escape", "check"]
            .into_iter()
            .find(|known| name.eq_ignore_ascii_case(known))
        else {
            break;
        };
        if seen.contains(&name) {
            let problem = format!("only one {name} parser directive can be used");
            return Err(invalid(number, problem));
        }
        seen.push(name);
        match (name, value) {
            ("escape", "\\") => escape = '\\',
            ("escape", "`") => escape = '`',
            ("escape", other) => {
                let problem = format!("the escape character `{other}` is neither \\ nor `");
                return Err(invalid(number, problem));
            }
            ("syntax", frontend) if !is_dockerfile_frontend(frontend) => {
                let what = format!("the frontend `{frontend}`");
                return Err(unsupported(number, what, "use docker/dockerfile:1"));
            }
            _ => {}
        }
    }
    Ok(escape)
}

/// `# name=value`
fn directive(line: &str) -> Option<(&str, &str)> {
    let (name, value) = line.strip_prefix('#')?.split_once('=')?;
    let (name, value) = (name.trim(), value.trim());
    let first_is_letter = name.starts_with(|c: char| c.is_ascii_alphabetic());
    let plain = name.chars().all(|c| c.is_ascii_alphanumeric());
    (first_is_letter && plain && !value.is_empty()).then_some((name, value))
}

/// Docker's own frontend, from wherever it is fetched.
fn is_dockerfile_frontend(reference: &str) -> bool {
    let name = reference.split(['@', ' ']).next().unwrap_or_default();
    let last = name.rfind('/').map_or(0, |slash| slash + 1);
    let name = match name[last..].find(':') {
        Some(colon) => &name[..last + colon],
        None => name,
    };
    ["docker/dockerfile", "docker/dockerfile-upstream"]
        .iter()
        .any(|known| name == *known || name.ends_with(&format!("/{known}")))
}
