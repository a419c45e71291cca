//! What the `bcache-bench` binary is made of: the reference engine, and the benches.

pub mod cli;
pub mod environment;
pub mod memory;
pub mod num;
pub mod record;
pub mod reference;
pub mod report;
pub mod warnings;
pub mod watch;
pub mod workload;
