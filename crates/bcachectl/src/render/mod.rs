//! Reports as tables and JSON.

pub mod device;
pub mod invalidate;
pub mod make_words;
pub mod repair;
pub mod writeback;
