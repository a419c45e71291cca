//! Make, show, check and invalidate bcache devices.

use std::process::ExitCode;

fn main() -> ExitCode {
    bcachectl::commands::main()
}
