//! Path patterns, as Docker has them: Go's `filepath.Match` for COPY, and with `**` for
//! `.dockerignore`.
//!
//! Patterns are a customer's, so matching runs in time proportional to pattern times path and
//! draws on a budget of [`Fuel`].

use std::cell::Cell;

/// Steps that matching may still take.
#[derive(Debug)]
pub struct Fuel(Cell<u64>);

/// Matching has used up its budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfFuel;

impl Fuel {
    /// A budget of so many steps.
    #[must_use]
    pub fn new(steps: u64) -> Self {
        Self(Cell::new(steps))
    }

    fn burn(&self, steps: usize) -> Result<(), OutOfFuel> {
        let left = self.0.get().checked_sub(steps as u64).ok_or(OutOfFuel)?;
        self.0.set(left);
        Ok(())
    }
}

/// Which `*` a pattern may use.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// `**` is two `*`.
    Copy,
    /// `**` crosses `/`.
    Ignore,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Token {
    Literal(char),
    /// One character but `/`.
    Any,
    /// One character of a set, or outside of it, but never `/`.
    Set {
        negated: bool,
        ranges: Vec<(char, char)>,
    },
    /// Any number of characters but `/`.
    Star,
    /// Any number of characters.
    DoubleStar,
    /// Begins `**/`: goes on to the next token or past it.
    Fork,
    /// The rest of `**/`: any number of characters, the last of which is a `/`.
    Slashed,
}

/// A compiled pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glob {
    tokens: Vec<Token>,
    /// What reading one character takes: a step for each state and for each range of a set.
    steps_per_char: usize,
}

impl Glob {
    /// Compiles a pattern.
    ///
    /// # Errors
    /// What is wrong with it, for people.
    pub fn new(pattern: &str, dialect: Dialect) -> Result<Self, &'static str> {
        let mut tokens = Vec::new();
        let mut chars = pattern.chars().peekable();
        while let Some(c) = chars.next() {
            let token = match c {
                '*' if dialect == Dialect::Ignore && chars.next_if_eq(&'*').is_some() => {
                    if chars.next_if_eq(&'/').is_none() {
                        tokens.push(Token::DoubleStar);
                        continue;
                    }
                    tokens.push(Token::Fork);
                    Token::Slashed
                }
                '*' => Token::Star,
                '?' => Token::Any,
                '[' => set(&mut chars)?,
                '\\' => Token::Literal(chars.next().ok_or("ends in a backslash")?),
                c => Token::Literal(c),
            };
            tokens.push(token);
        }
        let ranges = tokens.iter().map(|token| match token {
            Token::Set { ranges, .. } => ranges.len(),
            _ => 0,
        });
        let steps_per_char = tokens.len() + 1 + ranges.sum::<usize>();
        Ok(Self {
            tokens,
            steps_per_char,
        })
    }

    /// The path that the pattern names when it has no wildcard.
    #[must_use]
    pub fn literal(&self) -> Option<String> {
        let literal = |token: &Token| match token {
            Token::Literal(c) => Some(*c),
            _ => None,
        };
        self.tokens.iter().map(literal).collect()
    }

    /// Whether the whole path matches.
    ///
    /// # Errors
    /// The budget is used up.
    pub fn matches(&self, path: &str, fuel: &Fuel) -> Result<bool, OutOfFuel> {
        // states[i]: the first i tokens can have matched what was read so far.
        let mut states = vec![false; self.tokens.len() + 1];
        let mut next = states.clone();
        states[0] = true;
        self.skip_empty(&mut states);
        for c in path.chars() {
            fuel.burn(self.steps_per_char)?;
            next.fill(false);
            let mut alive = false;
            for (index, token) in self.tokens.iter().enumerate().filter(|(i, _)| states[*i]) {
                let (stay, advance) = token.read(c);
                next[index] |= stay;
                next[index + 1] |= advance;
                alive |= stay || advance;
            }
            if !alive {
                return Ok(false);
            }
            std::mem::swap(&mut states, &mut next);
            self.skip_empty(&mut states);
        }
        Ok(states[self.tokens.len()])
    }

    /// Follows the tokens that may match nothing.
    fn skip_empty(&self, states: &mut [bool]) {
        for (index, token) in self.tokens.iter().enumerate() {
            if !states[index] {
                continue;
            }
            match token {
                Token::Star | Token::DoubleStar => states[index + 1] = true,
                Token::Fork => states[index + 1..=index + 2].fill(true),
                Token::Literal(_) | Token::Any | Token::Set { .. } | Token::Slashed => {}
            }
        }
    }
}

impl Token {
    /// Whether, on reading `c`, the match may stay at this token, and may go past it.
    fn read(&self, c: char) -> (bool, bool) {
        match self {
            Self::Literal(expected) => (false, c == *expected),
            Self::Any => (false, c != '/'),
            Self::Set { negated, ranges } => {
                let within = ranges.iter().any(|(low, high)| (*low..=*high).contains(&c));
                (false, c != '/' && within != *negated)
            }
            Self::Star => (c != '/', false),
            Self::DoubleStar => (true, false),
            Self::Fork => (false, false),
            Self::Slashed => (true, c == '/'),
        }
    }
}

/// The set after a `[`, up to its `]`.
fn set(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Result<Token, &'static str> {
    const UNCLOSED: &str = "has a `[` without its `]`";
    let negated = chars.next_if_eq(&'^').is_some();
    let mut ranges = Vec::new();
    let bound = |chars: &mut std::iter::Peekable<std::str::Chars<'_>>| match chars.next() {
        Some('\\') => chars.next().ok_or(UNCLOSED),
        Some('-') => Err("has a range without its beginning"),
        Some(c) => Ok(c),
        None => Err(UNCLOSED),
    };
    loop {
        if chars.peek() == Some(&']') && !ranges.is_empty() {
            chars.next();
            return Ok(Token::Set { negated, ranges });
        }
        if chars.peek() == Some(&']') {
            return Err("has an empty `[]`");
        }
        let low = bound(chars)?;
        let high = match chars.next_if_eq(&'-') {
            Some(_) if chars.peek() == Some(&']') => return Err("has a range without its end"),
            Some(_) => bound(chars)?,
            None => low,
        };
        ranges.push((low, high));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(dialect: Dialect, pattern: &str, path: &str) -> bool {
        Glob::new(pattern, dialect)
            .unwrap()
            .matches(path, &Fuel::new(1_000_000))
            .unwrap()
    }

    #[test]
    fn patterns_match_as_in_go() {
        let table = [
            ("abc", "abc", true),
            ("abc", "abcd", false),
            ("*", "abc", true),
            ("*", "a/b", false),
            ("*c", "abc", true),
            ("a*", "ab/c", false),
            ("a*/b", "abc/b", true),
            ("a*b*c*d*e*/f", "axbxcxdxexxx/f", true),
            ("a*b?c*x", "abxbbxdbxebxczzx", true),
            ("a*b?c*x", "abxbbxdbxebxczzy", false),
            ("a?b", "a/b", false),
            ("a?b", "aüb", true),
            ("ab[c]", "abc", true),
            ("ab[b-d]", "abc", true),
            ("ab[e-g]", "abc", false),
            ("ab[^c]", "abc", false),
            ("ab[^e-g]", "abc", true),
            ("a[^x]b", "a/b", false),
            (r"a\*b", "a*b", true),
            (r"a\*b", "axb", false),
            (r"[\]a]", "]", true),
            (r"[\-x]", "-", true),
            ("**", "a/b", false),
            ("", "", true),
            ("", "a", false),
            ("*", "", true),
        ];
        for (pattern, path, expected) in table {
            assert_eq!(
                matches(Dialect::Copy, pattern, path),
                expected,
                "{pattern} {path}"
            );
        }
    }

    #[test]
    fn two_stars_cross_folders_in_dockerignore() {
        let table = [
            ("**", "a/b/c", true),
            ("**/x", "x", true),
            ("**/x", "a/b/x", true),
            ("**/x", "ax", false),
            ("a/**", "a/b/c", true),
            ("a/**", "a", false),
            ("a/**/z", "a/z", true),
            ("a/**/z", "a/b/c/z", true),
            ("a/**/z", "a/bz", false),
            ("**/*.pyc", "a/b.pyc", true),
            ("a**b", "a/x/b", true),
        ];
        for (pattern, path, expected) in table {
            assert_eq!(
                matches(Dialect::Ignore, pattern, path),
                expected,
                "{pattern} {path}"
            );
        }
    }

    #[test]
    fn malformed_patterns_are_refused() {
        for bad in [
            "[", "[a", "[]a]", "[-]", "[x-]", "[a-b-c]", "a\\", "[^]", "[\\",
        ] {
            assert!(Glob::new(bad, Dialect::Copy).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_costly_match_runs_out_of_fuel() {
        let glob = Glob::new(&"*a".repeat(1000), Dialect::Copy).unwrap();
        assert_eq!(
            glob.matches(&"a".repeat(100_000), &Fuel::new(1_000_000)),
            Err(OutOfFuel)
        );
        let glob = Glob::new(&format!("*[{}]", "b".repeat(10_000)), Dialect::Copy).unwrap();
        assert_eq!(
            glob.matches(&"a".repeat(1000), &Fuel::new(1_000_000)),
            Err(OutOfFuel)
        );
    }
}
