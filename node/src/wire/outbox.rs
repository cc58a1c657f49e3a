//! What goes out on a connection: gathered while its owner drives it, so that many frames leave in one write.
//!
//! The h2 crate writes each DATA frame of 256 bytes and more by itself, and what follows it, trailers too, in another
//! write.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::traffic::Pulse;
use crate::host::Io;

/// Bytes that are gathered: more go out at once, and what comes to more by itself is not copied.
pub const GATHERED_BYTES_MAX: usize = 16 << 10;

/// The outgoing side of a connection. Cheap to clone.
#[derive(Clone)]
pub struct Outbox {
    wire: Arc<Mutex<Wire>>,
}

struct Wire {
    io: Box<dyn Io>,
    pulse: Arc<Pulse>,
    waiting: BytesMut,
    gathers: bool,
    /// Something was written that has not been flushed: over TLS it may wait below.
    owes_flush: bool,
    /// It failed while nobody looked.
    broken: Option<io::Error>,
}

impl Outbox {
    pub(super) fn new(io: Box<dyn Io>, pulse: Arc<Pulse>) -> Outbox {
        let wire = Wire { io, pulse, waiting: BytesMut::new(), gathers: false, owes_flush: false, broken: None };
        Outbox { wire: Arc::new(Mutex::new(wire)) }
    }

    /// What is written from now on waits for `send`.
    pub fn gather(&self) {
        self.lock().gathers = true;
    }

    /// Sends what has been gathered, as far as the system takes it; the rest goes out when the connection is driven again.
    /// Whoever writes next is told what went wrong.
    pub fn send(&self, cx: &mut Context<'_>) {
        let mut wire = self.lock();
        wire.gathers = false;
        if !wire.owes_flush {
            return;
        }
        if let Poll::Ready(Err(error)) = wire.flush(cx) {
            wire.broken = Some(error);
            cx.waker().wake_by_ref();
        }
    }

    pub(super) fn poll_read(&self, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.lock().io).poll_read(cx, buffer)
    }

    pub(super) fn poll_write(&self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.lock().write(cx, parts)
    }

    pub(super) fn poll_flush(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut wire = self.lock();
        wire.check()?;
        if wire.gathers { Poll::Ready(Ok(())) } else { wire.flush(cx) }
    }

    pub(super) fn poll_shutdown(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut wire = self.lock();
        wire.check()?;
        ready!(wire.send(cx))?;
        Pin::new(&mut wire.io).poll_shutdown(cx)
    }

    pub(super) fn is_write_vectored(&self) -> bool {
        self.lock().io.is_write_vectored()
    }

    fn lock(&self) -> MutexGuard<'_, Wire> {
        self.wire.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Wire {
    fn write(&mut self, cx: &mut Context<'_>, parts: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        self.check()?;
        self.owes_flush = true;
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        if self.gathers && self.waiting.len() + bytes <= GATHERED_BYTES_MAX {
            parts.iter().for_each(|part| self.waiting.extend_from_slice(part));
            return Poll::Ready(Ok(bytes));
        }
        while !self.waiting.is_empty() {
            let before = self.waiting.len();
            let all: Vec<IoSlice<'_>> =
                std::iter::once(IoSlice::new(&self.waiting)).chain(parts.iter().copied()).collect();
            let written = ready!(self.pulse.counted(Pin::new(&mut self.io).poll_write_vectored(cx, &all)))?;
            self.waiting.advance(written.min(before));
            if written > before || written == 0 {
                return Poll::Ready(Ok(written.saturating_sub(before)));
            }
        }
        self.pulse.counted(Pin::new(&mut self.io).poll_write_vectored(cx, parts))
    }

    /// Writes what waits.
    fn send(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.waiting.is_empty() {
            let written = ready!(self.pulse.counted(Pin::new(&mut self.io).poll_write(cx, &self.waiting)))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.waiting.advance(written);
        }
        Poll::Ready(Ok(()))
    }

    fn flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.send(cx))?;
        ready!(Pin::new(&mut self.io).poll_flush(cx))?;
        self.owes_flush = false;
        Poll::Ready(Ok(()))
    }

    fn check(&mut self) -> io::Result<()> {
        self.broken.take().map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Takes so many bytes with each write, and counts the writes; after `broken` of them there is an error.
    struct Socket {
        taken: Arc<Mutex<Vec<u8>>>,
        writes: Arc<AtomicUsize>,
        flushes: Arc<AtomicUsize>,
        at_once: usize,
        broken: usize,
    }

    impl AsyncRead for Socket {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Socket {
        fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
            self.poll_write_vectored(cx, &[IoSlice::new(data)])
        }
        fn poll_write_vectored(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
            parts: &[IoSlice<'_>],
        ) -> Poll<io::Result<usize>> {
            if self.writes.fetch_add(1, Ordering::Relaxed) >= self.broken {
                return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
            }
            let all: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).take(self.at_once).collect();
            self.taken.lock().expect("no panic").extend_from_slice(&all);
            Poll::Ready(Ok(all.len()))
        }
        fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.flushes.fetch_add(1, Ordering::Relaxed);
            Poll::Ready(Ok(()))
        }
        fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            Poll::Ready(Ok(()))
        }
    }

    struct World {
        outbox: Outbox,
        pulse: Arc<Pulse>,
        taken: Arc<Mutex<Vec<u8>>>,
        writes: Arc<AtomicUsize>,
        flushes: Arc<AtomicUsize>,
    }

    fn world(at_once: usize, broken: usize) -> World {
        let (taken, writes, pulse) = (Arc::default(), Arc::default(), Arc::new(Pulse::default()));
        let flushes: Arc<AtomicUsize> = Arc::default();
        let (its_taken, its_writes, its_flushes) = (Arc::clone(&taken), Arc::clone(&writes), flushes.clone());
        let socket = Socket { taken: its_taken, writes: its_writes, flushes: its_flushes, at_once, broken };
        World { outbox: Outbox::new(Box::new(socket), pulse.clone()), pulse, taken, writes, flushes }
    }

    impl World {
        /// Writes all of it, in two parts, and flushes.
        async fn write(&self, data: &[u8]) -> io::Result<()> {
            let mut rest = data;
            while !rest.is_empty() {
                let (head, tail) = rest.split_at(rest.len() / 2);
                let parts = [IoSlice::new(head), IoSlice::new(tail)];
                let written = poll_fn(|cx| self.outbox.poll_write(cx, &parts)).await?;
                rest = &rest[written..];
            }
            poll_fn(|cx| self.outbox.poll_flush(cx)).await
        }

        async fn send(&self) {
            poll_fn(|cx| {
                self.outbox.send(cx);
                Poll::Ready(())
            })
            .await;
        }
    }

    #[tokio::test]
    async fn what_is_gathered_leaves_in_one_write() {
        let world = world(usize::MAX, usize::MAX);
        world.write(b"at once, ").await.expect("taken");
        assert_eq!(world.writes.load(Ordering::Relaxed), 1);
        world.outbox.gather();
        for part in ["one, ", "two, ", "three"] {
            world.write(part.as_bytes()).await.expect("taken");
        }
        assert_eq!((world.writes.load(Ordering::Relaxed), world.pulse.written_bytes()), (1, 9), "nothing has left");
        world.send().await;
        world.send().await;
        assert_eq!((world.writes.load(Ordering::Relaxed), world.pulse.written_bytes()), (2, 24));
        assert_eq!(&world.taken.lock().expect("no panic")[..], b"at once, one, two, three");
    }

    #[tokio::test]
    async fn much_is_not_kept_and_the_order_stays() {
        for at_once in [1, 1_000, 40_000, usize::MAX] {
            let world = world(at_once, usize::MAX);
            let data: Vec<u8> = (0..100_000u32).map(|at| at as u8).collect();
            world.outbox.gather();
            for part in
                [&data[..100], &data[100..60_000], &data[60_000..60_001], &data[60_001..99_000], &data[99_000..]]
            {
                world.write(part).await.expect("taken");
                assert!(world.outbox.lock().waiting.len() <= GATHERED_BYTES_MAX);
            }
            assert_eq!(world.flushes.load(Ordering::Relaxed), 0);
            world.send().await;
            assert_eq!(world.flushes.load(Ordering::Relaxed), 1, "what went out directly, too");
            assert!(*world.taken.lock().expect("no panic") == data, "{at_once} at once");
        }
    }

    #[tokio::test]
    async fn a_failure_is_told_to_who_writes_next() {
        let world = world(usize::MAX, 1);
        world.outbox.gather();
        world.write(b"one").await.expect("taken");
        world.send().await;
        world.outbox.gather();
        world.write(b"two").await.expect("gathered");
        world.send().await;
        let error = world.write(b"three").await.expect_err("it is broken");
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }
}
