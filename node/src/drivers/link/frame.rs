//! Frames: u32 length, big endian, then that many bytes. The decoder is pure; it allocates nothing for a
//! length before the bytes are there.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::{Buf, Bytes, BytesMut};
use quinn::VarInt;
use weft_cluster::ids::NodeId;

use super::{Inner, Lane, LinkError, Parts};

/// Bytes of a frame's length.
const LENGTH_BYTES: usize = 4;
/// Chunks read from quinn at a time.
const CHUNKS: usize = 64;
/// The code of a stream that was given up by its sender.
pub(super) const RESET_DROPPED: VarInt = VarInt::from_u32(1);
/// The code of a stream that broke the rules.
pub(super) const RESET_BROKEN: VarInt = VarInt::from_u32(2);

/// A length over the limit.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Oversized(pub(super) usize);

/// Cuts a run of chunks into frames.
pub(super) struct Decoder {
    frame_bytes_max: usize,
    chunks: VecDeque<Bytes>,
    bytes: usize,
}

impl Decoder {
    pub(super) fn new(frame_bytes_max: usize) -> Self {
        Decoder { frame_bytes_max, chunks: VecDeque::new(), bytes: 0 }
    }

    pub(super) fn push(&mut self, chunk: Bytes) {
        if !chunk.is_empty() {
            self.bytes += chunk.len();
            self.chunks.push_back(chunk);
        }
    }

    /// Whether a frame has begun and not ended.
    pub(super) fn midway(&self) -> bool {
        self.bytes > 0
    }

    /// The next whole frame, if it is there. A frame inside one chunk is not copied.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, Oversized> {
        if self.bytes < LENGTH_BYTES {
            return Ok(None);
        }
        let mut length = [0; LENGTH_BYTES];
        for (place, byte) in length.iter_mut().zip(self.chunks.iter().flat_map(|chunk| chunk.iter())) {
            *place = *byte;
        }
        let length = u32::from_be_bytes(length) as usize;
        if length > self.frame_bytes_max {
            return Err(Oversized(length));
        }
        if self.bytes < LENGTH_BYTES + length {
            return Ok(None);
        }
        self.skip(LENGTH_BYTES);
        Ok(Some(self.take(length)))
    }

    fn skip(&mut self, mut bytes: usize) {
        self.bytes -= bytes;
        while let Some(front) = self.chunks.front_mut().filter(|_| bytes > 0) {
            let here = bytes.min(front.len());
            front.advance(here);
            bytes -= here;
            if front.is_empty() {
                self.chunks.pop_front();
            }
        }
    }

    fn take(&mut self, bytes: usize) -> Bytes {
        if let Some(front) = self.chunks.front_mut().filter(|front| front.len() >= bytes) {
            let frame = front.split_to(bytes);
            if front.is_empty() {
                self.chunks.pop_front();
            }
            self.bytes -= bytes;
            return frame;
        }
        let mut frame = BytesMut::with_capacity(bytes);
        while frame.len() < bytes {
            let front = self.chunks.front_mut().expect("the bytes were counted");
            let here = front.split_to(front.len().min(bytes - frame.len()));
            if front.is_empty() {
                self.chunks.pop_front();
            }
            frame.extend_from_slice(&here);
        }
        self.bytes -= bytes;
        frame.freeze()
    }
}

/// Why a stream gave no further frame.
pub(super) enum Broken {
    /// The peer or the link is gone, or the peer gave the stream up.
    Lost,
    /// The peer broke the rules.
    Rules(String),
}

/// Reads frames from a QUIC stream.
pub(super) struct FrameReader {
    stream: quinn::RecvStream,
    decoder: Decoder,
}

impl FrameReader {
    pub(super) fn new(stream: quinn::RecvStream, frame_bytes_max: usize) -> Self {
        FrameReader { stream, decoder: Decoder::new(frame_bytes_max) }
    }

    /// The next frame; `None` at the end in order. Cancel-safe: what was read stays in the decoder.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, Broken> {
        loop {
            match self.decoder.next() {
                Ok(Some(frame)) => return Ok(Some(frame)),
                Ok(None) => {}
                Err(Oversized(bytes)) => {
                    let _ = self.stream.stop(RESET_BROKEN);
                    let bytes_max = self.decoder.frame_bytes_max;
                    return Err(Broken::Rules(format!("a frame of {bytes} bytes is over the limit of {bytes_max}")));
                }
            }
            let mut chunks = [const { Bytes::new() }; CHUNKS];
            match self.stream.read_chunks(&mut chunks).await {
                Ok(Some(count)) => chunks.into_iter().take(count).for_each(|chunk| self.decoder.push(chunk)),
                Ok(None) if self.decoder.midway() => return Err(Broken::Rules("it ended within a frame".into())),
                Ok(None) => return Ok(None),
                Err(_) => return Err(Broken::Lost),
            }
        }
    }
}

/// Sends frames on a stream of its own.
///
/// Dropped without `finish`, it resets the stream: the peer's `next` answers `Lost` and not `None`.
pub struct FrameSender {
    pub(super) to: NodeId,
    pub(super) frame_bytes_max: usize,
    pub(super) stream: quinn::SendStream,
    pub(super) finished: bool,
    // Keeps a retired link open while the stream lives.
    pub(super) _activity: Arc<()>,
}

impl FrameSender {
    /// Sends one frame; waits for the peer's flow control.
    ///
    /// # Errors
    /// `TooLarge`: nothing was sent. `Lost`: the peer is gone or does not want more.
    pub async fn send(&mut self, parts: Parts) -> Result<(), LinkError> {
        let bytes: usize = parts.iter().map(Bytes::len).sum();
        if bytes > self.frame_bytes_max {
            return Err(LinkError::TooLarge { bytes, bytes_max: self.frame_bytes_max });
        }
        let length = u32::try_from(bytes).expect("limits of frames are below 4 GiB");
        let mut chunks = Vec::with_capacity(parts.len() + 1);
        chunks.push(Bytes::copy_from_slice(&length.to_be_bytes()));
        chunks.extend(parts);
        self.stream.write_all_chunks(&mut chunks).await.map_err(|_| LinkError::Lost(self.to))
    }

    /// Ends the stream in order: the peer's `next` answers `None`.
    pub fn finish(&mut self) {
        self.finished = true;
        let _ = self.stream.finish();
    }
}

impl Drop for FrameSender {
    fn drop(&mut self) {
        if !self.finished {
            let _ = self.stream.reset(RESET_DROPPED);
        }
    }
}

/// Receives frames from a stream of its own.
pub struct FrameReceiver {
    pub(super) from: NodeId,
    pub(super) lane: Lane,
    pub(super) reader: FrameReader,
    pub(super) inner: Arc<Inner>,
    pub(super) _activity: Arc<()>,
}

impl FrameReceiver {
    /// The next frame; `None` at the end in order. Cancel-safe.
    ///
    /// # Errors
    /// `Lost`: the link or the stream is gone, or the peer broke the rules (logged and counted).
    pub async fn next(&mut self) -> Result<Option<Bytes>, LinkError> {
        match self.reader.next().await {
            Ok(frame) => Ok(frame),
            Err(Broken::Lost) => Err(LinkError::Lost(self.from)),
            Err(Broken::Rules(reason)) => {
                self.inner.broken_stream(self.from, self.lane, &reason);
                Err(LinkError::Lost(self.from))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn encode(frames: &[Vec<u8>]) -> Vec<u8> {
        frames.iter().flat_map(|frame| [&(frame.len() as u32).to_be_bytes()[..], frame].concat()).collect()
    }

    proptest! {
        #[test]
        fn frames_survive_any_cut(
            frames in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..50), 0..8),
            cuts in prop::collection::vec(1usize..30, 1..200),
        ) {
            let bytes = Bytes::from(encode(&frames));
            let (mut decoder, mut found, mut at) = (Decoder::new(50), Vec::new(), 0);
            for cut in cuts.iter().cycle() {
                if at == bytes.len() { break; }
                let end = (at + cut).min(bytes.len());
                decoder.push(bytes.slice(at..end));
                at = end;
                while let Some(frame) = decoder.next().expect("within the limit") { found.push(frame.to_vec()); }
            }
            prop_assert_eq!(found, frames);
            prop_assert!(!decoder.midway());
        }

        #[test]
        fn garbage_never_panics(chunks in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..40), 0..40)) {
            let mut decoder = Decoder::new(1_000);
            for chunk in chunks {
                decoder.push(chunk.into());
                while let Ok(Some(frame)) = decoder.next() { prop_assert!(frame.len() <= 1_000); }
            }
        }
    }

    #[test]
    fn an_oversized_length_is_refused_before_its_bytes() {
        let mut decoder = Decoder::new(10);
        decoder.push(Bytes::from_static(&[0, 0, 0, 11]));
        assert_eq!(decoder.next(), Err(Oversized(11)));
    }

    #[test]
    fn a_frame_in_one_chunk_is_not_copied() {
        let chunk = Bytes::from(encode(&[vec![7; 9]]));
        let mut decoder = Decoder::new(10);
        decoder.push(chunk.clone());
        let frame = decoder.next().expect("within the limit").expect("whole");
        assert_eq!(frame.as_ptr(), chunk[4..].as_ptr());
    }
}
