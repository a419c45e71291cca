//! What the `bcache-bench` binary is made of: recording, workloads, reports, the reference engine, and
//! the benches.

pub mod cli;
pub mod commands;
pub mod compare;
pub mod device;
pub mod environment;
pub mod exit;
pub mod interrupt;
pub mod man;
pub mod memory;
pub mod num;
pub mod progress;
pub mod record;
pub mod reference;
pub mod replay;
pub mod report;
pub mod trace;
pub mod warnings;
pub mod watch;
pub mod workload;
