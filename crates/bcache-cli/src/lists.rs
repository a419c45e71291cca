//! Lists on the command line.

use std::ops::RangeInclusive;

/// Numbers of buckets, such as `5,10-20`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BucketList {
    /// First and last of each run, ascending and apart.
    runs: Vec<(u64, u64)>,
}

/// Why a text is not a list of buckets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BucketListError {
    /// Not a number, or a range of two.
    #[error("\"{text}\" is not a bucket number or a range of them, as in 5,10-20")]
    NotABucket {
        /// What was given.
        text: String,
    },
    /// A range that ends before it starts.
    #[error("the range {first}-{last} ends before it begins")]
    Backwards {
        /// First number.
        first: u64,
        /// Last number.
        last: u64,
    },
}

impl BucketList {
    /// Whether `bucket` is in it.
    pub fn contains(&self, bucket: u64) -> bool {
        let after = self.runs.partition_point(|(first, _)| *first <= bucket);
        after
            .checked_sub(1)
            .and_then(|index| self.runs.get(index))
            .is_some_and(|(_, last)| bucket <= *last)
    }

    /// Its numbers below `end`, ascending.
    pub fn numbers(&self, end: u64) -> impl Iterator<Item = u64> + '_ {
        self.runs.iter().flat_map(move |(first, last)| *first..last.saturating_add(1).min(end))
    }

    /// Its runs of numbers, ascending and apart.
    pub fn ranges(&self) -> impl Iterator<Item = RangeInclusive<u64>> + '_ {
        self.runs.iter().map(|(first, last)| *first..=*last)
    }

    /// The greatest number in it.
    pub fn last(&self) -> Option<u64> {
        self.runs.last().map(|(_, last)| *last)
    }
}

impl std::str::FromStr for BucketList {
    type Err = BucketListError;

    fn from_str(text: &str) -> Result<Self, BucketListError> {
        let number = |digits: &str| {
            let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
            plain.then(|| digits.parse::<u64>().ok()).flatten()
        };
        let mut runs = Vec::new();
        for part in text.split(',') {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let (Some(first), Some(last)) = (number(first), number(last)) else {
                return Err(BucketListError::NotABucket { text: part.to_owned() });
            };
            if last < first {
                return Err(BucketListError::Backwards { first, last });
            }
            runs.push((first, last));
        }
        runs.sort_unstable();
        runs.dedup_by(|next, run| {
            let joined = next.0 <= run.1.saturating_add(1);
            if joined {
                run.1 = run.1.max(next.1);
            }
            joined
        });
        Ok(Self { runs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bucket_lists_are_sets() {
        let list: BucketList = "10-20,5,18-30,31".parse().unwrap();
        assert_eq!(list.runs, [(5, 5), (10, 31)]);
        assert!(list.contains(5) && list.contains(31) && !list.contains(6) && !list.contains(32));
        assert_eq!(list.numbers(12).collect::<Vec<_>>(), [5, 10, 11]);
        assert_eq!(list.last(), Some(31));
        let all: BucketList = format!("0-{}", u64::MAX).parse().unwrap();
        assert_eq!(all.numbers(3).count(), 3);
        for text in ["", "5,", "a", "-5", "5-", "+5", "1-2-3", "0x5"] {
            assert!(text.parse::<BucketList>().is_err(), "{text}");
        }
        assert_eq!(
            "9-5".parse::<BucketList>(),
            Err(BucketListError::Backwards { first: 9, last: 5 })
        );
    }
}
