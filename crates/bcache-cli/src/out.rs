//! Output for people and for programs.

use std::io::{self, IsTerminal, Write};

use anyhow::Result;
use serde::Serialize;

/// Where output goes, and whether a person reads it.
pub struct Out {
    writer: Box<dyn Write>,
    style: Style,
}

/// How to dress output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Style {
    /// Lines around tables: on a terminal only.
    pub borders: bool,
    /// Colours: on a terminal, unless `NO_COLOR` is set.
    pub colour: bool,
}

impl Style {
    /// What suits standard output.
    pub fn of_stdout() -> Self {
        let terminal = io::stdout().is_terminal();
        let no_colour = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        Self { borders: terminal, colour: terminal && !no_colour }
    }
}

/// A line of text in a colour, where colours are wanted.
pub fn coloured(style: Style, colour: comfy_table::Color, text: &str) -> String {
    use comfy_table::Color;
    let code = match colour {
        Color::Red => 31,
        Color::Green => 32,
        Color::Yellow => 33,
        _ => 39,
    };
    if style.colour { format!("\x1b[{code}m{text}\x1b[0m") } else { text.to_owned() }
}

impl Out {
    /// Takes standard output for the rest of the command.
    pub fn stdout() -> Self {
        Self::new(io::BufWriter::new(io::stdout().lock()), Style::of_stdout())
    }

    /// Output to somewhere else, dressed as told.
    pub fn new(writer: impl Write + 'static, style: Style) -> Self {
        Self { writer: Box::new(writer), style }
    }

    /// How to dress what is written.
    pub const fn style(&self) -> Style {
        self.style
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
