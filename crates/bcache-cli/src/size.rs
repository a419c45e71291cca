//! Sizes on the command line.
//!
//! A number and a binary unit: `512k`, `1MiB`, `4M`, `8g`. Powers of 1024 whatever the spelling, as
//! make-bcache takes them. Anything after the unit, and units that make no sense for a bucket, are
//! errors that say what is accepted.

use bcache_core::units::{SECTOR_BYTES, Sectors};

/// Why a size is not one.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Not a whole number and a unit.
    #[error("\"{text}\" is not a size; write a whole number and k, M, G or T, as in 512k or 1MiB")]
    NotASize {
        /// What was given.
        text: String,
    },
    /// Zero.
    #[error("a size of 0 makes no sense")]
    Zero,
    /// Over 2^64 - 1 bytes.
    #[error("\"{text}\" is too large")]
    TooLarge {
        /// What was given.
        text: String,
    },
    /// Not a whole number of sectors.
    #[error("\"{text}\" is no whole number of sectors of 512 bytes")]
    NotSectors {
        /// What was given.
        text: String,
    },
}

/// A size in bytes; a number without a unit is bytes.
pub fn parse_bytes(text: &str) -> Result<u64, SizeError> {
    let not_a_size = || SizeError::NotASize { text: text.to_owned() };
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    // parse-size knows units; its freedom with fractions, exponents, spaces and underscores is more
    // than a size that formats a disk should have.
    if number.is_empty() || !unit.bytes().all(|byte| byte.is_ascii_alphabetic()) {
        return Err(not_a_size());
    }
    let parsed = parse_size::Config::new().with_binary().parse_size(text);
    match parsed {
        Ok(0) => Err(SizeError::Zero),
        Ok(bytes) => Ok(bytes),
        Err(parse_size::Error::PosOverflow) => Err(SizeError::TooLarge { text: text.to_owned() }),
        Err(_) => Err(not_a_size()),
    }
}

/// A size or position in sectors; a number without a unit is sectors.
pub fn parse_sectors(text: &str) -> Result<Sectors, SizeError> {
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        let sectors = text.parse().map_err(|_| SizeError::TooLarge { text: text.to_owned() })?;
        return Ok(Sectors(sectors));
    }
    let bytes = parse_bytes(text)?;
    if bytes % SECTOR_BYTES != 0 {
        return Err(SizeError::NotSectors { text: text.to_owned() });
    }
    Ok(Sectors(bytes / SECTOR_BYTES))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_binary() {
        for (text, bytes) in [
            ("512", 512),
            ("512k", 512 << 10),
            ("512K", 512 << 10),
            ("1MiB", 1 << 20),
            ("4M", 4 << 20),
            ("4MB", 4 << 20),
            ("8g", 8 << 30),
            ("2t", 2 << 40),
        ] {
            assert_eq!(parse_bytes(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for text in
            ["", "k", "64kfoo", "16x", "1.5M", "1e3", "1_000", "-4k", "+4k", " 4k", "4 k", "0x10"]
        {
            assert!(
                matches!(parse_bytes(text), Err(SizeError::NotASize { .. })),
                "{text}: {:?}",
                parse_bytes(text)
            );
        }
        assert_eq!(parse_bytes("0"), Err(SizeError::Zero));
        assert!(matches!(parse_bytes("99999999999T"), Err(SizeError::TooLarge { .. })));
    }

    #[test]
    fn bare_numbers_of_sectors_are_sectors() {
        assert_eq!(parse_sectors("2048"), Ok(Sectors(2048)));
        assert_eq!(parse_sectors("1M"), Ok(Sectors(2048)));
        assert!(matches!(parse_sectors("100B"), Err(SizeError::NotSectors { .. })));
    }
}
