//! Lists of which one entry is drawn at a time, by weight: `4k`, or `4k=70,64k=30`.

use std::fmt;
use std::str::FromStr;

use rand::Rng;
use serde::{Serialize, Serializer};

/// Values, each with its weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Weighted<T> {
    entries: Vec<(T, u32)>,
    total: u64,
}

/// Why a list cannot be drawn from.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum WeightedError {
    /// Nothing is in it.
    #[error("the list is empty")]
    Empty,
    /// An entry is not a value.
    #[error("{reason}")]
    Value {
        /// What is wrong with it.
        reason: String,
    },
    /// A weight is not a positive number.
    #[error("\"{weight}\" is not a weight; write a whole number from 1, as in 4k=70,64k=30")]
    Weight {
        /// What was given.
        weight: String,
    },
    /// Some entries have weights and some do not.
    #[error("\"{entry}\" has no weight; give all of several entries one, as in 4k=70,64k=30")]
    MissingWeight {
        /// The entry.
        entry: String,
    },
}

impl<T> Weighted<T> {
    /// One value, drawn always.
    pub fn one(value: T) -> Self {
        Self { entries: vec![(value, 1)], total: 1 }
    }

    /// Values with their weights.
    pub fn new(mut entries: Vec<(T, u32)>) -> Result<Self, WeightedError> {
        match entries.as_mut_slice() {
            [] => return Err(WeightedError::Empty),
            // A single entry's weight means nothing.
            [(_, weight)] if *weight > 0 => *weight = 1,
            _ => {}
        }
        if entries.iter().any(|(_, weight)| *weight == 0) {
            return Err(WeightedError::Weight { weight: "0".to_owned() });
        }
        let total = entries.iter().map(|(_, weight)| u64::from(*weight)).sum();
        Ok(Self { entries, total })
    }

    /// The values.
    pub fn values(&self) -> impl Iterator<Item = &T> {
        self.entries.iter().map(|(value, _)| value)
    }

    /// The values and their weights.
    pub fn entries(&self) -> &[(T, u32)] {
        &self.entries
    }

    /// The position of an entry, by weight.
    pub fn pick_index(&self, random: &mut impl Rng) -> usize {
        if self.entries.len() <= 1 {
            return 0;
        }
        let mut at = random.random_range(0..self.total);
        for (index, (_, weight)) in self.entries.iter().enumerate() {
            let weight = u64::from(*weight);
            if at < weight {
                return index;
            }
            at -= weight;
        }
        0
    }

    /// A value, by weight.
    pub fn pick(&self, random: &mut impl Rng) -> &T {
        let index = self.pick_index(random);
        match self.entries.get(index) {
            Some((value, _)) => value,
            None => unreachable!("a weighted list has an entry, and the total is that of all"),
        }
    }
}

impl<T: FromStr<Err: fmt::Display>> FromStr for Weighted<T> {
    type Err = WeightedError;

    fn from_str(text: &str) -> Result<Self, WeightedError> {
        let parts: Vec<&str> = text.split(',').collect();
        let entries = parts.iter().map(|part| {
            let (value, weight) = match part.rsplit_once('=') {
                Some((value, weight)) => {
                    let number = weight.parse().ok().filter(|number| *number > 0);
                    let bad = || WeightedError::Weight { weight: weight.to_owned() };
                    (value, number.ok_or_else(bad)?)
                }
                None if parts.len() == 1 => (*part, 1),
                None => {
                    return Err(WeightedError::MissingWeight { entry: (*part).to_owned() });
                }
            };
            let value = value
                .parse()
                .map_err(|error: T::Err| WeightedError::Value { reason: error.to_string() })?;
            Ok((value, weight))
        });
        Self::new(entries.collect::<Result<_, _>>()?)
    }
}

impl<T: fmt::Display> fmt::Display for Weighted<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.entries.as_slice() {
            [(value, _)] => write!(f, "{value}"),
            entries => {
                for (index, (value, weight)) in entries.iter().enumerate() {
                    let comma = if index == 0 { "" } else { "," };
                    write!(f, "{comma}{value}={weight}")?;
                }
                Ok(())
            }
        }
    }
}

impl<T: fmt::Display> Serialize for Weighted<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::workload::BlockSize;
    use rand::SeedableRng;
    use rand_pcg::Pcg64;

    fn parse(text: &str) -> Result<Weighted<BlockSize>, String> {
        text.parse().map_err(|error: WeightedError| error.to_string())
    }

    #[test]
    fn what_is_parsed_is_what_is_shown() {
        for (text, shown) in [
            ("4k", "4KiB"),
            ("4k=3", "4KiB"),
            ("512", "512B"),
            ("4k=70,64k=30", "4KiB=70,64KiB=30"),
            ("1M=1,4096=2", "1MiB=1,4KiB=2"),
        ] {
            let list = parse(text).unwrap();
            assert_eq!(list.to_string(), shown);
            assert_eq!(serde_json::to_string(&list).unwrap(), format!("\"{shown}\""));
            assert_eq!(parse(shown).unwrap().to_string(), shown);
        }
    }

    #[test]
    fn nonsense_is_refused_with_its_reason() {
        for (text, reason) in [
            ("", "is not a size"),
            ("4k,8k", "\"4k\" has no weight"),
            ("4k=1,8k", "\"8k\" has no weight"),
            ("4k=0", "\"0\" is not a weight"),
            ("4k=-1", "\"-1\" is not a weight"),
            ("4k=", "\"\" is not a weight"),
            ("4k=99999999999", "is not a weight"),
            ("4kfoo", "is not a size"),
            ("100", "no whole number of sectors"),
            ("0", "makes no sense"),
            ("4k=1,,8k=2", "has no weight"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(reason), "{text}: {error}");
        }
        assert_eq!(Weighted::<u8>::new(Vec::new()).unwrap_err(), WeightedError::Empty);
    }

    #[test]
    fn draws_follow_the_weights() {
        let list = Weighted::new(vec![('a', 1), ('b', 70), ('c', 29)]).unwrap();
        let mut random = Pcg64::seed_from_u64(1);
        let mut counts = std::collections::BTreeMap::new();
        for _ in 0..100_000 {
            *counts.entry(*list.pick(&mut random)).or_insert(0) += 1;
        }
        assert!((800..1200).contains(&counts[&'a']), "{counts:?}");
        assert!((69_000..71_000).contains(&counts[&'b']), "{counts:?}");
        assert!((28_000..30_000).contains(&counts[&'c']), "{counts:?}");
    }
}
