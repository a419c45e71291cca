//! Drives bcache's allocator, and measures it.

use std::process::ExitCode;

fn main() -> ExitCode {
    bcache_bench::commands::main()
}
