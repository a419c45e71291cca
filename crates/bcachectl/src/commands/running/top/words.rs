//! Figures as short words, for columns that are narrow.

use bcache_core::running::Rounded;
use bcache_core::units::format_bytes;

use super::figures::{DeviceRow, SetRow};
use crate::commands::running::status::CleanIn;

/// The columns of sets, each with its width; names are at the left, numbers at the right.
pub(super) const SET_COLUMNS: [(&str, u16); 9] = [
    ("SET", 8),
    ("CACHE", 9),
    ("AVAIL", 6),
    ("READ/s", 7),
    ("WRITE/s", 7),
    ("HITS", 6),
    ("GC AGE", 7),
    ("NODES", 8),
    ("JOURNAL", 7),
];

/// The columns of devices.
pub(super) const DEVICE_COLUMNS: [(&str, u16); 9] = [
    ("DEVICE", 9),
    ("STATE", 14),
    ("READ/s", 7),
    ("WRITE/s", 7),
    ("HITS", 6),
    ("DISK-R/s", 8),
    ("DISK-W/s", 8),
    ("DIRTY", 6),
    ("WAIT", 5),
];

/// How many of the first columns are names.
pub(super) const NAMES: usize = 2;

const NONE: &str = "-";

/// A number of bytes in at most five characters: 512, 1.2K, 345M.
pub(super) fn short(bytes: f64) -> String {
    let mut value = bytes.max(0.0);
    let mut unit = "";
    for next in ["K", "M", "G", "T", "P"] {
        if value < 999.5 {
            break;
        }
        (value, unit) = (value / 1024.0, next);
    }
    if unit.is_empty() || value >= 9.95 {
        format!("{value:.0}{unit}")
    } else {
        format!("{value:.1}{unit}")
    }
}

fn rounded(value: Option<Rounded>) -> String {
    #[expect(clippy::cast_precision_loss, reason = "a size for people")]
    value.map_or_else(|| NONE.to_owned(), |it| short(it.at_least() as f64))
}

fn bytes(value: Option<f64>) -> String {
    value.map_or_else(|| NONE.to_owned(), short)
}

fn number(value: Option<u64>) -> String {
    value.map_or_else(|| NONE.to_owned(), |it| it.to_string())
}

fn percent(ratio: Option<f64>) -> String {
    ratio.map_or_else(|| NONE.to_owned(), |it| format!("{:.1}%", it * 100.0))
}

/// A time in at most four characters.
pub(super) fn age(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds}s"),
        120..=7199 => format!("{}m", seconds / 60),
        7200..=172_799 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86400),
    }
}

/// The cells of a set.
pub(super) fn of_set(row: &SetRow) -> [String; 9] {
    let short_uuid = row.uuid.simple().to_string();
    let age = match (row.gc_age_seconds, row.gc_ended) {
        (None, _) => "never".to_owned(),
        (Some(_), true) => "now".to_owned(),
        (Some(seconds), false) => age(seconds),
    };
    [
        short_uuid.get(..8).unwrap_or_default().to_owned(),
        row.cache.clone().unwrap_or_else(|| NONE.to_owned()),
        row.available_percent.map_or_else(|| NONE.to_owned(), |it| format!("{it}%")),
        bytes(row.read),
        bytes(row.written),
        percent(row.hit_ratio),
        age,
        number(row.btree_nodes),
        number(row.journal_entries),
    ]
}

/// The cells of a device.
pub(super) fn of_device(row: &DeviceRow) -> [String; 9] {
    let rates = row.rates.as_ref();
    let state = if row.stalled { "STALLED".to_owned() } else { row.state.to_string() };
    [
        row.name.clone(),
        state,
        bytes(rates.map(|it| it.read_bytes)),
        bytes(rates.map(|it| it.written_bytes)),
        percent(rates.and_then(|it| it.byte_hit_ratio)),
        bytes(rates.map(|it| it.backing_read_bytes)),
        bytes(rates.map(|it| it.backing_written_bytes)),
        rounded(row.dirty),
        number(row.in_flight),
    ]
}

/// What else there is to say of a device, in two lines.
pub(super) fn details(row: &DeviceRow) -> [String; 2] {
    let label = row.label.as_ref().map(|it| format!(" \"{it}\"")).unwrap_or_default();
    let set = row.set.map_or_else(|| "no set".to_owned(), |it| format!("set {it}"));
    let mode = row.mode.as_deref().unwrap_or("mode unknown");
    let errors = row.io_errors.filter(|it| *it > 0).map(|it| format!(", {it} I/O errors"));
    let size = |value: Rounded| format_bytes(value.at_least());
    let mut second = vec![mode.to_owned()];
    match (row.dirty, row.dirty_target) {
        (Some(dirty), Some(target)) => {
            second.push(format!("dirty {} of a target of {}", size(dirty), size(target)));
        }
        (Some(dirty), None) => second.push(format!("dirty {}", size(dirty))),
        (None, _) => {}
    }
    match row.clean_in {
        Some(CleanIn::Never) => second.push("writeback is off".to_owned()),
        Some(CleanIn::AfterNextWrite) => {
            second.push("written back after the next write".to_owned());
        }
        Some(CleanIn::FullSpeed) => second.push("written back at full speed".to_owned()),
        Some(CleanIn::WhenIdle) => second.push("written back when idle".to_owned()),
        Some(CleanIn::Seconds { seconds }) => {
            let rate = row.writeback_rate.map(|it| format!("{}/s, ", size(it)));
            second.push(format!("writeback {}clean in {}", rate.unwrap_or_default(), age(seconds)));
        }
        Some(CleanIn::Clean) | None => {}
    }
    let first =
        format!("{} on {}{label}, {set}{}", row.name, row.backing, errors.unwrap_or_default());
    [first, second.join(", ")]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_stay_short() {
        for (bytes, text) in [
            (0.0, "0"),
            (999.0, "999"),
            (1000.0, "1.0K"),
            (1536.0, "1.5K"),
            (10240.0, "10K"),
            (1023.0 * 1024.0, "1.0M"),
            (345.0 * 1_048_576.0, "345M"),
            (2.5 * 1_099_511_627_776.0, "2.5T"),
        ] {
            assert_eq!(short(bytes), text);
        }
        assert_eq!(["100s", "5m", "3h", "9d"], [100, 300, 3 * 3600, 9 * 86400].map(age));
    }
}
