//! Patterns of `${name#pattern}` and its kin: `*`, `?`, and a backslash that takes away their meaning.

/// One part of a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token {
    Literal(char),
    Any,
    Star,
}

/// A compiled pattern.
#[derive(Debug)]
pub(super) struct Pattern {
    tokens: Vec<Token>,
}

/// Which budget a pattern would go beyond.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Exceeded {
    /// Of steps that matching takes.
    Steps,
    /// Of bytes that come out.
    Bytes,
}

impl Pattern {
    pub(super) fn new(text: &str) -> Self {
        let mut tokens = Vec::new();
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            tokens.push(match c {
                '*' => Token::Star,
                '?' => Token::Any,
                '\\' => Token::Literal(chars.next().unwrap_or('\\')),
                c => Token::Literal(c),
            });
        }
        Self { tokens }
    }

    /// The value without the beginning that matches: the longest such, or the shortest.
    pub(super) fn without_prefix(
        &self,
        value: &str,
        longest: bool,
        steps: &mut u64,
    ) -> Result<String, Exceeded> {
        let chars: Vec<char> = value.chars().collect();
        let cut = self.reach(chars.iter().copied(), longest, steps)?;
        Ok(chars[cut.unwrap_or(0)..].iter().collect())
    }

    /// The value without the end that matches: the longest such, or the shortest.
    pub(super) fn without_suffix(
        &self,
        value: &str,
        longest: bool,
        steps: &mut u64,
    ) -> Result<String, Exceeded> {
        let chars: Vec<char> = value.chars().collect();
        let backwards = Self {
            tokens: self.tokens.iter().rev().copied().collect(),
        };
        let cut = backwards.reach(chars.iter().rev().copied(), longest, steps)?;
        Ok(chars[..chars.len() - cut.unwrap_or(0)].iter().collect())
    }

    /// The value with the first match replaced, or with each, as long as that has at most `bytes_max` bytes:
    /// two long texts have a product that no memory holds.
    pub(super) fn replace(
        &self,
        value: &str,
        with: &str,
        all: bool,
        bytes_max: usize,
        steps: &mut u64,
    ) -> Result<String, Exceeded> {
        let chars: Vec<char> = value.chars().collect();
        let mut out = String::new();
        let mut at = 0;
        while at < chars.len() {
            match self.reach(chars[at..].iter().copied(), true, steps)? {
                // A match of nothing replaces nothing.
                None | Some(0) => {
                    out.push(chars[at]);
                    at += 1;
                }
                Some(length) => {
                    if out.len() + with.len() > bytes_max {
                        return Err(Exceeded::Bytes);
                    }
                    out.push_str(with);
                    at += length;
                    if !all {
                        break;
                    }
                }
            }
        }
        out.extend(&chars[at..]);
        Ok(out)
    }

    /// How many characters from the start match: the most, or the fewest.
    fn reach(
        &self,
        chars: impl Iterator<Item = char>,
        longest: bool,
        steps: &mut u64,
    ) -> Result<Option<usize>, Exceeded> {
        let end = self.tokens.len();
        // states[i]: the first i tokens can have matched what was read so far.
        let mut states = vec![false; end + 1];
        states[0] = true;
        self.skip_stars(&mut states);
        let mut found = states[end].then_some(0);
        for (index, c) in chars.enumerate() {
            if found.is_some() && !longest {
                return Ok(found);
            }
            *steps = steps.checked_sub(end as u64 + 1).ok_or(Exceeded::Steps)?;
            let mut next = vec![false; end + 1];
            for (at, token) in self.tokens.iter().enumerate().filter(|(at, _)| states[*at]) {
                match token {
                    Token::Star => next[at] = true,
                    Token::Any => next[at + 1] = true,
                    Token::Literal(literal) => next[at + 1] |= *literal == c,
                }
            }
            self.skip_stars(&mut next);
            states = next;
            if states[end] {
                found = Some(index + 1);
            }
            if !states.contains(&true) {
                break;
            }
        }
        Ok(found)
    }

    fn skip_stars(&self, states: &mut [bool]) {
        for (at, token) in self.tokens.iter().enumerate() {
            if states[at] && *token == Token::Star {
                states[at + 1] = true;
            }
        }
    }
}
