//! Generated types of Weft's own protocols. No logic.
//!
//! `v1` is the public API, `internal` what nodes say to each other and write to their journals.
//! The files under `proto/` are the documentation, field by field.

#![allow(clippy::all, clippy::unwrap_used, unreachable_pub, missing_docs)]

/// The public API, package `weft.v1`.
pub mod v1 {
    include!(concat!(env!("OUT_DIR"), "/weft.v1.rs"));

    /// The encoded descriptors of this package, for gRPC reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/weft_v1.bin"));
}

/// The service that `weft dev` starts.
pub mod demo {
    /// The first version, package `weft.demo.v1`.
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/weft.demo.v1.rs"));

        /// The encoded descriptors of this package, for gRPC reflection.
        pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/weft_demo_v1.bin"));
    }
}

/// Between nodes and on disk, package `weft.internal.v1`.
pub mod internal {
    /// The first version.
    pub mod v1 {
        include!(concat!(env!("OUT_DIR"), "/weft.internal.v1.rs"));
    }
}
