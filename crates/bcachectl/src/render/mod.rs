//! Reports as tables and JSON.

pub mod device;
pub mod invalidate;
pub mod make_words;
pub mod repair;
pub mod writeback;

use bcache_core::ops::check::Code;

/// What stands behind the findings of a kind where there are more of it.
pub fn and_more(count: u64, code: Code) -> String {
    format!("and {count} more of {}", code.name())
}
