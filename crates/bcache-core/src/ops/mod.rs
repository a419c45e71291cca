//! What the tools do to devices: each operation plans first, and [`plan::apply`] carries it out.

pub(crate) mod backing_gone;
pub mod check;
mod commit;
pub mod export;
pub mod image;
pub mod invalidate;
mod keyed;
pub mod make;
pub mod plan;
pub mod planned;
pub mod rebuild;
pub mod repair;
pub mod start;
#[cfg(feature = "testkit")]
pub mod trace;
pub mod undo;
pub mod verify;
pub mod writeback;

pub use crate::cache_set::reused;
