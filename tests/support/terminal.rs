//! A command whose output goes to a terminal of some width.

use std::fs::File;
use std::io::Read as _;
use std::process::{Command, ExitStatus, Stdio};

use anyhow::Context as _;

/// What `command` prints on a terminal of so many columns, and how it ends. Its standard input is
/// empty, and there are no colours. Standard error is a pipe that is not read: little may go there.
///
/// # Errors
/// When there is no terminal to be had, or the command cannot be started.
pub fn on_terminal(mut command: Command, columns: u16) -> anyhow::Result<(String, ExitStatus)> {
    let size = nix::pty::Winsize { ws_row: 25, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    let pty = nix::pty::openpty(&size, None)?;
    command.env("NO_COLOR", "1").env("TERM", "vt220").stdin(Stdio::null());
    command.stdout(File::from(pty.slave)).stderr(Stdio::null());
    let mut child = command.spawn()?;
    // Closes our handle of the other end, or reading would never end.
    drop(command);
    let mut shown = Vec::new();
    // The end of a terminal is an error (EIO), once all is read.
    let _ = File::from(pty.master).read_to_end(&mut shown);
    let text = String::from_utf8(shown).context("the output is no UTF-8")?;
    Ok((text.replace("\r\n", "\n"), child.wait()?))
}
