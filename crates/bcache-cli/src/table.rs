//! Tables of plain columns.
//!
//! Nothing that a person copies is ever broken: a cell is printed in one piece, and only prose wraps,
//! between words. Where a table is wider than the terminal, prose gets narrower first, then whole
//! columns are left out, and a line below the table names them; or, where nothing may be missing, they
//! stand below each row, a line of their own for each.

use std::fmt;

pub use anstyle::AnsiColor as Color;

use crate::out::{Style, paint};
use crate::text::{printable, width, words, wrap};

/// Blanks between two columns.
const GAP: usize = 2;
/// Prose is not made narrower than this, in columns of the terminal.
const PROSE_MIN: usize = 24;
/// Indent of a value that stands below its name.
const INDENT: usize = 2;
/// Indent of a column that stands below its row. Its further lines have [`INDENT`] more.
const BELOW: usize = 4;

/// One value.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cell {
    text: String,
    right: bool,
    prose: bool,
    bold: bool,
    colour: Option<Color>,
}

impl Cell {
    /// A value that is never broken.
    #[expect(clippy::needless_pass_by_value, reason = "callers have made the value for this")]
    pub fn new(value: impl ToString) -> Self {
        Self { text: printable(&value.to_string()), ..Self::default() }
    }

    /// A sentence or phrase, which may wrap between words.
    pub fn prose(value: impl ToString) -> Self {
        Self { prose: true, ..Self::new(value) }
    }

    /// In this colour, where colours are wanted.
    #[must_use]
    pub const fn fg(mut self, colour: Color) -> Self {
        self.colour = Some(colour);
        self
    }

    /// Columns that it takes at least.
    fn width_min(&self) -> usize {
        let natural = width(&self.text);
        if !self.prose {
            return natural;
        }
        let longest = words(&self.text).into_iter().map(width).max().unwrap_or(0);
        longest.max(natural.min(PROSE_MIN))
    }

    fn lines(&self, columns: usize) -> Vec<String> {
        if self.prose { wrap(&self.text, columns) } else { vec![self.text.clone()] }
    }
}

impl<T: ToString> From<T> for Cell {
    fn from(value: T) -> Self {
        Self::new(value)
    }
}

/// A table in the making; `Display` prints it without a newline at its end.
#[derive(Clone, Debug)]
pub struct Table {
    style: Style,
    header: Vec<Cell>,
    rows: Vec<Vec<Cell>>,
    /// Columns in the order in which they are left out.
    lost: Vec<usize>,
    /// From this column on, cells are to the right.
    right_from: usize,
    header_hidden: bool,
    /// Whether columns that are left out stand below each row.
    below: bool,
    /// Text across all columns, each with the number of rows before it.
    notes: Vec<(usize, String)>,
}

/// A table with a header row. Where it does not fit, the last column is left out first; the first one
/// never is.
pub fn table(style: Style, header: &[&str]) -> Table {
    Table {
        style,
        header: header.iter().map(|title| heading(style, title)).collect(),
        rows: Vec::new(),
        lost: (1..header.len()).rev().collect(),
        right_from: usize::MAX,
        header_hidden: false,
        below: false,
        notes: Vec::new(),
    }
}

/// A table without a header: names on the left, values on the right. Nothing of it is left out.
pub fn bare(style: Style) -> Table {
    Table {
        style,
        header: Vec::new(),
        rows: Vec::new(),
        lost: Vec::new(),
        right_from: usize::MAX,
        header_hidden: false,
        below: false,
        notes: Vec::new(),
    }
}

/// A title.
pub fn heading(style: Style, text: &str) -> Cell {
    Cell { bold: style.colour, ..Cell::new(text) }
}

/// A number, to the right.
pub fn number(value: impl ToString) -> Cell {
    Cell { right: true, ..Cell::new(value) }
}

/// Something good, bad or in between, in words.
pub fn state(style: Style, text: impl ToString, colour: Color) -> Cell {
    let cell = Cell::prose(text);
    if style.colour { cell.fg(colour) } else { cell }
}

impl Table {
    /// Leaves the columns with these titles out before the others, the first of them first.
    #[must_use]
    pub fn lose_first(mut self, titles: &[&str]) -> Self {
        let named: Vec<usize> = titles
            .iter()
            .filter_map(|title| self.header.iter().position(|cell| cell.text == *title))
            .collect();
        self.lost.retain(|column| !named.contains(column));
        self.lost.splice(0..0, named);
        self
    }

    /// Cells of this column and of those after it are to the right.
    #[must_use]
    pub const fn right_from(mut self, column: usize) -> Self {
        self.right_from = column;
        self
    }

    /// Leaves the header row out.
    #[must_use]
    pub const fn without_header(mut self) -> Self {
        self.header_hidden = true;
        self
    }

    /// Leaves no column out for good: those that have no room stand below each row.
    #[must_use]
    pub const fn rest_below(mut self) -> Self {
        self.below = true;
        self
    }

    /// Adds a line of text behind the rows so far. It is for people: Markdown does not have it.
    pub fn add_note(&mut self, text: &str) -> &mut Self {
        self.notes.push((self.rows.len(), printable(text)));
        self
    }

    /// Adds a row; cells that are missing are empty.
    pub fn add_row(&mut self, cells: impl IntoIterator<Item = impl Into<Cell>>) -> &mut Self {
        self.rows.push(cells.into_iter().map(Into::into).collect());
        self
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// All of it in Markdown, however wide.
    pub fn markdown(&self) -> String {
        let columns = self.all_rows().map(Vec::len).max().unwrap_or(0);
        let line = |text: &dyn Fn(usize) -> String| {
            let cells: Vec<String> = (0..columns).map(text).collect();
            format!("| {} |\n", cells.join(" | "))
        };
        let row = |row: &[Cell]| {
            line(&|column| {
                row.get(column).map(|cell| cell.text.replace('|', "\\|")).unwrap_or_default()
            })
        };
        let is_right = |column: usize| {
            let first = self.rows.first().and_then(|row| row.get(column));
            column >= self.right_from || first.is_some_and(|cell| cell.right)
        };
        let rule = line(&|column| if is_right(column) { "--:" } else { "---" }.to_owned());
        let rows: String = self.rows.iter().map(|cells| row(cells)).collect();
        format!("{}{rule}{rows}", row(&self.header))
    }

    fn all_rows(&self) -> impl Iterator<Item = &Vec<Cell>> {
        let header = Some(&self.header).filter(|it| !it.is_empty() && !self.header_hidden);
        header.into_iter().chain(&self.rows)
    }

    /// The greatest of what `of` says of the cells of a column.
    fn max(&self, column: usize, of: impl Fn(&Cell) -> usize) -> usize {
        self.all_rows().filter_map(|row| row.get(column)).map(of).max().unwrap_or(0)
    }

    /// The columns that are shown, each with its width.
    fn layout(&self) -> Vec<(usize, usize)> {
        let columns = self.all_rows().map(Vec::len).max().unwrap_or(0);
        let natural = |column| self.max(column, |cell| width(&cell.text));
        let mut shown: Vec<usize> = (0..columns).collect();
        let Some(limit) = self.style.width else {
            return shown.into_iter().map(|column| (column, natural(column))).collect();
        };
        let least = |shown: &[usize]| {
            let gaps = GAP * shown.len().saturating_sub(1);
            shown.iter().map(|column| self.max(*column, Cell::width_min)).sum::<usize>() + gaps
        };
        for column in &self.lost {
            if least(&shown) <= limit {
                break;
            }
            shown.retain(|other| other != column);
        }
        // What is left over goes to the columns of prose, from the left.
        let mut left = limit.saturating_sub(least(&shown));
        let mut layout = Vec::new();
        for column in shown {
            let least = self.max(column, Cell::width_min);
            let more = natural(column).saturating_sub(least).min(left);
            left -= more;
            layout.push((column, least + more));
        }
        layout
    }

    /// Whether values do not fit beside their names.
    fn is_stacked(&self) -> bool {
        let names = self.max(0, |cell| width(&cell.text));
        let values = self.max(1, Cell::width_min);
        let wide = |limit| names + GAP + values > limit;
        self.header.is_empty() && self.style.width.is_some_and(wide)
    }

    fn write_row(
        &self,
        f: &mut Lines<'_, '_>,
        row: &[Cell],
        layout: &[(usize, usize)],
    ) -> fmt::Result {
        let empty = Cell::default();
        let cells: Vec<(usize, &Cell, usize, Vec<String>)> = layout
            .iter()
            .map(|(column, columns)| {
                let cell = row.get(*column).unwrap_or(&empty);
                (*column, cell, *columns, cell.lines(*columns))
            })
            .collect();
        let lines = cells.iter().map(|(.., lines)| lines.len()).max().unwrap_or(0);
        for index in 0..lines {
            let mut line = String::new();
            let mut blanks = 0;
            for (column, cell, columns, lines) in &cells {
                let text = lines.get(index).map_or("", String::as_str);
                let fill = columns.saturating_sub(width(text));
                let (before, after) =
                    if cell.right || *column >= self.right_from { (fill, 0) } else { (0, fill) };
                blanks += before;
                if !text.is_empty() {
                    line.push_str(&" ".repeat(blanks));
                    line.push_str(&paint(self.style, cell.colour, cell.bold, text));
                    blanks = 0;
                }
                blanks += after + GAP;
            }
            f.line(&line)?;
        }
        Ok(())
    }

    /// The cells of a row in the columns that have no room, each below its row.
    fn write_below(
        &self,
        f: &mut Lines<'_, '_>,
        row: &[Cell],
        hidden: &[(usize, &str)],
    ) -> fmt::Result {
        let limit = self.style.width.unwrap_or(usize::MAX).saturating_sub(BELOW + INDENT);
        for (column, title) in hidden {
            let Some(cell) = row.get(*column).filter(|cell| !cell.text.is_empty()) else {
                continue;
            };
            for (index, text) in wrap(&format!("{title}: {}", cell.text), limit).iter().enumerate()
            {
                let indent = if index == 0 { BELOW } else { BELOW + INDENT };
                let text = paint(self.style, cell.colour, cell.bold, text);
                f.line(&format!("{:indent$}{text}", ""))?;
            }
        }
        Ok(())
    }

    /// The notes behind so many rows.
    fn write_notes(&self, f: &mut Lines<'_, '_>, rows: usize) -> fmt::Result {
        let here = self.notes.iter().filter(|(before, _)| *before == rows);
        here.map(|(_, text)| text).try_for_each(|text| f.prose(self.style, text))
    }

    fn write_stacked(&self, f: &mut Lines<'_, '_>, row: &[Cell]) -> fmt::Result {
        let limit = self.style.width.unwrap_or(usize::MAX).saturating_sub(INDENT);
        for (index, cell) in row.iter().enumerate().filter(|(_, cell)| !cell.text.is_empty()) {
            for text in cell.lines(limit) {
                let indent = if index == 0 { 0 } else { INDENT };
                let text = paint(self.style, cell.colour, cell.bold, &text);
                f.line(&format!("{:indent$}{text}", ""))?;
            }
        }
        Ok(())
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut lines = Lines { f, first: true };
        if self.is_stacked() {
            return self.rows.iter().try_for_each(|row| self.write_stacked(&mut lines, row));
        }
        let layout = self.layout();
        let is_shown = |column: usize| layout.iter().any(|(shown, _)| *shown == column);
        let hidden: Vec<(usize, &str)> = (self.header.iter().enumerate())
            .filter(|(column, title)| !is_shown(*column) && !title.text.is_empty())
            .map(|(column, title)| (column, title.text.as_str()))
            .collect();
        if !self.header.is_empty() && !self.header_hidden {
            self.write_row(&mut lines, &self.header, &layout)?;
        }
        self.write_notes(&mut lines, 0)?;
        for (index, row) in self.rows.iter().enumerate() {
            self.write_row(&mut lines, row, &layout)?;
            if self.below {
                self.write_below(&mut lines, row, &hidden)?;
            }
            self.write_notes(&mut lines, index + 1)?;
        }
        if !hidden.is_empty() && !self.below {
            let titles: Vec<&str> = hidden.iter().map(|(_, title)| *title).collect();
            lines.prose(self.style, &format!("(too narrow to show: {})", titles.join(", ")))?;
        }
        Ok(())
    }
}

/// Writes lines with newlines between them.
struct Lines<'f, 'b> {
    f: &'f mut fmt::Formatter<'b>,
    first: bool,
}

impl Lines<'_, '_> {
    fn line(&mut self, text: &str) -> fmt::Result {
        if !std::mem::take(&mut self.first) {
            self.f.write_str("\n")?;
        }
        self.f.write_str(text)
    }

    fn prose(&mut self, style: Style, text: &str) -> fmt::Result {
        wrap(text, style.width.unwrap_or(usize::MAX)).iter().try_for_each(|line| self.line(line))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn on(columns: usize) -> Style {
        Style { terminal: true, colour: false, width: Some(columns) }
    }

    fn devices(style: Style) -> Table {
        let mut rows = table(style, &["device", "uuid", "size", "note"]);
        rows.add_row([
            Cell::new("/dev/sda"),
            Cell::new("0a55aca7-9ba7-4b3f-9aa4-d3bbc0a41b7a"),
            number("1.00 TiB"),
            Cell::prose("the kernel accepts it, and says nothing more"),
        ]);
        rows.add_row([Cell::new("/dev/nvme0n1p1"), Cell::new("-"), number("16 GiB")]);
        rows
    }

    #[test]
    fn markdown_has_all_columns_and_no_cell_that_ends_one() {
        let mut rows = table(on(10), &["name", "count", "what"]);
        rows.add_row([Cell::new("a|b"), number(12), Cell::prose("some words")]);
        rows.add_row([Cell::new("c")]);
        let text = "| name | count | what |\n| --- | --: | --- |\n| a\\|b | 12 | some words |\n| c |  |  |\n";
        assert_eq!(rows.markdown(), text);
    }

    #[test]
    fn plain_columns_without_rules_or_trailing_blanks() {
        let wide = "\
device          uuid                                  size      note
/dev/sda        0a55aca7-9ba7-4b3f-9aa4-d3bbc0a41b7a  1.00 TiB  the kernel accepts it, and says nothing more
/dev/nvme0n1p1  -                                       16 GiB";
        assert_eq!(devices(Style::PLAIN).to_string(), wide);
        assert_eq!(devices(on(200)).to_string(), wide);
    }

    #[test]
    fn prose_wraps_before_a_column_is_lost() {
        let lines = devices(on(92)).to_string();
        assert!(lines.contains("accepts it, and\n"), "{lines}");
        assert!(!lines.contains("too narrow"), "{lines}");
        let narrow = "\
device          size
/dev/sda        1.00 TiB
/dev/nvme0n1p1    16 GiB
(too narrow to show:
uuid, note)";
        assert_eq!(devices(on(24)).lose_first(&["note", "uuid"]).to_string(), narrow);
    }

    #[test]
    fn columns_without_room_stand_below_their_rows() {
        let narrow = "\
device          size
/dev/sda        1.00 TiB
    uuid:
      0a55aca7-9ba7-4b3f-9aa4-d3bbc0a41b7a
    note: the kernel accepts
      it, and says nothing
      more
/dev/nvme0n1p1    16 GiB
    uuid: -
and 3 more of another kind";
        let mut made = devices(on(30)).lose_first(&["note", "uuid"]).rest_below();
        made.add_note("and 3 more of another kind");
        assert_eq!(made.to_string(), narrow);
        let mut wide = devices(on(200)).rest_below();
        assert_eq!(wide.to_string(), devices(on(200)).to_string());
        wide.add_note("and 3 more");
        assert_eq!(wide.to_string(), format!("{}\nand 3 more", devices(on(200))));
        assert_eq!(wide.markdown(), devices(on(200)).markdown());
    }

    #[test]
    fn values_go_below_their_names_where_they_do_not_fit_beside() {
        let mut facts = bare(on(40));
        facts.add_row(["set uuid", "0a55aca7-9ba7-4b3f-9aa4-d3bbc0a41b7a"]);
        assert_eq!(facts.to_string(), "set uuid\n  0a55aca7-9ba7-4b3f-9aa4-d3bbc0a41b7a");
    }

    #[test]
    fn colours_do_not_count() {
        let style = Style { terminal: true, colour: true, width: Some(80) };
        let mut rows = table(style, &["a", "b"]);
        rows.add_row([state(style, "ok", Color::Green), Cell::new("x")]);
        assert_eq!(rows.to_string(), "\x1b[1ma\x1b[0m   \x1b[1mb\x1b[0m\n\x1b[32mok\x1b[0m  x");
    }

    proptest! {
        /// At any width, every cell that is not prose and every word of prose is whole or absent, no
        /// line ends with a blank, and lines are too long only where a single piece is.
        #[test]
        fn nothing_is_broken_at_any_width(
            columns in 20usize..=250,
            rows in prop::collection::vec(
                ("/[a-z0-9/]{1,60}", any::<u128>(), any::<u64>(), "[a-z]{1,12}( [a-z0-9-]{1,40}){0,12}"),
                1..6,
            ),
            facts in any::<bool>(),
            below in any::<bool>(),
        ) {
            let mut made = if facts {
                bare(on(columns))
            } else {
                table(on(columns), &["path", "uuid", "count", "note"])
            };
            let uuid = |value: u128| {
                let hex = format!("{value:032x}");
                format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
            };
            let mut pieces = vec!["path".to_owned(), "uuid".into(), "count".into(), "note".into()];
            pieces.extend(["(too", "narrow", "to", "show:"].map(str::to_owned));
            for (path, id, count, note) in &rows {
                let (id, count) = (uuid(*id), count.to_string());
                if facts {
                    made.add_row([Cell::new(path), Cell::new(&id)]);
                    made.add_row([Cell::new("note"), Cell::prose(note)]);
                } else {
                    made.add_row([Cell::new(path), Cell::new(&id), number(&count), Cell::prose(note)]);
                }
                pieces.extend([path.clone(), id, count]);
                pieces.extend(note.split(' ').map(str::to_owned));
            }
            if below {
                made = made.rest_below();
                pieces.extend(["uuid:", "count:", "note:"].map(str::to_owned));
            }
            let text = made.to_string();
            for line in text.lines() {
                prop_assert_eq!(line.trim_end(), line);
                for word in line.split_whitespace() {
                    let bare = word.trim_end_matches([',', ')']);
                    prop_assert!(pieces.iter().any(|it| it == bare), "{} in\n{}", word, text);
                }
                prop_assert!(
                    width(line) <= columns || line.split_whitespace().count() == 1,
                    "{} columns of {}:\n{}", width(line), columns, text
                );
            }
            // The first column is always there.
            for (path, ..) in &rows {
                prop_assert!(text.contains(path.as_str()));
            }
            let words: Vec<&str> = text.split_whitespace().collect();
            for (_, id, count, note) in rows.iter().filter(|_| below && !facts) {
                let (id, count) = (uuid(*id), count.to_string());
                prop_assert!(words.contains(&id.as_str()) && words.contains(&count.as_str()), "{text}");
                prop_assert!(note.split(' ').all(|word| words.contains(&word)), "{text}");
            }
        }
    }
}
