//! What lists are made of: places of volumes, orders.

pub use bcache_cli::lists::BucketList;
use clap::ValueEnum;

/// A place of a volume, such as `data:4096+8`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LookupPlace {
    /// Slot, UUID or label.
    pub volume: String,
    /// First sector.
    pub sector: u64,
    /// Sectors, at least 1.
    pub len: u64,
}

/// Why a place is none.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{text}\" is not a place on a volume; write VOLUME:SECTOR or VOLUME:SECTOR+LEN, where VOLUME \
         is a slot, a UUID or a label"
)]
pub struct LookupPlaceError {
    text: String,
}

impl std::str::FromStr for LookupPlace {
    type Err = LookupPlaceError;

    fn from_str(text: &str) -> Result<Self, LookupPlaceError> {
        let parse = || {
            // A label may have colons.
            let (volume, place) = text.rsplit_once(':')?;
            let (sector, len) = place.split_once('+').unwrap_or((place, "1"));
            let (sector, len) = (sector.parse().ok()?, len.parse().ok().filter(|len| *len > 0)?);
            (!volume.is_empty()).then(|| Self { volume: volume.to_owned(), sector, len })
        };
        parse().ok_or_else(|| LookupPlaceError { text: text.to_owned() })
    }
}

/// What buckets are sorted by.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Sort {
    /// Coldest first
    Prio,
    /// Those with the most room before the gen limit first
    Gen,
    /// Emptiest first
    Sectors,
    /// By number
    #[default]
    Bucket,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_have_a_volume_and_a_sector() {
        let place =
            |volume: &str, sector, len| Ok(LookupPlace { volume: volume.to_owned(), sector, len });
        assert_eq!("0:16".parse(), place("0", 16, 1));
        assert_eq!("a:b:16+8".parse(), place("a:b", 16, 8));
        for text in ["", "0", ":5", "0:", "0:5+0", "0:-5", "0:5+"] {
            assert!(text.parse::<LookupPlace>().is_err(), "{text}");
        }
    }
}
