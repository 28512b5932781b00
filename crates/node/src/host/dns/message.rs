//! DNS messages (RFC 1035), as far as a forwarder must understand them: header and question.

use dormouse_core::limits;

const HEADER_LEN: usize = 12;
const NAME_LEN_MAX: usize = 255;
const LABEL_LEN_MAX: usize = 63;
/// After the name of a question.
const TYPE_AND_CLASS_LEN: usize = 4;

/// First flag byte: an answer, not a query.
const ANSWER: u8 = 0x80;
/// First flag byte: the operation, of which only zero (a plain query) is known.
const OPCODE: u8 = 0x78;
/// First flag byte: the message is cut short.
const TRUNCATED: u8 = 0x02;
/// First flag byte: the asker wants recursion; an answer repeats it.
const RECURSION_DESIRED: u8 = 0x01;
/// Second flag byte: recursion is available.
const RECURSION_AVAILABLE: u8 = 0x80;
/// Second flag byte, code "server failure".
const SERVER_FAILURE: u8 = 2;

/// A well-formed query with one question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Query {
    message: Vec<u8>,
    /// Where the question ends.
    question_end: usize,
}

impl Query {
    /// Reads a query from a guest; none when it is anything else.
    pub(super) fn parse(message: &[u8]) -> Option<Self> {
        if message.len() > limits::DNS_QUERY_BYTES_MAX {
            return None;
        }
        let flags = *message.get(2)?;
        let plain = flags & (ANSWER | OPCODE | TRUNCATED) == 0;
        let counts = message.get(4..HEADER_LEN)?;
        // One question, no answers, no authorities; additional records carry EDNS and signatures.
        if !plain || counts[..6] != [0, 1, 0, 0, 0, 0] {
            return None;
        }
        Some(Self {
            question_end: question_end(message)?,
            message: message.to_vec(),
        })
    }

    /// The query under another id.
    pub(super) fn with_id(&self, id: [u8; 2]) -> Vec<u8> {
        let mut message = self.message.clone();
        message[..2].copy_from_slice(&id);
        message
    }

    /// Takes a resolver's message if it answers this query as sent under `id`, and gives it the guest's
    /// id back.
    pub(super) fn match_answer(&self, id: [u8; 2], mut answer: Vec<u8>) -> Option<Vec<u8>> {
        let is_answer = answer.get(2)? & (ANSWER | OPCODE) == ANSWER;
        let matches = is_answer
            && answer.get(..2)? == id
            && answer.get(4..6)? == [0, 1]
            && question_end(&answer)? == self.question_end
            && self.asks_the_same(&answer);
        if !matches {
            return None;
        }
        answer[..2].copy_from_slice(&self.message[..2]);
        Some(answer)
    }

    /// The answer that says that no resolver answered.
    pub(super) fn server_failure(&self) -> Vec<u8> {
        let mut answer = self.message[..self.question_end].to_vec();
        answer[2] = ANSWER | (self.message[2] & RECURSION_DESIRED);
        answer[3] = RECURSION_AVAILABLE | SERVER_FAILURE;
        // The additional records are gone.
        answer[10..HEADER_LEN].fill(0);
        answer
    }

    /// Whether a message that parses alike has the same question. Some resolvers answer in lower case;
    /// the lengths within a name are no letters, so only letters lose their case here.
    fn asks_the_same(&self, answer: &[u8]) -> bool {
        let name = HEADER_LEN..self.question_end - TYPE_AND_CLASS_LEN;
        let kind = name.end..self.question_end;
        answer[kind.clone()] == self.message[kind]
            && answer[name.clone()].eq_ignore_ascii_case(&self.message[name])
    }
}

/// Where the first question ends; none when it is malformed. A name in a question is never compressed.
fn question_end(message: &[u8]) -> Option<usize> {
    let mut at = HEADER_LEN;
    loop {
        let label_len = usize::from(*message.get(at)?);
        if label_len > LABEL_LEN_MAX {
            return None;
        }
        at += 1 + label_len;
        if at - HEADER_LEN > NAME_LEN_MAX {
            return None;
        }
        if label_len == 0 {
            break;
        }
    }
    let end = at + TYPE_AND_CLASS_LEN;
    (end <= message.len()).then_some(end)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A query for the address of `Example.org`, with an EDNS record after it.
    const QUERY: &[u8] = b"\x12\x34\x01\0\0\x01\0\0\0\0\0\x01\
        \x07Example\x03org\0\0\x01\0\x01\
        \0\0\x29\x04\xd0\0\0\0\0\0\0";
    const QUESTION_END: usize = 29;

    fn answer(change: impl FnOnce(&mut Vec<u8>)) -> Vec<u8> {
        let mut message = QUERY[..QUESTION_END].to_vec();
        message[..3].copy_from_slice(b"\xab\xcd\x81");
        message[7] = 1;
        message.extend(b"\xc0\x0c\0\x01\0\x01\0\0\0\x3c\0\x04\xcb\0\x71\x07");
        change(&mut message);
        message
    }

    fn matches(answer: Vec<u8>) -> bool {
        let query = Query::parse(QUERY).unwrap();
        query.match_answer([0xab, 0xcd], answer).is_some()
    }

    #[test]
    fn a_query_changes_its_id_and_nothing_else() {
        let query = Query::parse(QUERY).unwrap();
        let sent = query.with_id([0xab, 0xcd]);
        assert_eq!(sent[..2], [0xab, 0xcd]);
        assert_eq!(sent[2..], QUERY[2..]);
    }

    #[test]
    fn an_answer_gets_the_guests_id_back() {
        let query = Query::parse(QUERY).unwrap();
        let answer = answer(|_| {});
        let passed = query.match_answer([0xab, 0xcd], answer.clone()).unwrap();
        assert_eq!(passed[..2], QUERY[..2]);
        assert_eq!(passed[2..], answer[2..]);
    }

    #[test]
    fn only_the_answer_to_the_question_matches() {
        assert!(matches(answer(|m| m[13..20].make_ascii_lowercase())));
        assert!(!matches(answer(|m| m[0] ^= 1)), "another id");
        assert!(!matches(answer(|m| m[2] = 0x01)), "a query");
        assert!(!matches(answer(|m| m[5] = 2)), "two questions");
        assert!(!matches(answer(|m| m[13] = b'X')), "another name");
        assert!(!matches(answer(|m| m[26] = 28)), "another type");
        assert!(!matches(answer(|m| m[26] = b'a')), "another type, again");
        assert!(!matches(answer(|m| m[28] = 3)), "another class");
        assert!(
            !matches(answer(|m| m.truncate(QUESTION_END - 1))),
            "cut off"
        );
    }

    #[test]
    fn what_is_no_plain_query_is_refused() {
        let refused = |at: usize, byte: u8| {
            let mut message = QUERY.to_vec();
            message[at] = byte;
            Query::parse(&message).is_none()
        };
        assert!(refused(2, 0x81), "an answer");
        assert!(refused(2, 0x29), "an update");
        assert!(refused(2, 0x03), "a truncated query");
        assert!(refused(5, 0), "no question");
        assert!(refused(5, 2), "two questions");
        assert!(refused(7, 1), "an answer record");
        assert!(refused(9, 1), "an authority record");
        assert!(refused(12, 0xc0), "a compressed name");
        assert!(refused(12, 63), "a label beyond the end");
        assert!(Query::parse(&QUERY[..QUESTION_END - 1]).is_none());
        assert!(Query::parse(&[]).is_none());
        let mut long = QUERY.to_vec();
        long.resize(limits::DNS_QUERY_BYTES_MAX + 1, 0);
        assert!(Query::parse(&long).is_none());
    }

    #[test]
    fn a_name_has_a_greatest_length() {
        let query = |last: u8| {
            let mut message = QUERY[..HEADER_LEN].to_vec();
            for len in [63, 63, 63, last] {
                message.push(len);
                message.extend(std::iter::repeat_n(b'a', len.into()));
            }
            message.extend(b"\0\0\x01\0\x01");
            Query::parse(&message)
        };
        assert!(query(61).is_some());
        assert!(query(62).is_none());
    }

    #[test]
    fn server_failure_repeats_the_question() {
        let failure = Query::parse(QUERY).unwrap().server_failure();
        assert_eq!(
            failure[..HEADER_LEN],
            *b"\x12\x34\x81\x82\0\x01\0\0\0\0\0\0"
        );
        assert_eq!(failure[HEADER_LEN..], QUERY[HEADER_LEN..QUESTION_END]);
    }

    /// Bytes that look like a message more often than chance would have it.
    fn messages() -> impl Strategy<Value = Vec<u8>> {
        let mutated =
            proptest::collection::vec((0..QUERY.len(), any::<u8>()), 0..6).prop_map(|changes| {
                let mut message = QUERY.to_vec();
                changes
                    .into_iter()
                    .for_each(|(at, byte)| message[at] = byte);
                message
            });
        prop_oneof![proptest::collection::vec(any::<u8>(), 0..600), mutated]
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(query in messages(), answer in messages(), id in any::<[u8; 2]>()) {
            if let Some(query) = Query::parse(&query) {
                let failure = query.server_failure();
                prop_assert!(query.match_answer([failure[0], failure[1]], failure.clone()).is_some());
                prop_assert!(Query::parse(&query.with_id(id)).is_some());
                if let Some(passed) = query.match_answer(id, answer) {
                    prop_assert_eq!(&passed[..2], &query.message[..2]);
                }
            }
        }
    }
}
