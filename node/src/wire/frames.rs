//! Reads the heads of the HTTP/2 frames that pass by, to count what the h2 crate does not tell.

/// Length, type, flags, stream. Source: RFC 9113 §4.1.
const HEAD_BYTES: usize = 9;
/// Types of frames. Source: RFC 9113 §6.
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const CONTINUATION: u8 = 9;

/// Where it is in the stream of frames. It begins after the client's preface.
#[derive(Debug, Default)]
pub(super) struct Frames {
    /// RST_STREAM frames so far.
    pub(super) resets: u64,
    /// Bytes of the largest header block so far, as it is sent: a HEADERS frame with its CONTINUATIONs.
    pub(super) block_bytes_most: usize,
    block_bytes: usize,
    head: [u8; HEAD_BYTES],
    /// Bytes of `head` that are there.
    head_bytes: usize,
    /// Bytes of the payload that are to come.
    payload: usize,
}

impl Frames {
    /// Takes the bytes that come next.
    pub(super) fn read(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            if self.payload > 0 {
                let skipped = self.payload.min(bytes.len());
                self.payload -= skipped;
                bytes = &bytes[skipped..];
                continue;
            }
            let taken = (HEAD_BYTES - self.head_bytes).min(bytes.len());
            self.head[self.head_bytes..self.head_bytes + taken].copy_from_slice(&bytes[..taken]);
            self.head_bytes += taken;
            bytes = &bytes[taken..];
            if self.head_bytes == HEAD_BYTES {
                self.head_bytes = 0;
                self.payload = u32::from_be_bytes([0, self.head[0], self.head[1], self.head[2]]) as usize;
                self.begin(self.head[3]);
            }
        }
    }

    /// A frame of this type begins.
    fn begin(&mut self, kind: u8) {
        match kind {
            RST_STREAM => self.resets += 1,
            HEADERS => self.block_bytes = self.payload,
            CONTINUATION => self.block_bytes += self.payload,
            _ => return,
        }
        self.block_bytes_most = self.block_bytes_most.max(self.block_bytes);
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
    fn frames_are_told_however_the_bytes_are_cut() {
        let headers = [frame(1, &[1; 5]), frame(1, &[1; 20]), frame(9, &[9; 7]), frame(9, &[9; 4]), frame(1, &[1; 9])];
        let others = [frame(4, &[]), frame(3, &[0; 4]), frame(0, &[3; 300]), frame(3, &[3; 4]), frame(6, &[3; 8])];
        let frames = [headers.concat(), others.concat()].concat();
        for size in [1, 2, 7, 9, 10, 64, frames.len()] {
            let mut reader = Frames::default();
            frames.chunks(size).for_each(|chunk| reader.read(chunk));
            assert_eq!((reader.resets, reader.block_bytes_most), (2, 31), "in chunks of {size}");
            assert_eq!((reader.head_bytes, reader.payload), (0, 0), "in chunks of {size}");
        }
    }
}
