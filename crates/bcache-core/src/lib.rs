//! bcache's on-disk formats, cache set reader and bucket allocator.
//!
//! Layers, each using only those above it (a test in `tests/` holds the direction):
//!
//! - [`units`]: sectors, bucket numbers, gens and prios, and what a geometry derives from them.
//! - [`checksum`]: the CRC-64 that every bcache structure carries.
//! - [`layout`]: bytes to typed values and back; no I/O.
//! - [`device`]: block devices and image files.
//! - [`cache_set`]: what a device holds, read-only.
//! - [`inspect`]: a group of devices: what belongs together, what would be lost, what can be done.
//! - [`allocator`]: buckets, reserves, replacement policies, open buckets, the thread.
//! - [`running`]: what the running kernel says of its sets, and telling it what to do.
//! - [`model`]: a cache set in memory: what bcache would do with the requests of a trace.
//! - [`ops`]: make, invalidate, check; each plans first and applies after.

// What comes from a device is never trusted to be in bounds.
#![cfg_attr(
    not(test),
    warn(clippy::indexing_slicing, clippy::unwrap_used, clippy::expect_used, clippy::panic)
)]

pub mod allocator;
pub mod cache_set;
pub mod checksum;
pub mod device;
#[cfg(feature = "testkit")]
pub mod fuzz;
pub mod inspect;
pub mod layout;
pub mod model;
pub mod ops;
pub mod running;
pub mod units;
