//! The `bcachectl` command: parsing, confirming and rendering.
//!
//! Everything that knows bcache is in `bcache-core`; here arguments become its options, and its
//! plans and reports become tables and JSON.

mod ask;
pub mod cli;
pub mod commands;
pub mod compat;
pub mod deep;
pub mod exit;
mod interrupt;
pub mod man;
mod nbd;
pub mod render;
pub mod scan;
pub mod stakes;
mod udev;
