//! Room for publishes: bytes that have no answer yet, over all clients of the node.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The node's room. Cheap to clone.
#[derive(Clone)]
pub(super) struct Room {
    bytes: Arc<Semaphore>,
    bytes_max: usize,
}

/// What one request or stream has taken of it; given back piece by piece, and the rest at the end.
pub(super) struct Taken {
    room: Room,
    bytes: usize,
}

impl Room {
    pub(super) fn new(bytes_max: usize) -> Self {
        let bytes_max = bytes_max.min(Semaphore::MAX_PERMITS).min(u32::MAX as usize);
        Room { bytes: Arc::new(Semaphore::new(bytes_max)), bytes_max }
    }

    /// What nobody has given back yet, at first nothing.
    pub(super) fn taken(&self) -> Taken {
        Taken { room: self.clone(), bytes: 0 }
    }

    /// Waits in line for room. More than there is at all counts as all there is.
    pub(super) async fn wait(self, bytes: usize) -> OwnedSemaphorePermit {
        let permits = u32::try_from(bytes.min(self.bytes_max)).expect("bytes_max fits");
        self.bytes.acquire_many_owned(permits).await.expect("the semaphore is never closed")
    }
}

impl Taken {
    /// Takes room if there is some at once.
    pub(super) fn try_take(&mut self, bytes: usize) -> bool {
        let permits = u32::try_from(bytes.min(self.room.bytes_max)).expect("bytes_max fits");
        match self.room.bytes.clone().try_acquire_many_owned(permits) {
            Ok(permit) => {
                self.add(permit);
                true
            }
            Err(_) => false,
        }
    }

    /// Adds what was waited for.
    pub(super) fn add(&mut self, permit: OwnedSemaphorePermit) {
        self.bytes += permit.num_permits();
        permit.forget();
    }

    /// Gives room back.
    pub(super) fn give(&mut self, bytes: usize) {
        let bytes = bytes.min(self.bytes);
        self.bytes -= bytes;
        self.room.bytes.add_permits(bytes);
    }

    /// Bytes that are taken.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        self.room.bytes.add_permits(self.bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn room_comes_back_by_pieces_and_at_the_end() {
        let room = Room::new(100);
        let mut taken = room.taken();
        assert!(taken.try_take(90));
        assert!(!taken.try_take(20));
        taken.give(30);
        assert!(taken.try_take(20));
        assert_eq!(taken.bytes(), 80);
        drop(taken);
        let mut taken = room.taken();
        taken.add(room.clone().wait(1000).await);
        assert_eq!(taken.bytes(), 100, "no request waits for ever");
    }
}
