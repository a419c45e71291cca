//! A pseudo terminal: what a command prints there, and what somebody types.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::process::{Command, ExitStatus, Stdio};

use anyhow::Context as _;

/// A terminal of 25 lines.
#[derive(Debug)]
pub struct Terminal {
    /// Where somebody looks and types.
    master: File,
    /// What a command gets.
    end: OwnedFd,
}

impl Terminal {
    /// One of so many columns; 0 for one that does not tell its width.
    ///
    /// # Errors
    /// When there is no terminal to be had.
    pub fn new(columns: u16) -> anyhow::Result<Self> {
        let size = nix::pty::Winsize { ws_row: 25, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let pty = nix::pty::openpty(&size, None).context("open a pseudo terminal")?;
        Ok(Self { master: File::from(pty.master), end: pty.slave })
    }

    /// For the standard input, output or error of a command.
    ///
    /// # Errors
    /// When there are too many open files.
    pub fn stdio(&self) -> io::Result<Stdio> {
        Ok(self.end.try_clone()?.into())
    }

    /// Types `keys`, now or before a command reads them. `"\x04"` is the end of the input.
    ///
    /// # Errors
    /// When the terminal cannot be written to.
    pub fn type_keys(&self, keys: &str) -> io::Result<()> {
        (&self.master).write_all(keys.as_bytes())
    }

    /// Runs a command that has the terminal: what it shows, and how the command ends.
    ///
    /// # Errors
    /// When the command cannot be started, or shows what is no UTF-8.
    pub fn watch(self, mut command: Command) -> anyhow::Result<(String, ExitStatus)> {
        let Self { mut master, end } = self;
        let mut child = command.spawn().context("start a command on a terminal")?;
        // Closes our handles of the other end, or reading would never end.
        drop((command, end));
        let mut shown = Vec::new();
        // The end of a terminal is an error (EIO), once all is read.
        let _ = master.read_to_end(&mut shown);
        let text = String::from_utf8(shown).context("the output is no UTF-8")?;
        Ok((text.replace("\r\n", "\n"), child.wait()?))
    }
}

/// What `command` prints on a terminal of so many columns, and how it ends. Its standard input is
/// empty, there are no colours, and standard error goes nowhere.
///
/// # Errors
/// As [`Terminal::watch`].
pub fn on_terminal(mut command: Command, columns: u16) -> anyhow::Result<(String, ExitStatus)> {
    let terminal = Terminal::new(columns)?;
    command.env("NO_COLOR", "1").env("TERM", "vt220").stdin(Stdio::null());
    command.stdout(terminal.stdio()?).stderr(Stdio::null());
    terminal.watch(command)
}
