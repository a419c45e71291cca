//! bcache's on-disk formats, cache set reader and bucket allocator.
//!
//! bcache is the part of the Linux kernel that puts an SSD in front of slow disks. This library reads
//! what bcache keeps on its devices and says what would be lost. It changes that so that the kernel
//! honours the change, and it runs bcache's bucket allocator in user space. Formats and rules are those of the kernel, to the
//! byte; `docs/on-disk-format.md` has them.
//!
//! # What is on a device
//!
//! ```
//! use bcache_core::device::{SuperblockArea, open_read};
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("cache.img");
//! # bcache_core::device::create_image(&path, 64 << 20)?;
//!
//! let device = open_read(&path)?;
//! match SuperblockArea::read(&device)? {
//!     SuperblockArea::Bcache(superblock) => {
//!         println!("{:?} of set {}", superblock.kind(), superblock.set_uuid());
//!     }
//!     other => println!("no bcache device: {other:?}"),
//! }
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! [`cache_set::CacheSet::read`] goes on from there to the journal, the prios, the uuid table and the
//! btree; [`inspect::Group`] puts several devices together and says what exists only on them.
//!
//! # An allocator on a file
//!
//! A set is formatted, brought into use, and gives out a bucket; its thread invalidates buckets and
//! writes their gens before they are used.
//!
//! ```
//! use std::sync::Arc;
//!
//! use bcache_core::allocator::{AllocatorThread, Reserve};
//! use bcache_core::device::{BlockDevice, create_image};
//! use bcache_core::layout::superblock::{
//!     CacheParams, Label, Replacement, SB_OFFSET_BYTES, Superblock,
//! };
//! use bcache_core::ops::start::{Member, RunningSet};
//! use bcache_core::units::Sectors;
//! use uuid::Uuid;
//! # let folder = tempfile::tempdir()?;
//! # let path = folder.path().join("cache.img");
//!
//! let (nbuckets, bucket_size) = (1024, Sectors(128));
//! let device = create_image(&path, nbuckets * bucket_size.bytes())?;
//! let superblock = Superblock::new_cache(&CacheParams {
//!     uuid: Uuid::from_u128(1),
//!     set_uuid: Uuid::from_u128(2),
//!     label: Label::default(),
//!     nbuckets,
//!     bucket_size,
//!     block_size: 8,
//!     replacement: Replacement::Lru,
//!     discard: false,
//! });
//! device.write_at(SB_OFFSET_BYTES, superblock.as_bytes())?;
//!
//! let member = Member { device: Arc::new(device), superblock };
//! let set = Arc::new(RunningSet::start(vec![member], |_| {}, &mut || 1)?);
//! // Garbage collection marks what is in use: here nothing but the metadata.
//! let (wake, woken) = std::sync::mpsc::channel();
//! let of_collector = Arc::clone(&set);
//! std::thread::spawn(move || {
//!     while woken.recv().is_ok() {
//!         of_collector.allocator().gc_start();
//!         of_collector.allocator().gc_finish(&of_collector.metadata_marks()).expect("its own marks");
//!     }
//! });
//! let io = set.io(0, Arc::new(move || wake.send(()).unwrap_or(()))).expect("the set has a cache");
//! let cache = &set.allocator().caches()[0];
//! let thread = AllocatorThread::start(cache, io)?;
//! let bucket = set.allocator().bucket_alloc(Reserve::None, true)?;
//! println!("bucket {} with gen {}", bucket.bucket, bucket.bucket_gen);
//! thread.stop().map_err(|(_, error)| error)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! Programs in `examples/` dump the prios of a cache, allocate and write, and plan an invalidation.
//!
//! # Layers
//!
//! Each uses only those above it (a test in `tests/` holds the direction):
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
