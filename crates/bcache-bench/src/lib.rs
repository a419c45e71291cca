//! What the `bcache-bench` binary is made of: the reference engine, and the benches.

pub mod cli;
pub mod memory;
pub mod reference;
