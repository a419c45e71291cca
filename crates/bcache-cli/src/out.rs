//! Output for people and for programs.

use std::io::{self, IsTerminal, Write};

use anyhow::Result;
use serde::Serialize;

use crate::is_broken_pipe;
use crate::table::Color;
use crate::text::wrap;

/// Where output goes, and whether a person reads it.
pub struct Out {
    writer: Box<dyn Write>,
    style: Style,
}

/// How to dress output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// Whether a person reads it on a terminal.
    pub terminal: bool,
    /// Colours: on a terminal, unless `NO_COLOR` is set or the terminal has none.
    pub colour: bool,
    /// Columns of the terminal. `None` where there is none or it does not say: a serial console and
    /// a rescue shell have a size of 0, which is unknown and not narrow.
    pub width: Option<usize>,
}

impl Style {
    /// For files, pipes and programs.
    pub const PLAIN: Self = Self { terminal: false, colour: false, width: None };

    /// What suits standard output.
    pub fn of_stdout() -> Self {
        let stdout = io::stdout();
        if !stdout.is_terminal() {
            return Self::PLAIN;
        }
        let colour = anstream::AutoStream::choice(&stdout) != anstream::ColorChoice::Never;
        let size = terminal_size::terminal_size_of(&stdout);
        let columns = size.map(|(columns, _)| usize::from(columns.0));
        Self { terminal: true, colour, width: columns.filter(|columns| *columns > 0) }
    }
}

/// A line of text in a colour, where colours are wanted.
pub fn coloured(style: Style, colour: Color, text: &str) -> String {
    paint(style, Some(colour), false, text)
}

/// `text` in a colour and in bold, where colours are wanted.
pub(crate) fn paint(style: Style, colour: Option<Color>, bold: bool, text: &str) -> String {
    let mut dress = anstyle::Style::new().fg_color(colour.map(Into::into));
    if bold {
        dress = dress.bold();
    }
    if style.colour { format!("{dress}{text}{dress:#}") } else { text.to_owned() }
}

/// Standard output, whose errors say that it is theirs.
struct Stdout(io::StdoutLock<'static>);

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes).map_err(of_stdout)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush().map_err(of_stdout)
    }
}

/// An error of standard output, of the same kind.
#[expect(clippy::needless_pass_by_value, reason = "map_err gives it away")]
pub(crate) fn of_stdout(error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("cannot write to standard output: {error}"))
}

impl Out {
    /// Takes standard output for the rest of the command.
    pub fn stdout() -> Self {
        Self::new(io::BufWriter::new(Stdout(io::stdout().lock())), Style::of_stdout())
    }

    /// Prints an answer to standard output. A reader that goes away is no error: the exit status says what
    /// the answer is, whether or not all of it is read.
    pub fn answer(print: impl FnOnce(&mut Self) -> Result<()>) -> Result<()> {
        let mut out = Self::stdout();
        let printed = print(&mut out).and_then(|()| out.finish());
        printed.or_else(|error| if is_broken_pipe(&error) { Ok(()) } else { Err(error) })
    }

    /// Output to somewhere else, dressed as told.
    pub fn new(writer: impl Write + 'static, style: Style) -> Self {
        Self { writer: Box::new(writer), style }
    }

    /// How to dress what is written.
    pub const fn style(&self) -> Style {
        self.style
    }

    /// Writes a paragraph; on a terminal it is wrapped between words.
    pub fn prose(&mut self, text: &str) -> io::Result<()> {
        for line in wrap(text, self.style.width.unwrap_or(usize::MAX)) {
            writeln!(self.writer, "{line}")?;
        }
        Ok(())
    }

    /// Writes one JSON document and a newline.
    pub fn json(&mut self, value: &impl Serialize) -> Result<()> {
        serde_json::to_writer_pretty(&mut self.writer, value).map_err(io::Error::from)?;
        writeln!(self.writer)?;
        Ok(())
    }

    /// Writes what is buffered.
    pub fn finish(mut self) -> Result<()> {
        self.writer.flush()?;
        Ok(())
    }
}

impl Write for Out {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.writer.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.writer.flush()
    }
}
