//! A cache set in memory: what bcache would do with requests, without a device.
//!
//! The allocator is the real one; around it are the parts of the kernel that decide what it is asked
//! for: which requests bypass the cache and why, what a miss keeps, what a write does in each mode,
//! when garbage is collected and what that finds, how background writeback would go. The same
//! requests and seed give the same figures.
//!
//! What only hardware shows is left out: congestion, and how long a GC takes. How long the allocator
//! thread takes for a chain of prio sets is a setting ([`Config::chain_ns`]): a write or a miss for which no
//! bucket is ready meanwhile goes past the cache. Journal and btree writes are not counted; the buckets that
//! they occupy are. Background writeback is an estimate.
//!
//! ```
//! use bcache_core::model::{CacheModel, Config, Op, Request};
//! use bcache_core::units::Sectors;
//!
//! let mut cache = CacheModel::new(Config::new(Sectors(2 << 20), Sectors(1024)))?;
//! let read = Request { sector: 4096, sectors: 8, op: Op::Read, ..Request::default() };
//! cache.request(&read)?;
//! cache.request(&read)?;
//! let stats = cache.stats();
//! assert_eq!((stats.cache_misses, stats.cache_hits), (1, 1));
//! assert_eq!(stats.promoted_sectors, 8);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```

mod cache;
mod config;
mod engine;
mod index;
mod request;
mod sequential;
mod set;
mod stats;
mod writeback;

pub use config::{BUCKETS_MIN, Config, ConfigError, Mode, ReadaheadPolicy};
pub use engine::{Allocator, Engine, PassFound, Refill, Space};
pub use index::{Extent, ExtentIndex, Placed};
pub use request::{Flags, Op, Request};
pub use set::CacheModel;
pub use stats::{BypassReason, Bypassed, Count, Stats};
