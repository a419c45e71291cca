//! Tables: with borders on a terminal, plain columns otherwise.

use comfy_table::{Attribute, Cell, CellAlignment, Color, ContentArrangement, Table, presets};

use crate::out::Style;

/// A table with a header row.
pub fn table(style: Style, header: &[&str]) -> Table {
    let mut table = bare(style);
    table.set_header(header.iter().map(|title| heading(style, title)));
    table
}

/// Tables on a terminal are never squeezed below this many columns.
const WIDTH_MIN: u16 = 40;

/// A table without a header: names on the left, values on the right.
pub fn bare(style: Style) -> Table {
    let mut table = Table::new();
    if style.borders {
        table
            .load_preset(presets::UTF8_HORIZONTAL_ONLY)
            .set_content_arrangement(ContentArrangement::Dynamic);
        // A serial console says that it has no columns at all; a column of single letters helps
        // nobody.
        if table.width().is_none_or(|width| width < WIDTH_MIN) {
            table.set_width(WIDTH_MIN);
        }
    } else {
        table.load_preset(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    }
    if !style.colour {
        table.force_no_tty();
    }
    table
}

/// A title.
pub fn heading(style: Style, text: &str) -> Cell {
    let cell = Cell::new(text);
    if style.colour { cell.add_attribute(Attribute::Bold) } else { cell }
}

/// A number, to the right.
pub fn number(value: impl ToString) -> Cell {
    Cell::new(value).set_alignment(CellAlignment::Right)
}

/// Something good, bad or in between.
pub fn state(style: Style, text: impl ToString, colour: Color) -> Cell {
    let cell = Cell::new(text);
    if style.colour { cell.fg(colour) } else { cell }
}
