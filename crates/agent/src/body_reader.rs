//! A request's body as a blocking reader, for code that cannot wait in any other way.

use bytes::{Buf, Bytes};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use std::io::{self, Read};
use std::time::Duration;
use tokio::sync::mpsc;

/// Pieces of the body that wait for the reader; a full queue holds the sender up.
const PIECES_QUEUED: usize = 8;
/// The host must send the next piece within this.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

enum Piece {
    Data(Bytes),
    End,
    Broken(io::Error),
}

/// The end that the blocking code reads.
#[derive(Debug)]
pub(crate) struct BodyReader {
    pieces: mpsc::Receiver<Piece>,
    current: Bytes,
    ended: bool,
}

/// The end that is fed from the network.
#[derive(Debug)]
pub(crate) struct Feeder(mpsc::Sender<Piece>);

/// A reader and what feeds it.
pub(crate) fn channel() -> (Feeder, BodyReader) {
    let (sender, pieces) = mpsc::channel(PIECES_QUEUED);
    let reader = BodyReader {
        pieces,
        current: Bytes::new(),
        ended: false,
    };
    (Feeder(sender), reader)
}

impl Feeder {
    /// Passes the body on until it ends or breaks.
    ///
    /// When the reader is dropped the rest is read for nothing: a host that is still sending would
    /// find its connection reset and never see why.
    pub(crate) async fn feed(self, mut body: Incoming) {
        loop {
            let piece = match tokio::time::timeout(IDLE_TIMEOUT, body.frame()).await {
                Ok(Some(Ok(frame))) => match frame.into_data() {
                    Ok(data) => Piece::Data(data),
                    Err(_trailers) => continue,
                },
                // A body that was cut off is an error above, whatever its framing; and a host that
                // hung up waits for no answer.
                Ok(None) => Piece::End,
                Ok(Some(Err(error))) => Piece::Broken(io::Error::other(error)),
                Err(_elapsed) => Piece::Broken(io::ErrorKind::TimedOut.into()),
            };
            let is_last = !matches!(piece, Piece::Data(_));
            // A dropped reader has failed already, and says so itself.
            let _ = self.0.send(piece).await;
            if is_last {
                return;
            }
        }
    }
}

impl Read for BodyReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(Piece::Data(data)) => self.current = data,
                Some(Piece::End) => self.ended = true,
                Some(Piece::Broken(error)) => return Err(error),
                // The feeder was dropped in the middle: the host hung up.
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let len = out.len().min(self.current.len());
        self.current.copy_to_slice(&mut out[..len]);
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_join_and_the_end_stays_the_end() {
        let (feeder, mut reader) = channel();
        for piece in [
            Piece::Data(Bytes::from_static(b"abc")),
            Piece::Data(Bytes::new()),
            Piece::Data(Bytes::from_static(b"de")),
            Piece::End,
        ] {
            feeder.0.try_send(piece).expect("room");
        }
        let mut text = String::new();
        reader.read_to_string(&mut text).expect("whole");
        assert_eq!(text, "abcde");
        assert_eq!(reader.read(&mut [0; 4]).expect("ended"), 0);
    }

    #[test]
    fn a_body_that_stops_short_is_an_error() {
        let (feeder, mut reader) = channel();
        feeder
            .0
            .try_send(Piece::Data(Bytes::from_static(b"abc")))
            .expect("room");
        drop(feeder);
        let error = reader.read_to_end(&mut Vec::new()).expect_err("cut off");
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    }
}
