//! Reads the heads of the HTTP/2 frames that pass by, to count what the h2 crate does not tell.

/// Length, type, flags, stream. Source: RFC 9113 §4.1.
const HEAD_BYTES: usize = 9;
/// The type of a RST_STREAM frame.
const RST_STREAM: u8 = 3;

/// Where it is in the stream of frames. It begins after the client's preface.
#[derive(Debug, Default)]
pub(super) struct Frames {
    head: [u8; HEAD_BYTES],
    /// Bytes of `head` that are there.
    read: usize,
    /// Bytes of the payload that are to come.
    payload: usize,
}

impl Frames {
    /// The RST_STREAM frames whose heads end in `bytes`, which come next.
    pub(super) fn resets(&mut self, mut bytes: &[u8]) -> u64 {
        let mut resets = 0;
        while !bytes.is_empty() {
            if self.payload > 0 {
                let skipped = self.payload.min(bytes.len());
                self.payload -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            let taken = (HEAD_BYTES - self.read).min(bytes.len());
            self.head[self.read..self.read + taken].copy_from_slice(&bytes[..taken]);
            self.read += taken;
            bytes = &bytes[taken..];
            if self.read == HEAD_BYTES {
                self.read = 0;
                self.payload = u32::from_be_bytes([0, self.head[0], self.head[1], self.head[2]]) as usize;
                resets += u64::from(self.head[3] == RST_STREAM);
            }
        }
        resets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(kind: u8, payload: &[u8]) -> Vec<u8> {
        let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, 0, 0, 0, 0, 1], payload].concat()
    }

    #[test]
    fn resets_are_counted_however_the_bytes_are_cut() {
        let frames =
            [frame(4, &[]), frame(3, &[0; 4]), frame(0, &[3; 300]), frame(3, &[3; 4]), frame(6, &[3; 8])].concat();
        for size in [1, 2, 7, 9, 10, 64, frames.len()] {
            let mut reader = Frames::default();
            let resets: u64 = frames.chunks(size).map(|chunk| reader.resets(chunk)).sum();
            assert_eq!((resets, reader.read, reader.payload), (2, 0, 0), "in chunks of {size}");
        }
    }
}
