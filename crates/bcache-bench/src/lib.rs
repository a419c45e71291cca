//! What the `bcache-bench` binary is made of: recording, workloads, reports, and
//! the commands.

pub mod cli;
pub mod commands;
pub mod compare;
pub mod device;
pub mod environment;
pub mod exit;
pub mod interrupt;
pub mod man;
pub mod num;
pub mod progress;
pub mod record;
pub mod replay;
pub mod report;
pub mod size;
pub mod trace;
pub mod warnings;
pub mod watch;
pub mod workload;
