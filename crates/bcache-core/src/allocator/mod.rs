//! The allocator: which bucket of a cache device is used next, and for what.
//!
//! The semantics are those of the kernel's alloc.c (on-disk-format.md §6 and §9); its costs are not.
//! The parts, each using only those above it:
//!
//! - `words`, `table`: the buckets, eight bytes each, and the transitions of a single one; `vector`:
//!   the inner loops of sweeps over them.
//! - [`replacement`]: which buckets go first: LRU, FIFO, RANDOM.
//! - `reserves`: the queues of free buckets, and `lifecycle`, why a bucket may enter one.
//! - `waker`: how a cache's thread sleeps; `rescale`: what a set of caches counts together.
//! - `prios`: the two alternating chains of prio sets; `trace`: hooks.
//! - `core`: one cache: everything above put together, without I/O, clock or waiting.
//! - `shared`: waiting and waking: [`Allocator`], one cache as many threads use it.
//! - `io`, `chain`, `thread`: the loop that keeps the reserves filled, over an [`AllocatorIo`].
//! - `sectors`: the sector allocator: open buckets for many streams of writes.
//! - `set`: several caches as one: [`SetAllocator`].
//! - `testkit` (feature `testkit`): the reference engine, which tests and benches compare with.
//!
//! docs/allocator.md tells how they work together and what may happen at once.

mod chain;
mod clock;
mod core;
mod error;
mod io;
mod lifecycle;
mod mark;
mod planted;
mod pointer;
mod prios;
pub mod replacement;
mod rescale;
mod reserves;
mod sectors;
mod set;
mod shared;
mod sync;
mod table;
#[cfg(feature = "testkit")]
pub mod testkit;
mod thread;
mod trace;
mod vector;
mod waker;
mod words;

pub use chain::{WriteError, write_prios};
pub use core::{
    AllocatorCore, CannotInvalidate, Config, Inconsistency, Kept, NewAllocatorError, Pass,
    PushStep, Refiller,
};
pub use error::AllocError;
pub use io::{AllocatorIo, Event, WaitsFor};
pub use lifecycle::{Lifecycle, Ready, ReuseReason};
pub use mark::Mark;
#[cfg(feature = "model")]
pub use planted::{Bug, plant};
pub use pointer::SetPointer;
pub use prios::{PrioChains, PrioSetPlan, PrioWriteError};
pub use replacement::{Found, Policy};
pub use rescale::SetCounters;
pub use reserves::{BtreeReserve, Reserve, Sizes};
pub use sectors::{Allocated, BucketSource, SectorAllocator, SectorRequest};
pub use set::{SetAllocator, SetError};
pub use shared::Allocator;
pub use table::{Bucket, BucketTable, TableError};
pub use thread::{AllocatorThread, ThreadError};
pub use trace::{TraceEvent, Tracer};
