//! The real world.

use std::sync::Arc;

use super::Disk;

/// The host of a real process.
pub struct Production {
    disk: Arc<dyn Disk>,
}

impl Production {
    /// On the system's file system, through `disk`.
    pub fn new(disk: Arc<dyn Disk>) -> Self {
        Production { disk }
    }
}
