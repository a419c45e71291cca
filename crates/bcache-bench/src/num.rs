//! Between whole numbers and floating point, in one place: where figures are compared and drawn, the
//! 53 bits of an `f64` are more than any measurement has.

/// `value` as a float; exact up to 2^53.
#[expect(clippy::cast_precision_loss, reason = "figures to draw and to divide, not to count with")]
pub const fn float(value: u64) -> f64 {
    value as f64
}

/// `value` without its fraction; 0 where it is negative or not a number, the largest number where it
/// is larger.
#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a float to whole number cast saturates, which is what this function is for"
)]
pub const fn whole(value: f64) -> u64 {
    value as u64
}

/// `part / whole`, or `None` where there is no whole.
pub fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| float(part) / float(whole))
}

/// A time as people write it, three digits and a unit: `412 ns`, `3.05 ms`.
pub fn format_ns(ns: f64) -> String {
    const UNITS: [(f64, &str); 4] = [(1.0, "ns"), (1e3, "µs"), (1e6, "ms"), (1e9, "s")];
    let mut scaled = (ns, "ns");
    for (scale, name) in UNITS {
        // A figure that would round to 1000 has the next unit already.
        if ns >= scale * 0.9995 {
            scaled = (ns / scale, name);
        }
    }
    let (value, name) = scaled;
    let decimals = match value {
        _ if name == "ns" && (value.fract() == 0.0 || value >= 99.95) => 0,
        v if v < 9.995 => 2,
        v if v < 99.95 => 1,
        _ => 0,
    };
    format!("{value:.decimals$} {name}")
}

/// A count with its thousands apart: `1,048,576`.
pub fn format_count(count: u64) -> String {
    let digits = count.to_string();
    let mut text = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index) % 3 == 0 {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_three_digits() {
        for (ns, text) in [
            (0.0, "0 ns"),
            (7.0, "7 ns"),
            (7.25, "7.25 ns"),
            (412.0, "412 ns"),
            (999.4, "999 ns"),
            (999.9, "1.00 µs"),
            (1000.0, "1.00 µs"),
            (12_345.0, "12.3 µs"),
            (99_960.0, "100 µs"),
            (3_050_000.0, "3.05 ms"),
            (999_999_999.0, "1.00 s"),
            (3.6e12, "3600 s"),
        ] {
            assert_eq!(format_ns(ns), text, "{ns}");
        }
    }

    #[test]
    fn thousands_are_apart() {
        for (count, text) in [(0, "0"), (999, "999"), (1000, "1,000"), (36_864_000, "36,864,000")] {
            assert_eq!(format_count(count), text);
        }
    }

    #[test]
    fn casts_saturate() {
        assert_eq!(whole(-1.0), 0);
        assert_eq!(whole(f64::NAN), 0);
        assert_eq!(whole(f64::INFINITY), u64::MAX);
        assert_eq!(whole(2.9), 2);
        assert_eq!(ratio(1, 0), None);
        assert_eq!(ratio(1, 4), Some(0.25));
    }
}
