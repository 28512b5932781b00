//! QEMU as a fuzzer has it speak: lines of any kind, cut up in any way.

use super::{QUEUE, Seen, read_line, take};
use crate::fuzzing::assert_brief;
use futures_util::FutureExt;
use serde_json::Value;
use std::collections::HashMap;
use std::io::ErrorKind;
use tokio::io::BufReader;
use tokio::sync::{oneshot, watch};

/// What came of a conversation.
#[derive(Debug, PartialEq)]
struct Heard {
    /// Of each command that was under way; none for one that was never answered.
    answers: Vec<Option<Result<Value, String>>>,
    seen: Seen,
    end: ErrorKind,
}

/// Takes `data` as all that QEMU says while as many commands as may be are under way. Its first byte tells how many
/// bytes come at once.
pub(crate) fn check(data: &[u8]) {
    let Some((piece, said)) = data.split_first() else {
        return;
    };
    let heard = listen(said, said.len().max(1));
    let in_pieces = listen(said, usize::from(*piece).max(1));
    assert_eq!(in_pieces, heard, "what is heard depends on how it comes");
    assert!(
        matches!(heard.end, ErrorKind::InvalidData | ErrorKind::UnexpectedEof),
        "no end but that of sense or of the connection: {:?}",
        heard.end
    );
    for words in heard.answers.into_iter().flatten().filter_map(Result::err) {
        assert_brief(&words);
    }
    assert_brief(&heard.seen.shutdown.unwrap_or_default());
}

fn listen(said: &[u8], at_once: usize) -> Heard {
    let mut reader = BufReader::with_capacity(at_once, said);
    let (mut owed, mut answers) = (HashMap::new(), Vec::new());
    for id in 1..=QUEUE as u64 {
        let (answer, answered) = oneshot::channel();
        owed.insert(id, answer);
        answers.push(answered);
    }
    let seen = watch::Sender::new(Seen::default());
    let end = loop {
        let line = read_line(&mut reader).now_or_never();
        match line.expect("all is there to be read") {
            Ok(line) => hear(line, &mut owed, &seen),
            Err(error) => break error.kind(),
        }
    };
    Heard {
        answers: answers
            .iter_mut()
            .map(|answer| answer.try_recv().ok())
            .collect(),
        seen: seen.borrow().clone(),
        end,
    }
}

fn hear(
    line: super::Line,
    owed: &mut HashMap<u64, oneshot::Sender<Result<Value, String>>>,
    seen: &watch::Sender<Seen>,
) {
    let (before, ended) = (owed.len(), seen.borrow().shutdown.is_some());
    take(line, owed, seen);
    assert!(before - owed.len() <= 1, "a line answers one command");
    assert!(
        seen.borrow().shutdown.is_some() >= ended,
        "an end is forgotten"
    );
}
