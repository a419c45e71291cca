//! What the `bcache-bench` binary is made of: the reference engine, and the benches.

pub mod cli;
<<<<<<< HEAD
pub mod environment;
pub mod memory;
=======
pub mod commands;
pub mod compare;
pub mod device;
pub mod environment;
pub mod exit;
pub mod interrupt;
pub mod man;
>>>>>>> 8c32f34 (bcache-bench: compare, plot, the device plan, baselines, progress, Ctrl-C, man pages)
pub mod num;
pub mod progress;
pub mod record;
pub mod reference;
pub mod report;
pub mod warnings;
pub mod watch;
pub mod workload;
