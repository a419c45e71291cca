//! Numbers as traces write them.

/// Seconds with a fraction (`12.000345`), in ns; digits beyond ns are dropped.
pub(super) fn seconds_ns(text: &str) -> Option<u64> {
    decimal_ns(text, 9)
}

/// A number with a fraction in units of 10^`exponent` ns, in ns. An exponent is read too (`1.2e9`).
pub(super) fn decimal_ns(text: &str, exponent: u32) -> Option<u64> {
    if text.contains(['e', 'E']) {
        let value: f64 = text.parse().ok()?;
        let ns = value * 10f64.powi(i32::try_from(exponent).ok()?);
        // Within 2^53 a float is exact enough for ns.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
        return (ns.is_finite() && (0.0..1.8e19).contains(&ns)).then_some(ns as u64);
    }
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    if whole.is_empty() && fraction.is_empty() {
        return None;
    }
    let whole: u64 = if whole.is_empty() { 0 } else { unsigned(whole)? };
    let mut ns = whole.checked_mul(10u64.checked_pow(exponent)?)?;
    let mut unit = 10u64.checked_pow(exponent)?;
    for digit in fraction.chars() {
        unit /= 10;
        ns = ns.checked_add(u64::from(digit.to_digit(10)?).checked_mul(unit)?)?;
    }
    Some(ns)
}

/// A whole number without a sign, decimal or 0x and hexadecimal.
pub(super) fn unsigned(text: &str) -> Option<u64> {
    if let Some(hex) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return u64::from_str_radix(hex, 16).ok();
    }
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

/// The same in 32 bits.
pub(super) fn unsigned32(text: &str) -> Option<u32> {
    unsigned(text).and_then(|value| u32::try_from(value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decimals_are_exact() {
        assert_eq!(seconds_ns("12.000345001"), Some(12_000_345_001));
        assert_eq!(seconds_ns("0.1"), Some(100_000_000));
        assert_eq!(seconds_ns("7"), Some(7_000_000_000));
        assert_eq!(seconds_ns(".5"), Some(500_000_000));
        assert_eq!(seconds_ns("1.23456789012"), Some(1_234_567_890));
        assert_eq!(seconds_ns("1.5e3"), Some(1_500_000_000_000));
        for text in ["", ".", "-1", "1.x", "x", "nan", "99999999999999", "1e300"] {
            assert_eq!(seconds_ns(text), None, "{text}");
        }
        assert_eq!((unsigned("0x1f"), unsigned("+5"), unsigned("")), (Some(31), None, None));
    }
}
