//! Words, counts and dates.

use std::error::Error;

pub use bcache_core::units::date;
use unicode_width::UnicodeWidthStr;

/// `count` with its noun: `1 sector`, `2 sectors`. `noun` is the singular, of which the plural ends
/// in "s", "es" or "ies".
pub fn plural(count: u64, noun: &str) -> String {
    if count == 1 {
        return format!("1 {noun}");
    }
    let ends = |endings: &[&str]| endings.iter().any(|ending| noun.ends_with(ending));
    match noun.strip_suffix('y') {
        Some(stem) if !ends(&["ay", "ey", "oy", "uy"]) => format!("{count} {stem}ies"),
        _ if ends(&["s", "x", "ch", "sh"]) => format!("{count} {noun}es"),
        _ => format!("{count} {noun}s"),
    }
}

/// An error and its causes in one line. A cause that the text before it ends with is not repeated.
pub fn with_causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}

/// The day of a moment, in UTC: `2026-11-27`.
pub fn day(seconds_since_1970: u32) -> String {
    let mut text = date(seconds_since_1970);
    text.truncate("2026-11-27".len());
    text
}

/// Columns that `text` takes on a terminal.
pub fn width(text: &str) -> usize {
    text.width()
}

/// `text` in lines of at most `columns`, broken between words. A word that is longer than that has a
/// line of its own; words in single quotes, as a shell wants them, stay together.
pub fn wrap(text: &str, columns: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut line = String::new();
    for word in words(text) {
        if !line.is_empty() && width(&line) + 1 + width(word) > columns {
            lines.push(std::mem::take(&mut line));
        }
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    if !line.is_empty() || lines.is_empty() {
        lines.push(line);
    }
    lines
}

/// The words of `text`, what is in single quotes being one.
pub(crate) fn words(text: &str) -> Vec<&str> {
    let mut words = Vec::new();
    let mut rest = text.trim_start();
    while !rest.is_empty() {
        let end = quoted(rest).unwrap_or(0);
        let (_, tail) = rest.split_at(end);
        let end = end + tail.find(' ').unwrap_or(tail.len());
        let (word, tail) = rest.split_at(end);
        words.push(word);
        rest = tail.trim_start_matches(' ');
    }
    words
}

/// Bytes of the quoted text that `text` begins with, both quotes included. An apostrophe has no
/// partner that ends a word.
fn quoted(text: &str) -> Option<usize> {
    let inside = text.strip_prefix('\'')?;
    inside.match_indices('\'').map(|(index, _)| index + 2).find(|end| {
        let after = text.get(*end..).unwrap_or_default();
        after.chars().next().is_none_or(|next| next == ' ' || ".,;:)".contains(next))
    })
}

/// `text` without control characters: each is shown as an escape.
pub fn printable(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_have_their_nouns() {
        for (count, noun, text) in [
            (0, "sector", "0 sectors"),
            (1, "sector", "1 sector"),
            (2, "sector", "2 sectors"),
            (1, "entry", "1 entry"),
            (7, "entry", "7 entries"),
            (3, "key", "3 keys"),
            (2, "flush", "2 flushes"),
        ] {
            assert_eq!(plural(count, noun), text);
        }
    }

    #[test]
    fn moments_are_dates() {
        assert_eq!(date(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(date(1_795_343_865), "2026-11-22 10:37:45 UTC");
        assert_eq!(day(1_795_343_865), "2026-11-22");
        assert_eq!(date(u32::MAX), "2106-02-07 06:28:15 UTC");
    }

    #[test]
    fn lines_are_broken_between_words() {
        assert_eq!(wrap("the cache has dirty data", 9), ["the cache", "has dirty", "data"]);
        assert_eq!(wrap("a longer-than-that b", 5), ["a", "longer-than-that", "b"]);
        assert_eq!(wrap("", 5), [""]);
        assert_eq!(wrap("mount '/a path/b' now", 5), ["mount", "'/a path/b'", "now"]);
        assert_eq!(wrap("the kernels' own 'word'.", 12), ["the kernels'", "own 'word'."]);
        assert_eq!(wrap("'tis a lone one", 6), ["'tis a", "lone", "one"]);
    }

    #[test]
    fn control_characters_are_shown() {
        assert_eq!(printable("a\x1b[1m\nb"), "a\\u{1b}[1m\\nb");
        assert_eq!(printable("ä/b c"), "ä/b c");
    }
}
