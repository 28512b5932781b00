//! Docker's variable expansion and word splitting.
//!
//! It looks like a shell's but is not one: quotes vanish, `$name` and `${name}` with the modifiers
//! `-`, `+` and `?` (each also with `:`), `#`, `##`, `%`, `%%`, `/` and `//` are replaced, and nothing is
//! split after expansion.
//! What comes out is bounded by a budget for the whole Dockerfile, because
//! `ENV a=$a$a` doubles with each line.

mod pattern;

use pattern::{Exceeded, Pattern};
use std::collections::BTreeMap;
use std::iter::Peekable;
use std::str::Chars;

/// Deepest nesting of `${a:-${b:-…}}`.
const DEPTH_MAX: u32 = 32;

/// Steps that matching all patterns of one Dockerfile may take.
const PATTERN_STEPS_MAX: u64 = 1 << 24;

const TOO_MUCH_TEXT: &str = "the variables expand to too much text";

/// Values of the variables in scope.
pub(super) type Scope<'a> = BTreeMap<&'a str, &'a str>;

/// Expands words until its budget is spent.
#[derive(Debug)]
pub(super) struct Expander {
    escape: char,
    bytes_left: usize,
    pattern_steps: u64,
}

impl Expander {
    /// `escape` is the Dockerfile's escape character; `budget` bounds all that is produced.
    pub(super) fn new(escape: char, budget: usize) -> Self {
        Self {
            escape,
            bytes_left: budget,
            pattern_steps: PATTERN_STEPS_MAX,
        }
    }

    /// Expands `raw` as one word, or says why it cannot be.
    pub(super) fn word(&mut self, raw: &str, scope: &Scope<'_>) -> Result<String, String> {
        self.lexer(raw, scope).until(None)
    }

    /// Expands the text of a here-document: quotes mean nothing in it, and the escape character takes
    /// away the meaning of `$` and of itself only.
    pub(super) fn document(&mut self, raw: &str, scope: &Scope<'_>) -> Result<String, String> {
        self.lexer(raw, scope).document()
    }

    /// Splits `raw` at white space outside of quotes. Quotes and escapes stay: [`Self::word`] takes
    /// them away.
    pub(super) fn split(&self, raw: &str) -> Vec<String> {
        split(raw, self.escape).0
    }

    fn lexer<'l>(&'l mut self, raw: &'l str, scope: &'l Scope<'l>) -> Lexer<'l> {
        Lexer {
            chars: raw.chars().peekable(),
            escape: self.escape,
            bytes_left: &mut self.bytes_left,
            pattern_steps: &mut self.pattern_steps,
            scope,
            depth: 0,
            keep_escapes: false,
        }
    }
}

/// Splits `raw` at white space outside of quotes, which stay; none when a quote is not closed.
pub(super) fn split_words(raw: &str, escape: char) -> Option<Vec<String>> {
    let (words, closed) = split(raw, escape);
    closed.then_some(words)
}

fn split(raw: &str, escape: char) -> (Vec<String>, bool) {
    let mut words = Vec::new();
    let mut word = String::new();
    let mut quote = None;
    let mut chars = raw.chars();
    while let Some(c) = chars.next() {
        if c == escape && quote != Some('\'') {
            // A lone escape at the end says nothing.
            if let Some(escaped) = chars.next() {
                word.extend([c, escaped]);
            }
            continue;
        }
        match quote {
            Some(open) if c == open => quote = None,
            None if c == '"' || c == '\'' => quote = Some(c),
            None if c.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
                continue;
            }
            Some(_) | None => {}
        }
        word.push(c);
    }
    if !word.is_empty() {
        words.push(word);
    }
    (words, quote.is_none())
}

struct Lexer<'a> {
    chars: Peekable<Chars<'a>>,
    escape: char,
    bytes_left: &'a mut usize,
    pattern_steps: &'a mut u64,
    scope: &'a Scope<'a>,
    depth: u32,
    /// Leave the escape character where it is: a pattern gives it a meaning of its own.
    keep_escapes: bool,
}

impl Lexer<'_> {
    /// Expands up to `stop`, which is consumed, or to the end of the word.
    fn until(&mut self, stop: Option<char>) -> Result<String, String> {
        let mut out = String::new();
        loop {
            let Some(c) = self.chars.next() else {
                return match stop {
                    Some(stop) => Err(format!("a `{stop}` is missing")),
                    None => Ok(out),
                };
            };
            if Some(c) == stop {
                return Ok(out);
            }
            match c {
                '\'' => self.single_quoted(&mut out)?,
                '"' => self.double_quoted(&mut out)?,
                '$' => self.variable(&mut out)?,
                c if c == self.escape => {
                    if let Some(escaped) = self.chars.next() {
                        if self.keep_escapes {
                            self.push(&mut out, '\\')?;
                        }
                        self.push(&mut out, escaped)?;
                    }
                }
                c => self.push(&mut out, c)?,
            }
        }
    }

    fn document(&mut self) -> Result<String, String> {
        let mut out = String::new();
        while let Some(c) = self.chars.next() {
            if c == '$' {
                self.variable(&mut out)?;
            } else if c == self.escape {
                let escaped = |next: &char| *next == '$' || *next == c;
                let kept = self.chars.next_if(escaped);
                self.push(&mut out, kept.unwrap_or(c))?;
            } else {
                self.push(&mut out, c)?;
            }
        }
        Ok(out)
    }

    fn single_quoted(&mut self, out: &mut String) -> Result<(), String> {
        loop {
            match self.chars.next() {
                None => return Err("a single quote is not closed".to_owned()),
                Some('\'') => return Ok(()),
                Some(c) => self.push(out, c)?,
            }
        }
    }

    fn double_quoted(&mut self, out: &mut String) -> Result<(), String> {
        loop {
            match self.chars.next() {
                None => return Err("a double quote is not closed".to_owned()),
                Some('"') => return Ok(()),
                Some('$') => self.variable(out)?,
                Some(c) if c == self.escape => {
                    let escaped = |next: &char| matches!(next, '"' | '$') || *next == c;
                    let kept = self.chars.next_if(escaped);
                    self.push(out, kept.unwrap_or(c))?;
                }
                Some(c) => self.push(out, c)?,
            }
        }
    }

    /// What follows a `$`.
    fn variable(&mut self, out: &mut String) -> Result<(), String> {
        if self.chars.next_if_eq(&'{').is_some() {
            return self.braced(out);
        }
        let name = self.name();
        if name.is_empty() {
            return self.push(out, '$');
        }
        self.push_value(out, self.scope.get(name.as_str()).copied())
    }

    /// What follows a `${`.
    fn braced(&mut self, out: &mut String) -> Result<(), String> {
        let name = self.name();
        if name.is_empty() {
            return Err("bad substitution: `${` is not followed by a name".to_owned());
        }
        let value = self.scope.get(name.as_str()).copied();
        let mut modifier = self.chars.next();
        if modifier == Some('}') {
            return self.push_value(out, value);
        }
        let empty_is_unset = modifier == Some(':');
        if empty_is_unset {
            modifier = self.chars.next();
        }
        let set = value.filter(|value| !(empty_is_unset && value.is_empty()));
        match modifier {
            None => Err("a `}` is missing".to_owned()),
            Some(modifier @ ('-' | '+' | '?')) => {
                let word = self.nested('}')?;
                match (modifier, set) {
                    ('-', None) | ('+', Some(_)) => out.push_str(&word),
                    ('-' | '?', Some(value)) => self.push_value(out, Some(value))?,
                    ('?', None) if word.is_empty() => return Err(format!("`{name}` is not set")),
                    ('?', None) => return Err(format!("`{name}`: {word}")),
                    _ => {}
                }
                Ok(())
            }
            Some(modifier @ ('#' | '%')) if !empty_is_unset => {
                let longest = self.chars.next_if_eq(&modifier).is_some();
                let pattern = Pattern::new(&self.pattern('}')?);
                let (value, steps) = (value.unwrap_or_default(), &mut *self.pattern_steps);
                let cut = if modifier == '#' {
                    pattern.without_prefix(value, longest, steps)
                } else {
                    pattern.without_suffix(value, longest, steps)
                };
                self.push_matched(out, cut)
            }
            Some('/') if !empty_is_unset => {
                let all = self.chars.next_if_eq(&'/').is_some();
                let pattern = Pattern::new(&self.pattern('/')?);
                let with = self.nested('}')?;
                let value = value.unwrap_or_default();
                let (bytes_max, steps) = (*self.bytes_left, &mut *self.pattern_steps);
                let replaced = pattern.replace(value, &with, all, bytes_max, steps);
                self.push_matched(out, replaced)
            }
            Some(other) => Err(format!(
                "the modifier `{other}` in `${{{name}…}}` is not supported; -, +, ?, #, % and / are"
            )),
        }
    }

    /// A pattern up to `stop`.
    fn pattern(&mut self, stop: char) -> Result<String, String> {
        let outer = std::mem::replace(&mut self.keep_escapes, true);
        let pattern = self.nested(stop);
        self.keep_escapes = outer;
        pattern
    }

    fn push_matched(
        &mut self,
        out: &mut String,
        value: Result<String, Exceeded>,
    ) -> Result<(), String> {
        match value {
            Ok(value) => self.push_value(out, Some(&value)),
            Err(Exceeded::Steps) => Err("the patterns take too long to match".to_owned()),
            Err(Exceeded::Bytes) => Err(TOO_MUCH_TEXT.to_owned()),
        }
    }

    /// The word after a modifier, up to `stop`.
    fn nested(&mut self, stop: char) -> Result<String, String> {
        if self.depth == DEPTH_MAX {
            return Err(format!("variables are nested more than {DEPTH_MAX} deep"));
        }
        self.depth += 1;
        let word = self.until(Some(stop))?;
        self.depth -= 1;
        Ok(word)
    }

    /// A variable's name: letters, digits and `_`; or digits alone; or one special sign.
    fn name(&mut self) -> String {
        let mut name = String::new();
        let special = |c: &char| matches!(c, '@' | '*' | '#' | '?' | '-' | '$' | '!' | '0');
        if let Some(c) = self.chars.next_if(special) {
            name.push(c);
            return name;
        }
        let digits = self.chars.peek().is_some_and(char::is_ascii_digit);
        let belongs = |c: &char| {
            if digits {
                c.is_ascii_digit()
            } else {
                c.is_alphanumeric() || *c == '_'
            }
        };
        while let Some(c) = self.chars.next_if(belongs) {
            name.push(c);
        }
        name
    }

    fn push(&mut self, out: &mut String, c: char) -> Result<(), String> {
        self.spend(c.len_utf8())?;
        out.push(c);
        Ok(())
    }

    fn push_value(&mut self, out: &mut String, value: Option<&str>) -> Result<(), String> {
        let value = value.unwrap_or_default();
        self.spend(value.len())?;
        out.push_str(value);
        Ok(())
    }

    fn spend(&mut self, bytes: usize) -> Result<(), String> {
        let left = self.bytes_left.checked_sub(bytes);
        *self.bytes_left = left.ok_or(TOO_MUCH_TEXT)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn expand(raw: &str) -> Result<String, String> {
        let scope = Scope::from([
            ("a", "apple"),
            ("empty", ""),
            ("sp", "x y"),
            ("path", "/bin"),
        ]);
        Expander::new('\\', 10_000).word(raw, &scope)
    }

    #[test]
    fn words_expand_as_docker_expands_them() {
        let table = [
            ("plain", "plain"),
            ("$a", "apple"),
            ("${a}", "apple"),
            ("x${a}y", "xappley"),
            ("$a.$a", "apple.apple"),
            ("$ab", ""),
            ("$unset", ""),
            ("${unset}", ""),
            ("${unset:-d}", "d"),
            ("${unset-d}", "d"),
            ("${empty:-d}", "d"),
            ("${empty-d}", ""),
            ("${a:-d}", "apple"),
            ("${a:+alt}", "alt"),
            ("${a+alt}", "alt"),
            ("${unset:+alt}", ""),
            ("${empty:+alt}", ""),
            ("${empty+alt}", "alt"),
            ("${unset:-$a}", "apple"),
            ("${unset:-${also:-deep}}", "deep"),
            ("${unset:-'q}q'}", "q}q"),
            ("${a:?must}", "apple"),
            (r"\$a", "$a"),
            (r"\${a}", "${a}"),
            (r"\\$a", r"\apple"),
            ("'$a'", "$a"),
            ("\"$a\"", "apple"),
            (r#""\$a""#, "$a"),
            (r#""a\nb""#, r"a\nb"),
            (r"a\nb", "anb"),
            (r#""say \"hi\"""#, r#"say "hi""#),
            ("'it''s'", "its"),
            ("$sp", "x y"),
            ("$", "$"),
            ("a$", "a$"),
            ("$/x", "$/x"),
            ("$1a", "a"),
            ("$0", ""),
            ("$path:/x", "/bin:/x"),
            ("trailing\\", "trailing"),
            ("größe$a", "größeapple"),
            ("${path#/}", "bin"),
            ("${path#*/}", "bin"),
            ("${a#*p}", "ple"),
            ("${a##*p}", "le"),
            ("${a%p*}", "ap"),
            ("${a%%p*}", "a"),
            ("${a%x}", "apple"),
            ("${a#?}", "pple"),
            ("${a/p/P}", "aPple"),
            ("${a//p/P}", "aPPle"),
            ("${a//p/}", "ale"),
            ("${a/p*/$path}", "a/bin"),
            ("${unset#x}", ""),
            (r"${a/\*/x}", "apple"),
        ];
        for (raw, expected) in table {
            assert_eq!(expand(raw).as_deref(), Ok(expected), "{raw}");
        }
    }

    #[test]
    fn bad_words_are_refused() {
        let deep = "${u:-".repeat(100);
        for bad in [
            "${", "${}", "${:x}", "${a", "${a:", "${a:-", "'x", "\"x", "${a~x}", "${a/x",
            "${a:#x}", &deep,
        ] {
            assert!(expand(bad).is_err(), "{bad}");
        }
        assert_eq!(expand("${unset:?no luck}").unwrap_err(), "`unset`: no luck");
        assert_eq!(expand("${empty:?}").unwrap_err(), "`empty` is not set");
    }

    #[test]
    fn documents_keep_their_quotes() {
        let scope = Scope::from([("a", "apple")]);
        let mut expander = Expander::new('\\', 10_000);
        let text = "'$a' \"${a}\" \\$a \\\\ \\n it's\n";
        let expected = "'apple' \"apple\" $a \\ \\n it's\n";
        assert_eq!(expander.document(text, &scope).as_deref(), Ok(expected));
    }

    #[test]
    fn patterns_cannot_take_long() {
        let value = "a".repeat(100_000);
        let scope = Scope::from([("v", value.as_str())]);
        let mut expander = Expander::new('\\', 1 << 20);
        assert!(expander.word("${v//a*a*a*b/x}", &scope).is_err());
    }

    #[test]
    fn the_budget_bounds_what_comes_out() {
        let mut expander = Expander::new('\\', 12);
        let scope = Scope::from([("a", "12345")]);
        assert_eq!(expander.word("$a$a", &scope).as_deref(), Ok("1234512345"));
        assert!(expander.word("$a", &scope).is_err());
    }

    #[test]
    fn replacing_stops_where_the_budget_ends() {
        // What it would come to does not fit into any address space.
        let long = "a".repeat(1 << 22);
        let scope = Scope::from([("v", long.as_str())]);
        let mut expander = Expander::new('\\', 1 << 24);
        let failed = expander.word("${v//?/$v$v$v}", &scope);
        assert_eq!(failed.as_deref(), Err(&TOO_MUCH_TEXT.to_owned()));
        assert_eq!(
            expander.word("${v/*/short}", &scope).as_deref(),
            Ok("short")
        );
    }

    #[test]
    fn words_split_outside_of_quotes() {
        let table: [(&str, &[&str]); 6] = [
            ("a=1 b=2", &["a=1", "b=2"]),
            ("a=\"x y\"  b='p q'", &["a=\"x y\"", "b='p q'"]),
            (r"a=x\ y b=z", &[r"a=x\ y", "b=z"]),
            (r#"a="x\" y" b"#, &[r#"a="x\" y""#, "b"]),
            ("  ", &[]),
            ("a=''", &["a=''"]),
        ];
        for (raw, expected) in table {
            assert_eq!(Expander::new('\\', 0).split(raw), expected, "{raw}");
        }
    }
}
