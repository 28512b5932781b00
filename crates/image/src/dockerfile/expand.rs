//! Docker's variable expansion and word splitting.
//!
//! It looks like a shell's but is not one: quotes vanish, `$name` and `${name}` with the modifiers
//! `-`, `+` and `?` (each also with `:`) are replaced, and nothing is split after expansion.
//! What comes out is bounded by a budget for the whole Dockerfile, because
//! `ENV a=$a$a` doubles with each line.

use std::collections::BTreeMap;
use std::iter::Peekable;
use std::str::Chars;

/// Deepest nesting of `${a:-${b:-…}}`.
const DEPTH_MAX: u32 = 32;

/// Values of the variables in scope.
pub(super) type Scope<'a> = BTreeMap<&'a str, &'a str>;

/// Expands words until its budget is spent.
#[derive(Debug)]
pub(super) struct Expander {
    escape: char,
    bytes_left: usize,
}

impl Expander {
    /// `escape` is the Dockerfile's escape character; `budget` bounds all that is produced.
    pub(super) fn new(escape: char, budget: usize) -> Self {
        let bytes_left = budget;
        Self { escape, bytes_left }
    }

    /// Expands `raw` as one word, or says why it cannot be.
    pub(super) fn word(&mut self, raw: &str, scope: &Scope<'_>) -> Result<String, String> {
        let mut lexer = Lexer {
            chars: raw.chars().peekable(),
            escape: self.escape,
            bytes_left: &mut self.bytes_left,
            scope,
            depth: 0,
        };
        lexer.until(None)
    }

    /// Splits `raw` at white space outside of quotes. Quotes and escapes stay: [`Self::word`] takes
    /// them away.
    pub(super) fn split(&self, raw: &str) -> Vec<String> {
        let mut words = Vec::new();
        let mut word = String::new();
        let mut quote = None;
        let mut chars = raw.chars();
        while let Some(c) = chars.next() {
            if c == self.escape && quote != Some('\'') {
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
        words
    }
}

struct Lexer<'a> {
    chars: Peekable<Chars<'a>>,
    escape: char,
    bytes_left: &'a mut usize,
    scope: &'a Scope<'a>,
    depth: u32,
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
                        self.push(&mut out, escaped)?;
                    }
                }
                c => self.push(&mut out, c)?,
            }
        }
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
                let word = self.nested()?;
                match (modifier, set) {
                    ('-', None) | ('+', Some(_)) => out.push_str(&word),
                    ('-' | '?', Some(value)) => self.push_value(out, Some(value))?,
                    ('?', None) if word.is_empty() => return Err(format!("`{name}` is not set")),
                    ('?', None) => return Err(format!("`{name}`: {word}")),
                    _ => {}
                }
                Ok(())
            }
            Some(other) => Err(format!(
                "the modifier `{other}` in `${{{name}…}}` is not supported; -, + and ? are"
            )),
        }
    }

    /// The word after a modifier, up to its `}`.
    fn nested(&mut self) -> Result<String, String> {
        if self.depth == DEPTH_MAX {
            return Err(format!("variables are nested more than {DEPTH_MAX} deep"));
        }
        self.depth += 1;
        let word = self.until(Some('}'))?;
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
        *self.bytes_left = left.ok_or("the variables expand to too much text")?;
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
        ];
        for (raw, expected) in table {
            assert_eq!(expand(raw).as_deref(), Ok(expected), "{raw}");
        }
    }

    #[test]
    fn bad_words_are_refused() {
        let deep = "${u:-".repeat(100);
        for bad in [
            "${", "${}", "${:x}", "${a", "${a:", "${a:-", "'x", "\"x", "${a#x}", "${a/x/y}", &deep,
        ] {
            assert!(expand(bad).is_err(), "{bad}");
        }
        assert_eq!(expand("${unset:?no luck}").unwrap_err(), "`unset`: no luck");
        assert_eq!(expand("${empty:?}").unwrap_err(), "`empty` is not set");
    }

    #[test]
    fn the_budget_bounds_what_comes_out() {
        let mut expander = Expander::new('\\', 12);
        let scope = Scope::from([("a", "12345")]);
        assert_eq!(expander.word("$a$a", &scope).as_deref(), Ok("1234512345"));
        assert!(expander.word("$a", &scope).is_err());
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
