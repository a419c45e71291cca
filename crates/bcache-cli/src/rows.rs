//! Long lists, written row by row: nothing is collected, so that a list of any length takes no
//! memory and ends as soon as its reader has enough.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::ops::ControlFlow;

use anyhow::Result;
use serde::ser::{Serialize, SerializeSeq, Serializer};

use crate::out::Out;

/// How a list is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// Columns for people
    #[default]
    Table,
    /// One JSON document
    Json,
    /// A JSON object on each line
    Ndjson,
    /// Comma-separated values with a header line
    Csv,
}

/// A column of a table.
#[derive(Clone, Copy, Debug)]
pub struct Column {
    /// Its title.
    pub title: &'static str,
    /// Its width; longer values push the rest of the line to the right.
    pub width: usize,
}

impl Column {
    /// A column.
    pub const fn new(title: &'static str, width: usize) -> Self {
        Self { title, width }
    }
}

/// A row of a list: flat, as CSV wants it.
pub trait Row: Serialize {
    /// The columns for people.
    const COLUMNS: &'static [Column];

    /// The values for people, one for each column.
    fn cells(&self, line: &mut Line);
}

/// Rows that are made as they are written.
pub trait List {
    /// What it lists.
    type Row: Row;

    /// Gives `row` one row after the other until it has enough.
    fn each(&self, row: &mut dyn FnMut(&Self::Row) -> ControlFlow<()>);
}

/// A line of a table in the making.
#[derive(Debug)]
pub struct Line {
    text: String,
    columns: std::slice::Iter<'static, Column>,
    /// Where the next column starts.
    start: usize,
}

impl Line {
    fn new(columns: &'static [Column]) -> Self {
        Self { text: String::new(), columns: columns.iter(), start: 0 }
    }

    /// The next value. All columns are to the right but the last of a table.
    pub fn cell(&mut self, value: impl std::fmt::Display) {
        let last = self.columns.len() <= 1;
        let Some(column) = self.columns.next() else { return };
        if self.start > 0 {
            self.text.push_str("  ");
        }
        self.start += 1;
        // Writing to a string cannot fail.
        let _ = if last {
            write!(self.text, "{value}")
        } else {
            // Most values ignore a width in their own formatting; padded is what was written.
            let before = self.text.len();
            let done = write!(self.text, "{value}");
            let width = self.text.get(before..).map_or(0, |cell| cell.chars().count());
            for _ in width..column.width {
                self.text.insert(before, ' ');
            }
            done
        };
    }

    /// The next value, or a dash.
    pub fn maybe(&mut self, value: Option<impl std::fmt::Display>) {
        match value {
            Some(value) => self.cell(value),
            None => self.cell("-"),
        }
    }

    fn restart(&mut self, columns: &'static [Column]) {
        self.text.clear();
        self.columns = columns.iter();
        self.start = 0;
    }
}

/// Writes all of `list`: a table, a JSON object a line, or CSV. As [`Format::Json`] it is an array
/// of its own.
pub fn write_list<L: List>(out: &mut Out, format: Format, list: &L) -> Result<()> {
    match format {
        Format::Table => write_table(out, list),
        Format::Json => out.json(&Json(list)),
        Format::Ndjson => each(list, |row| {
            serde_json::to_writer(&mut *out, row).map_err(io::Error::from)?;
            out.write_all(b"\n")
        }),
        Format::Csv => {
            let mut csv = csv::Writer::from_writer(&mut *out);
            each(list, |row| csv.serialize(row).map_err(io_error))?;
            csv.flush()?;
            Ok(())
        }
    }
}

/// The device's own error where there is one: a closed pipe has to be seen as such.
fn io_error(error: csv::Error) -> io::Error {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => error,
        other => io::Error::other(format!("{other:?}")),
    }
}

fn write_table<L: List>(out: &mut Out, list: &L) -> Result<()> {
    let mut line = Line::new(L::Row::COLUMNS);
    for column in L::Row::COLUMNS {
        line.cell(column.title);
    }
    if out.style().colour {
        writeln!(out, "\x1b[1m{}\x1b[0m", line.text)?;
    } else {
        writeln!(out, "{}", line.text)?;
    }
    each(list, |row| {
        line.restart(L::Row::COLUMNS);
        row.cells(&mut line);
        line.text.push('\n');
        out.write_all(line.text.as_bytes())
    })
}

fn each<L: List>(list: &L, mut write: impl FnMut(&L::Row) -> io::Result<()>) -> Result<()> {
    let mut result = Ok(());
    list.each(&mut |row| match write(row) {
        Ok(()) => ControlFlow::Continue(()),
        Err(error) => {
            result = Err(error);
            ControlFlow::Break(())
        }
    });
    result.map_err(Into::into)
}

/// A list as a JSON array, made while it is written.
#[derive(Debug)]
pub struct Json<'l, L>(pub &'l L);

impl<L: List> Serialize for Json<'_, L> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let seq = RefCell::new(serializer.serialize_seq(None)?);
        let mut result = Ok(());
        self.0.each(&mut |row| {
            result = seq.borrow_mut().serialize_element(row);
            if result.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        result?;
        seq.into_inner().end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(serde::Serialize)]
    struct Number {
        number: u64,
        name: &'static str,
    }

    impl Row for Number {
        const COLUMNS: &'static [Column] = &[Column::new("number", 8), Column::new("name", 0)];

        fn cells(&self, line: &mut Line) {
            line.cell(self.number);
            line.cell(self.name);
        }
    }

    struct Numbers;

    impl List for Numbers {
        type Row = Number;

        fn each(&self, row: &mut dyn FnMut(&Number) -> ControlFlow<()>) {
            for number in 0.. {
                if row(&Number { number, name: "n" }).is_break() {
                    return;
                }
            }
        }
    }

    #[test]
    fn an_endless_list_ends_with_its_writer() {
        let mut left = 3;
        let error = each(&Numbers, |_| {
            left -= 1;
            if left == 0 { Err(io::Error::from(io::ErrorKind::BrokenPipe)) } else { Ok(()) }
        });
        assert!(crate::is_broken_pipe(&error.unwrap_err()));
    }

    #[test]
    fn json_of_an_endless_list_ends_with_its_writer() {
        struct Short(usize);
        impl Write for Short {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::BrokenPipe)?;
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let error = serde_json::to_writer(Short(100), &Json(&Numbers)).unwrap_err();
        assert_eq!(io::Error::from(error).kind(), io::ErrorKind::BrokenPipe);
    }

    #[test]
    fn cells_are_to_the_right() {
        let mut line = Line::new(Number::COLUMNS);
        Number { number: 5, name: "five" }.cells(&mut line);
        assert_eq!(line.text, "       5  five");
    }
}
