//! The kernel's rounded numbers: `4.0M`, `512.0k`, `-1.5G`.
//!
//! bcache prints sizes and rates with one decimal and a unit of 1024, cut off rather than rounded
//! (docs/running.md §2). Here they are ranges: the true value lies in them for certain.

use std::fmt;
use std::str::FromStr;

use serde::Serialize;

/// Units in the kernel's order; one of them is always there.
const UNITS: &str = "kMGTPEZY";

/// A number that the kernel rounded: the true value is at least [`low`](Self::low) and at most
/// [`high`](Self::high).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Rounded {
    low: i64,
    high: i64,
}

/// Why a text is no rounded number of the kernel.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is no number as bcache prints them")]
pub struct RoundedError {
    /// The text.
    pub text: String,
}

impl Rounded {
    /// A value that is known exactly.
    pub const fn exact(value: i64) -> Self {
        Self { low: value, high: value }
    }

    /// The least that the true value can be.
    pub const fn low(self) -> i64 {
        self.low
    }

    /// The most that the true value can be.
    pub const fn high(self) -> i64 {
        self.high
    }

    /// [`low`](Self::low) of a number that cannot be negative.
    pub fn at_least(self) -> u64 {
        u64::try_from(self.low).unwrap_or(0)
    }

    /// [`high`](Self::high) of a number that cannot be negative.
    pub fn at_most(self) -> u64 {
        u64::try_from(self.high).unwrap_or(0)
    }

    /// Whether the true value can be `value`.
    pub fn contains(self, value: u64) -> bool {
        i64::try_from(value).is_ok_and(|value| self.low <= value && value <= self.high)
    }

    /// Whether the kernel printed `0.0`: for a number of whole sectors this is exactly zero.
    pub const fn is_zero(self) -> bool {
        self.low <= 0 && self.high >= 0
    }

    /// The value in the range that a person most likely chose: the multiple of the greatest power
    /// of two.
    pub fn roundest(self) -> i64 {
        for shift in (0..62).rev() {
            let unit = 1i64 << shift;
            let Some(next) = self.low.checked_add(unit - 1) else { continue };
            let multiple = next.div_euclid(unit) * unit;
            if multiple <= self.high {
                return multiple;
            }
        }
        self.low
    }
}

impl FromStr for Rounded {
    type Err = RoundedError;

    fn from_str(text: &str) -> Result<Self, RoundedError> {
        parse(text).ok_or_else(|| RoundedError { text: text.to_owned() })
    }
}

fn parse(text: &str) -> Option<Rounded> {
    let (negative, rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text),
    };
    let unit = rest.chars().last()?;
    let power = UNITS.find(unit)?;
    let (whole, tenths) = rest.strip_suffix(unit)?.split_once('.')?;
    let is_digits = |text: &str| !text.is_empty() && text.bytes().all(|it| it.is_ascii_digit());
    if !is_digits(whole) || !is_digits(tenths) || tenths.len() != 1 {
        return None;
    }
    let (whole, tenths): (i128, i128) = (whole.parse().ok()?, tenths.parse().ok()?);
    // The decimal is that of 1/1024 parts of the unit: D is printed for all from 1024 D / 10 up.
    let below = 1i128.checked_shl(u32::try_from(power * 10).ok()?)?;
    let parts = |tenths: i128| whole.checked_mul(1024)?.checked_add((tenths * 1024 + 9) / 10);
    // The kernel divides again only from 1000 of the next smaller unit on, and stops below 1000.
    let least = if power > 0 { 1000 } else { 0 };
    let (first, last) = (parts(tenths)?.max(least), parts(tenths + 1)? - 1);
    if first > last || (whole >= 1000 && power + 1 < UNITS.len()) {
        return None;
    }
    let (low, high) = (first.checked_mul(below)?, (last + 1).checked_mul(below)? - 1);
    let (low, high) = if negative { (-high, -low) } else { (low, high) };
    Some(Rounded { low: i64::try_from(low).ok()?, high: i64::try_from(high).ok()? })
}

impl fmt::Display for Rounded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.low, self.high)
    }
}

/// `value` as the kernel prints it.
#[cfg(test)]
fn as_the_kernel_prints(value: i64) -> String {
    let sign = if value < 0 { "-" } else { "" };
    let mut whole = value.unsigned_abs();
    let mut part = 0;
    let mut unit = '?';
    for letter in UNITS.chars() {
        unit = letter;
        part = whole & 1023;
        whole >>= 10;
        if whole < 1000 {
            break;
        }
    }
    format!("{sign}{whole}.{}{unit}", (part * 10) >> 10)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn known_numbers_have_the_right_range() {
        for (text, low, high) in [
            ("0.0k", 0, 102),
            ("0.5k", 512, 614),
            ("4.0M", 4 << 20, (4 << 20) + (103 << 10) - 1),
            ("0.9M", 1000 << 10, (1 << 20) - 1),
            ("512.0k", 512 << 10, (512 << 10) + 102),
        ] {
            let rounded: Rounded = text.parse().unwrap();
            assert_eq!((rounded.low(), rounded.high()), (low, high), "{text}");
        }
        // 1000 KiB is printed as 0.9M: the kernel goes on to divide while there are four digits.
        assert_eq!(as_the_kernel_prints(1000 << 10), "0.9M");
        assert_eq!(as_the_kernel_prints(0), "0.0k");
        assert_eq!(as_the_kernel_prints(-(3 << 20) / 2), "-1.5M");
    }

    #[test]
    fn anything_else_is_none() {
        for text in [
            "", "k", "4", "4.0", "4M", "4.00M", "4.M", ".5k", "+1.0k", "1.0x", "1.0Y", "4.0M ",
            "0.8M", "1000.0k",
        ] {
            assert!(text.parse::<Rounded>().is_err(), "{text}");
        }
    }

    #[test]
    fn the_roundest_value_is_the_one_that_was_written() {
        for value in [4 << 20, 512 << 10, 1 << 30, 4096, 3 << 20] {
            let read: Rounded = as_the_kernel_prints(value).parse().unwrap();
            assert_eq!(read.roundest(), value);
        }
    }

    proptest! {
        #[test]
        fn the_range_holds_exactly_what_prints_like_this(value in -(1i64 << 60)..1 << 60) {
            let text = as_the_kernel_prints(value);
            let range: Rounded = text.parse().unwrap();
            prop_assert!(range.low() <= value && value <= range.high());
            // The values at its ends print the same, those past them do not.
            prop_assert_eq!(&as_the_kernel_prints(range.low()), &text);
            prop_assert_eq!(&as_the_kernel_prints(range.high()), &text);
            if range.low() > 0 {
                prop_assert_ne!(&as_the_kernel_prints(range.low() - 1), &text);
                prop_assert_ne!(&as_the_kernel_prints(range.high() + 1), &text);
            }
            let roundest = range.roundest();
            prop_assert!(range.low() <= roundest && roundest <= range.high());
        }
    }
}
