//! A stream to an app that goes no faster than its MicroVM's bandwidth.
//!
//! All streams of a MicroVM, both directions of each, take from one bucket. A stream moves a piece,
//! and moves the next when all that had been taken up to and with its own piece is earned: so streams
//! take turns, and each gets its share. Without a limit there is no bucket, and no timer.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep, sleep_until};

use crate::Stream;
use crate::traffic::Vm;

/// Counts and paces what crosses `stream`.
pub(crate) struct Paced<S> {
    stream: S,
    vm: Arc<Vm>,
    reading: Pause,
    writing: Pause,
}

impl<S: Stream> Paced<S> {
    pub(crate) fn new(stream: S, vm: Arc<Vm>) -> Self {
        // A new stream queues behind those that are there: else one short stream after the other
        // would each move its first piece for nothing.
        let due = vm.bandwidth_due();
        Self {
            stream,
            vm,
            reading: Pause {
                until: due,
                sleep: None,
            },
            writing: Pause {
                until: due,
                sleep: None,
            },
        }
    }
}

/// When one direction may go on.
struct Pause {
    until: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Pause {
    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Some(until) = self.until else {
            return Poll::Ready(());
        };
        if until > Instant::now() {
            let sleep = self
                .sleep
                .get_or_insert_with(|| Box::pin(sleep_until(until)));
            if sleep.deadline() != until {
                sleep.as_mut().reset(until);
            }
            ready!(sleep.as_mut().poll(context));
        }
        self.until = None;
        Poll::Ready(())
    }
}

impl<S: Stream> AsyncRead for Paced<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        ready!(this.reading.poll(context));
        let before = buffer.filled().len();
        let polled = match this.vm.piece() {
            Some(piece) if piece < buffer.remaining() => {
                let mut part = ReadBuf::new(buffer.initialize_unfilled_to(piece));
                let polled = Pin::new(&mut this.stream).poll_read(context, &mut part);
                let length = part.filled().len();
                buffer.advance(length);
                polled
            }
            _ => Pin::new(&mut this.stream).poll_read(context, buffer),
        };
        let length = buffer.filled().len() - before;
        if length > 0 {
            this.reading.until = this.vm.gave(length);
        }
        polled
    }
}

impl<S: Stream> AsyncWrite for Paced<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.writing.poll(context));
        let piece = this.vm.piece().unwrap_or(usize::MAX).min(bytes.len());
        let length = ready!(Pin::new(&mut this.stream).poll_write(context, &bytes[..piece]))?;
        this.writing.until = this.vm.took(length);
        Poll::Ready(Ok(length))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        ready!(this.writing.poll(context));
        let stream = Pin::new(&mut this.stream);
        let length = match this.vm.piece() {
            Some(piece) => {
                let first = slices.iter().find(|slice| !slice.is_empty());
                let slice: &[u8] = first.map_or(&[], |slice| slice);
                ready!(stream.poll_write(context, &slice[..piece.min(slice.len())]))?
            }
            None => ready!(stream.poll_write_vectored(context, slices))?,
        };
        this.writing.until = this.vm.took(length);
        Poll::Ready(Ok(length))
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::VmLimits;
    use dormouse_core::limits;
    use std::num::NonZeroU64;
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};

    const MB: usize = 1_000_000;

    fn vm(bytes_per_second: usize) -> Arc<Vm> {
        Vm::with_limits(VmLimits {
            bytes_per_second: NonZeroU64::new(bytes_per_second as u64),
            ..VmLimits::default()
        })
    }

    /// A paced stream, and an app that takes all and gives `length` bytes.
    fn open(vm: &Arc<Vm>, length: usize) -> Paced<DuplexStream> {
        let (near, mut far) = duplex(1 << 20);
        tokio::spawn(async move {
            let gift = vec![7; length];
            let (mut reader, mut writer) = tokio::io::split(&mut far);
            let mut sink = tokio::io::sink();
            let gives = async { writer.write_all(&gift).await };
            let takes = tokio::io::copy(&mut reader, &mut sink);
            let _ = tokio::join!(gives, takes);
        });
        Paced::new(near, Arc::clone(vm))
    }

    async fn timed(work: impl Future<Output = ()>) -> f64 {
        let begun = Instant::now();
        work.await;
        begun.elapsed().as_secs_f64()
    }

    async fn read(mut stream: Paced<DuplexStream>, length: usize) {
        let mut bytes = vec![0; length];
        stream.read_exact(&mut bytes).await.expect("read");
        assert!(bytes.iter().all(|byte| *byte == 7));
    }

    #[tokio::test(start_paused = true)]
    async fn two_megabytes_at_one_a_second_take_two_seconds_less_the_burst() {
        let vm = vm(MB);
        let reading = timed(read(open(&vm, 2 * MB), 2 * MB)).await;
        assert!((1.65..1.85).contains(&reading), "{reading}");
        let mut stream = open(&vm, 0);
        let writing =
            timed(async { stream.write_all(&vec![1; 2 * MB]).await.expect("write") }).await;
        assert!((1.85..2.05).contains(&writing), "{writing}");
        let slices = [0; 64].map(|_| io::IoSlice::new(&[2; 32 << 10]));
        let vectored = timed(async {
            let mut left = 2 * MB;
            while left > 0 {
                let length = stream.write_vectored(&slices).await.expect("write");
                left = left.saturating_sub(length);
            }
        });
        let vectored = vectored.await;
        assert!((1.85..2.05).contains(&vectored), "{vectored}");
        assert_eq!(vm.counters.bytes_out.get(), 2 * MB as u64);
    }

    #[tokio::test(start_paused = true)]
    async fn streams_of_one_microvm_share_its_bandwidth_alike() {
        let vm = vm(MB);
        let streams = [MB, MB].map(|length| timed(read(open(&vm, length), length)));
        let [one, two] = streams;
        let (one, two) = tokio::join!(one, two);
        assert!((1.65..1.85).contains(&one.max(two)), "{one} {two}");
        // Whoever comes first has the burst.
        let burst = limits::BANDWIDTH_BURST.as_secs_f64();
        assert!((one - two).abs() < burst + 0.1, "{one} {two}");
    }

    #[tokio::test(start_paused = true)]
    async fn many_short_streams_are_no_way_around_it() {
        let vm = vm(MB);
        let short = timed(async {
            for _ in 0..200 {
                read(open(&vm, 10_000), 10_000).await;
            }
        });
        let short = short.await;
        assert!((1.65..1.85).contains(&short), "{short}");
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_limit_nothing_waits() {
        let vm = Vm::with_limits(VmLimits::default());
        let took = timed(read(open(&vm, 64 * MB), 64 * MB)).await;
        assert!(took < 0.001, "{took}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_silent_stream_gathers_no_more_than_the_burst() {
        let vm = vm(MB);
        let stream = open(&vm, MB);
        tokio::time::sleep(Duration::from_secs(3600)).await;
        let took = timed(read(stream, MB)).await;
        assert!((0.65..0.85).contains(&took), "{took}");
    }
}
