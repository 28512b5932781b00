//! The one thing that a person can say to us rather than to the shell: `~.`, as in ssh.

/// What was typed, as far as it concerns the shell.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Typed {
    /// Bytes for the shell.
    Bytes(Vec<u8>),
    /// The person wants to leave.
    Disconnect,
}

/// Looks for `~.` at the beginning of a line. `~~` there is a tilde.
#[derive(Debug)]
pub(super) struct Escape {
    at_line_start: bool,
    tilde: bool,
}

impl Escape {
    pub(super) fn new() -> Self {
        Self {
            at_line_start: true,
            tilde: false,
        }
    }

    /// Takes what was typed next.
    pub(super) fn take(&mut self, typed: &[u8]) -> Typed {
        let mut bytes = Vec::with_capacity(typed.len() + 1);
        for &byte in typed {
            match (std::mem::take(&mut self.tilde), byte) {
                (true, b'.') => return Typed::Disconnect,
                (true, b'~') => bytes.push(b'~'),
                (true, byte) => bytes.extend([b'~', byte]),
                (false, b'~') if self.at_line_start => {
                    self.tilde = true;
                    continue;
                }
                (false, byte) => bytes.push(byte),
            }
            self.at_line_start = matches!(byte, b'\r' | b'\n');
        }
        Typed::Bytes(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of text that is typed in two pieces, cut anywhere.
    fn take(text: &str) -> Option<String> {
        let mut outcomes = (0..=text.len()).map(|cut| {
            let mut escape = Escape::new();
            let mut all = Vec::new();
            for piece in [&text[..cut], &text[cut..]] {
                match escape.take(piece.as_bytes()) {
                    Typed::Bytes(bytes) => all.extend(bytes),
                    Typed::Disconnect => return None,
                }
            }
            Some(String::from_utf8(all).unwrap())
        });
        let first = outcomes.next().unwrap();
        assert!(outcomes.all(|other| other == first), "{text}");
        first
    }

    #[test]
    fn a_tilde_and_a_dot_leave_at_the_beginning_of_a_line_only() {
        for leave in ["~.", "ls\r~.", "ls\n~.x", "~~\r~."] {
            assert_eq!(take(leave), None, "{leave}");
        }
        for (typed, sent) in [
            ("ls ~.\r", "ls ~.\r"),
            ("~~.", "~."),
            ("~/x", "~/x"),
            ("~\r~x", "~\r~x"),
            ("x~.", "x~."),
            ("a\r~", "a\r"),
        ] {
            assert_eq!(take(typed).as_deref(), Some(sent), "{typed}");
        }
    }
}
