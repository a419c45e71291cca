//! Histograms inside a report: summarised for people, whole for programs.
//!
//! Whole means HdrHistogram's V2 encoding, compressed, in base64: what its tools in other languages
//! read, too.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hdrhistogram::Histogram;
use hdrhistogram::serialization::{Deserializer, Serializer, V2DeflateSerializer};
use serde::ser::Error as _;
use serde::{Deserialize, Serialize, Serializer as SerdeSerializer};

use crate::record::{LATENCY_DIGITS, LATENCY_NS_MAX, LATENCY_NS_MIN, Measure, latency_histogram};

/// The percentiles that reports name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Percentile {
    /// The median.
    #[serde(rename = "p50")]
    P50,
    /// 90 %
    #[serde(rename = "p90")]
    P90,
    /// 99 %
    #[serde(rename = "p99")]
    P99,
    /// 99.9 %
    #[serde(rename = "p99.9")]
    P999,
    /// 99.99 %
    #[serde(rename = "p99.99")]
    P9999,
}

impl Percentile {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::P50, Self::P90, Self::P99, Self::P999, Self::P9999];

    /// As a fraction of the samples.
    pub const fn quantile(self) -> f64 {
        match self {
            Self::P50 => 0.5,
            Self::P90 => 0.9,
            Self::P99 => 0.99,
            Self::P999 => 0.999,
            Self::P9999 => 0.9999,
        }
    }

    /// Samples that it takes for ten to lie beyond the percentile: with fewer it is an accident.
    pub const fn samples_needed(self) -> u64 {
        match self {
            Self::P50 => 20,
            Self::P90 => 100,
            Self::P99 => 1_000,
            Self::P999 => 10_000,
            Self::P9999 => 100_000,
        }
    }
}

impl fmt::Display for Percentile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::P50 => "p50",
            Self::P90 => "p90",
            Self::P99 => "p99",
            Self::P999 => "p99.9",
            Self::P9999 => "p99.99",
        })
    }
}

/// A histogram's main figures; times in ns.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Summary {
    /// Samples.
    pub count: u64,
    /// Shortest.
    pub min_ns: u64,
    /// Mean.
    pub mean_ns: f64,
    /// Median.
    pub p50_ns: u64,
    /// 90th percentile.
    pub p90_ns: u64,
    /// 99th percentile.
    pub p99_ns: u64,
    /// 99.9th percentile.
    #[serde(rename = "p99.9_ns")]
    pub p999_ns: u64,
    /// 99.99th percentile.
    #[serde(rename = "p99.99_ns")]
    pub p9999_ns: u64,
    /// Longest.
    pub max_ns: u64,
}

/// One measure's histogram.
#[derive(Clone, Debug)]
pub struct Measured {
    /// What was measured.
    pub measure: Measure,
    /// Latencies in ns.
    pub histogram: Histogram<u64>,
}

impl Measured {
    /// A percentile in ns.
    pub fn percentile_ns(&self, percentile: Percentile) -> u64 {
        self.histogram.value_at_quantile(percentile.quantile())
    }

    /// The main figures.
    pub fn summary(&self) -> Summary {
        Summary {
            count: self.histogram.len(),
            min_ns: self.histogram.min(),
            mean_ns: self.histogram.mean(),
            p50_ns: self.percentile_ns(Percentile::P50),
            p90_ns: self.percentile_ns(Percentile::P90),
            p99_ns: self.percentile_ns(Percentile::P99),
            p999_ns: self.percentile_ns(Percentile::P999),
            p9999_ns: self.percentile_ns(Percentile::P9999),
            max_ns: self.histogram.max(),
        }
    }
}

#[derive(Serialize)]
struct MeasuredOut {
    measure: Measure,
    #[serde(flatten)]
    summary: Summary,
    histogram: String,
}

/// Only what cannot be computed is read: the summary follows from the histogram.
#[derive(Deserialize)]
struct MeasuredIn {
    measure: Measure,
    count: u64,
    histogram: String,
}

impl Serialize for Measured {
    fn serialize<S: SerdeSerializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let histogram = encode(&self.histogram).map_err(S::Error::custom)?;
        MeasuredOut { measure: self.measure, summary: self.summary(), histogram }
            .serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Measured {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let raw = MeasuredIn::deserialize(deserializer)?;
        let histogram = decode(&raw.histogram)
            .and_then(|histogram| match histogram.len() {
                found if found == raw.count => Ok(histogram),
                found => Err(DecodeError::Count { stated: raw.count, found }),
            })
            .map_err(|error| {
                serde::de::Error::custom(format_args!("the histogram of {}: {error}", raw.measure))
            })?;
        Ok(Self { measure: raw.measure, histogram })
    }
}

/// Why text is no histogram of latencies.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// It is not base64.
    #[error("not base64")]
    Base64(#[from] base64::DecodeError),
    /// What it encodes is no histogram.
    #[error("not an HdrHistogram")]
    Histogram(#[from] hdrhistogram::serialization::DeserializeError),
    /// A histogram of other bounds than ours.
    #[error(
        "it reaches from {low} to {high} with {digits} digits, which is not how latencies are kept"
    )]
    Bounds {
        /// Its lower bound.
        low: u64,
        /// Its upper bound.
        high: u64,
        /// Its digits.
        digits: u8,
    },
    /// It holds another number of samples than the report says.
    #[error("it holds {found} samples instead of {stated}")]
    Count {
        /// What the report says.
        stated: u64,
        /// What is there.
        found: u64,
    },
}

/// A histogram as text.
pub fn encode(
    histogram: &Histogram<u64>,
) -> Result<String, hdrhistogram::serialization::V2DeflateSerializeError> {
    let mut bytes = Vec::new();
    V2DeflateSerializer::new().serialize(histogram, &mut bytes)?;
    Ok(BASE64.encode(bytes))
}

/// A histogram from text.
pub fn decode(text: &str) -> Result<Histogram<u64>, DecodeError> {
    let bytes = BASE64.decode(text)?;
    let found: Histogram<u64> = Deserializer::new().deserialize(&mut bytes.as_slice())?;
    let (low, high, digits) = (found.low(), found.high(), found.sigfig());
    if (low, high, digits) != (LATENCY_NS_MIN, LATENCY_NS_MAX, LATENCY_DIGITS) {
        return Err(DecodeError::Bounds { low, high, digits });
    }
    // One of our own with these samples: what was decoded may grow by itself.
    let mut histogram = latency_histogram();
    for step in found.iter_recorded() {
        histogram.saturating_record_n(step.value_iterated_to(), step.count_at_value());
    }
    Ok(histogram)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn histograms_survive(samples in prop::collection::vec((0u64..LATENCY_NS_MAX, 1u64..1000), 0..200)) {
            let mut histogram = latency_histogram();
            for (value, count) in samples {
                histogram.saturating_record_n(value, count);
            }
            let decoded = decode(&encode(&histogram).unwrap()).unwrap();
            prop_assert_eq!(&decoded, &histogram);
            prop_assert_eq!(decoded.max(), histogram.max());
        }

        #[test]
        fn damage_is_an_error_or_another_histogram(at in 0usize..200, with in any::<u8>()) {
            let mut histogram = latency_histogram();
            for value in 1..1000 {
                histogram.saturating_record(value * 77);
            }
            let mut bytes = BASE64.decode(encode(&histogram).unwrap()).unwrap();
            let at = at % bytes.len();
            bytes[at] = with;
            let _ = decode(&BASE64.encode(bytes)); // no panic
        }
    }

    #[test]
    fn other_histograms_are_refused() {
        assert!(matches!(decode("*"), Err(DecodeError::Base64(_))));
        assert!(matches!(decode(""), Err(DecodeError::Histogram(_))));
        assert!(matches!(decode("AAAA"), Err(DecodeError::Histogram(_))));
        let other = Histogram::new_with_bounds(1, 1000, 2).unwrap();
        let text = encode(&other).unwrap();
        assert!(matches!(decode(&text), Err(DecodeError::Bounds { high: 1000, digits: 2, .. })));
    }

    #[test]
    fn a_sample_needs_ten_beyond_it() {
        for percentile in Percentile::ALL {
            let beyond =
                crate::num::float(percentile.samples_needed()) * (1.0 - percentile.quantile());
            assert!((beyond - 10.0).abs() < 1e-6, "{percentile}: {beyond}");
        }
    }
}
