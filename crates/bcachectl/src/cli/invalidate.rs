//! Options of `bcachectl invalidate`.

use std::path::PathBuf;

use bcache_cli::lists::BucketList;
use bcache_cli::policy::PolicyName;
use bcache_cli::size::parse_sectors;
use bcache_core::ops::invalidate::{Amount, Selection};
use bcache_core::units::Sectors;
use clap::{ArgGroup, Args};

use super::WriteArgs;

/// Selections that a range of a volume says nothing about. The parser passes over what an option
/// requires where that conflicts with what is given.
const NOT_VOLUME: [&str; 5] = ["bucket", "sectors", "coldest", "all_clean", "policy"];

/// Selections that a policy's options say nothing about.
const NOT_POLICY: [&str; 5] = ["bucket", "sectors", "volume", "coldest", "all_clean"];

/// Options of `bcachectl invalidate`.
#[derive(Debug, Args)]
#[command(group = ArgGroup::new("selection").required(true))]
pub struct InvalidateArgs {
    /// The cache device, or an image file of one
    #[arg(value_name = "DEV")]
    pub device: PathBuf,

    /// Buckets by number: 5,10-20
    #[arg(long, value_name = "LIST", group = "selection")]
    bucket: Option<BucketList>,

    /// The buckets that cover these sectors of the cache device: 81920+8
    #[arg(long, value_name = "START+LEN", group = "selection", value_parser = parse_range)]
    sectors: Option<SectorRange>,

    /// The buckets with clean data of one volume
    #[arg(long, value_name = "UUID|LABEL|SLOT", group = "selection")]
    volume: Option<String>,

    /// Only the buckets that cache these sectors of the volume
    #[arg(long, value_name = "START+LEN", requires = "volume", conflicts_with_all = NOT_VOLUME, value_parser = parse_range)]
    range: Option<SectorRange>,

    /// The least recently used buckets with clean data: N of them, or P percent
    #[arg(long, value_name = "N|P%", group = "selection", value_parser = parse_amount)]
    coldest: Option<Amount>,

    /// All buckets with clean data
    #[arg(long, group = "selection")]
    all_clean: bool,

    /// The buckets that the kernel's allocator would take next with this policy
    #[arg(long, group = "selection", requires = "count", value_enum)]
    policy: Option<PolicyName>,

    /// How many buckets the policy takes
    #[arg(long, value_name = "N", requires = "policy", conflicts_with_all = NOT_POLICY)]
    count: Option<u64>,

    /// Seed of the policy random [default: 0]
    #[arg(long, value_name = "S", requires = "policy", conflicts_with_all = NOT_POLICY)]
    seed: Option<u64>,

    /// If some of the named buckets are refused, invalidate the others
    #[arg(long)]
    pub skip_refused: bool,

    /// What the commands have that write
    #[command(flatten)]
    pub write: WriteArgs,
}

/// First sector and number of sectors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SectorRange(Sectors, Sectors);

impl InvalidateArgs {
    /// Which buckets are meant; `None` where no option says, which the parser does not let pass.
    pub fn selection(&self) -> Option<Selection> {
        if let Some(buckets) = &self.bucket {
            return Some(Selection::Buckets(buckets.ranges().collect()));
        }
        if let Some(SectorRange(start, len)) = self.sectors {
            return Some(Selection::Sectors { start, len });
        }
        if let Some(volume) = &self.volume {
            let range = self.range.map(|SectorRange(start, len)| (start, len));
            return Some(Selection::Volume { volume: volume.clone(), range });
        }
        if let Some(amount) = self.coldest {
            return Some(Selection::Coldest(amount));
        }
        if let (Some(policy), Some(count)) = (self.policy, self.count) {
            let seed = self.seed.unwrap_or(0);
            return Some(Selection::Policy { policy: policy.into(), count, seed });
        }
        self.all_clean.then_some(Selection::AllClean)
    }
}

/// Why an option's value is none.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum ValueError {
    #[error("write the first sector and how many: START+LEN, as in 81920+8")]
    NoPlus,
    #[error("a range of 0 sectors is empty")]
    EmptyRange,
    #[error("the range ends past sector 2^64")]
    TooLong,
    #[error("write a number of buckets, or a whole percentage from 1% to 100%")]
    Amount,
}

fn parse_range(text: &str) -> Result<SectorRange, anyhow::Error> {
    let (start, len) = text.split_once('+').ok_or(ValueError::NoPlus)?;
    let start = if start == "0" { Sectors(0) } else { parse_sectors(start)? };
    let len = parse_sectors(len)?;
    if len.0 == 0 {
        return Err(ValueError::EmptyRange.into());
    }
    start.checked_add(len).ok_or(ValueError::TooLong)?;
    Ok(SectorRange(start, len))
}

fn parse_amount(text: &str) -> Result<Amount, ValueError> {
    let (digits, percent) = match text.strip_suffix('%') {
        Some(digits) => (digits, true),
        None => (text, false),
    };
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(ValueError::Amount);
    }
    let amount = if percent {
        digits.parse().ok().filter(|percent| (1..=100).contains(percent)).map(Amount::Percent)
    } else {
        digits.parse().ok().map(Amount::Count)
    };
    amount.ok_or(ValueError::Amount)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_amounts() {
        let range = |text| parse_range(text).ok();
        assert_eq!(range("81920+8"), Some(SectorRange(Sectors(81920), Sectors(8))));
        assert_eq!(range("0+1M"), Some(SectorRange(Sectors(0), Sectors(2048))));
        for text in ["", "5", "5+", "+5", "5+0", "5-6", "a+b", "18446744073709551615+8"] {
            assert_eq!(range(text), None, "{text}");
        }
        assert_eq!(parse_amount("30%"), Ok(Amount::Percent(30)));
        assert_eq!(parse_amount("30"), Ok(Amount::Count(30)));
        for text in ["", "%", "0%", "101%", "-1", "1.5%", "x", "30 %"] {
            assert_eq!(parse_amount(text), Err(ValueError::Amount), "{text}");
        }
    }
}
