//! Make, show, check and invalidate bcache devices.

use std::process::ExitCode;

fn main() -> ExitCode {
    bcachectl::compat::main().unwrap_or_else(bcachectl::commands::main)
}
