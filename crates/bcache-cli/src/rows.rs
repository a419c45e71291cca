//! Long lists, written row by row: nothing is collected, so that a list of any length takes no
//! memory and ends as soon as its reader has enough.

use std::cell::RefCell;
use std::fmt::Write as _;
use std::io::{self, Write};
use std::ops::ControlFlow;

use anyhow::Result;
use serde::ser::{Serialize, SerializeSeq, Serializer};

use crate::out::Out;
use crate::text;

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
    /// Of the columns that a narrow terminal leaves out, those with the highest number go first, and
    /// the last of several with the same.
    pub lost: u8,
}

impl Column {
    /// A column.
    pub const fn new(title: &'static str, width: usize) -> Self {
        Self { title, width, lost: 0 }
    }

    /// The column, to be left out before those with a lower number.
    #[must_use]
    pub const fn lost(mut self, lost: u8) -> Self {
        self.lost = lost;
        self
    }

    /// Columns of the terminal that it takes.
    fn columns(&self) -> usize {
        self.width.max(text::width(self.title))
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
    columns: &'static [Column],
    /// Whether each column is shown.
    shown: Vec<bool>,
    /// The column that comes next.
    next: usize,
}

impl Line {
    fn new(columns: &'static [Column], width: Option<usize>) -> Self {
        let shown = shown(columns, width);
        Self { text: String::new(), columns, shown, next: 0 }
    }

    /// The titles of the columns that are left out.
    fn hidden(&self) -> Vec<&'static str> {
        let columns = self.columns.iter().zip(&self.shown);
        columns.filter(|(_, shown)| !**shown).map(|(column, _)| column.title).collect()
    }

    /// The next value. All columns are to the right but the last of a table.
    pub fn cell(&mut self, value: impl std::fmt::Display) {
        let index = self.next;
        self.next += 1;
        let Some(column) = self.columns.get(index) else { return };
        if self.shown.get(index) != Some(&true) {
            return;
        }
        let last = index + 1 == self.columns.len();
        if !self.text.is_empty() {
            self.text.push_str("  ");
        }
        // Writing to a string cannot fail.
        let _ = if last {
            write!(self.text, "{value}")
        } else {
            // Most values ignore a width in their own formatting; padded is what was written.
            let before = self.text.len();
            let done = write!(self.text, "{value}");
            let width = self.text.get(before..).map_or(0, text::width);
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

    fn restart(&mut self) {
        self.text.clear();
        self.next = 0;
    }
}

/// Which of `columns` a terminal of this width has room for. The first is always shown.
fn shown(columns: &[Column], width: Option<usize>) -> Vec<bool> {
    let mut shown = vec![true; columns.len()];
    let Some(width) = width else { return shown };
    let mut order: Vec<usize> = (1..columns.len()).collect();
    order.sort_by_key(|index| {
        let lost = columns.get(*index).map_or(0, |column| column.lost);
        std::cmp::Reverse((lost, *index))
    });
    for index in order {
        let taken = columns.iter().zip(&shown).filter(|(_, shown)| **shown);
        let taken: usize = taken.map(|(column, _)| column.columns() + 2).sum();
        if taken.saturating_sub(2) <= width {
            break;
        }
        if let Some(shown) = shown.get_mut(index) {
            *shown = false;
        }
    }
    shown
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
    let mut line = Line::new(L::Row::COLUMNS, out.style().width);
    for column in L::Row::COLUMNS {
        line.cell(column.title);
    }
    if out.style().colour {
        writeln!(out, "\x1b[1m{}\x1b[0m", line.text)?;
    } else {
        writeln!(out, "{}", line.text)?;
    }
    each(list, |row| {
        line.restart();
        row.cells(&mut line);
        line.text.truncate(line.text.trim_end().len());
        line.text.push('\n');
        out.write_all(line.text.as_bytes())
    })?;
    let hidden = line.hidden();
    if !hidden.is_empty() {
        out.prose(&format!("(too narrow to show: {})", hidden.join(", ")))?;
    }
    Ok(())
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
        let mut line = Line::new(Number::COLUMNS, None);
        Number { number: 5, name: "five" }.cells(&mut line);
        assert_eq!(line.text, "       5  five");
    }

    #[test]
    fn a_narrow_terminal_loses_whole_columns() {
        const COLUMNS: &[Column] =
            &[Column::new("a", 4), Column::new("b", 6).lost(1), Column::new("c", 6)];
        assert_eq!(shown(COLUMNS, None), [true, true, true]);
        assert_eq!(shown(COLUMNS, Some(20)), [true, true, true]);
        assert_eq!(shown(COLUMNS, Some(19)), [true, false, true]);
        assert_eq!(shown(COLUMNS, Some(11)), [true, false, false]);
        assert_eq!(shown(COLUMNS, Some(1)), [true, false, false]);
    }
}
