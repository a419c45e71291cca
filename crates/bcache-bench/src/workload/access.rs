//! Where in the working set operations go.

use std::fmt;
use std::str::FromStr;

use bcache_core::units::Sectors;
use rand::Rng;
use rand_distr::{Distribution, Zipf};
use rand_pcg::Pcg64;
use serde::{Serialize, Serializer};

use super::weighted::Weighted;
use super::{WeightedError, Workload};
use crate::num::{float, whole};

/// The exponent of `zipf` without one: the habit of other benches.
pub const ZIPF_EXPONENT: f64 = 1.1;

/// Largest exponent: from there on nearly every operation goes to a single place.
const ZIPF_EXPONENT_MAX: f64 = 10.0;

/// Where operations go: one pattern, or several of which each operation follows one.
#[derive(Clone, Debug, PartialEq)]
pub struct Access(pub Weighted<Pattern>);

/// One way to choose addresses.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Pattern {
    /// Everywhere alike.
    Uniform,
    /// The `k`th most popular place with a frequency of `1 / k^exponent`. Popular places lie
    /// scattered over the working set, not side by side.
    Zipf {
        /// From 0, which is uniform.
        exponent: f64,
    },
    /// Each stream from the start to the end of its own part of the working set, and again.
    Sequential,
}

impl From<Pattern> for Access {
    fn from(pattern: Pattern) -> Self {
        Self(Weighted::one(pattern))
    }
}

impl FromStr for Pattern {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None => match text {
                "uniform" => Ok(Self::Uniform),
                "zipf" => Ok(Self::Zipf { exponent: ZIPF_EXPONENT }),
                "sequential" => Ok(Self::Sequential),
                _ => Err(format!(
                    "\"{text}\" is no pattern; it is uniform, zipf, zipf:EXPONENT or sequential"
                )),
            },
            Some(("zipf", exponent)) => exponent
                .parse()
                .ok()
                .filter(|exponent| (0.0..=ZIPF_EXPONENT_MAX).contains(exponent))
                .map(|exponent| Self::Zipf { exponent })
                .ok_or_else(|| {
                    format!(
                        "\"{exponent}\" is no exponent for zipf; write a number from 0 to \
                         {ZIPF_EXPONENT_MAX}"
                    )
                }),
            Some((name, _)) => Err(format!("\"{name}\" takes no parameter after a colon")),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uniform => f.write_str("uniform"),
            Self::Zipf { exponent } => write!(f, "zipf:{exponent}"),
            Self::Sequential => f.write_str("sequential"),
        }
    }
}

impl FromStr for Access {
    type Err = WeightedError;

    fn from_str(text: &str) -> Result<Self, WeightedError> {
        text.parse().map(Self)
    }
}

impl fmt::Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Access {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(serializer)
    }
}

/// What chooses one writer's addresses.
#[derive(Clone, Debug)]
pub(super) struct Picker {
    access: Access,
    working_set: u64,
    granule: u64,
    /// By position of the pattern in `access`; `None` for those that need none.
    zipfs: Vec<Option<Scattered>>,
    /// Each of the writer's streams' own part of the working set.
    parts: Vec<Part>,
}

/// A stream's part of the working set, in sectors.
#[derive(Clone, Copy, Debug)]
struct Part {
    start: u64,
    end: u64,
    next: u64,
}

/// Places by popularity, scattered.
#[derive(Clone, Copy, Debug)]
struct Scattered {
    zipf: Zipf<f64>,
    places: u64,
    /// Coprime to `places`, so that multiplying by it modulo `places` reaches each place once.
    stride: u64,
}

impl Scattered {
    fn new(places: u64, exponent: f64) -> Option<Self> {
        let zipf = Zipf::new(float(places), exponent).ok()?;
        // The golden section of the places keeps neighbours in rank far apart.
        let golden = whole(float(places) * 0.618_033_988_749_894_9).max(1);
        // The number before `places` is one at the latest.
        let stride =
            (golden..=places).find(|it| super::greatest_common_divisor(*it, places) == 1)?;
        Some(Self { zipf, places, stride })
    }

    fn place(&self, random: &mut Pcg64) -> u64 {
        // Samples are whole numbers from 1; rounding may take the last ones past the end.
        let rank = whole(self.zipf.sample(random)).clamp(1, self.places) - 1;
        let place = u128::from(rank) * u128::from(self.stride) % u128::from(self.places);
        u64::try_from(place).unwrap_or(0)
    }
}

impl Picker {
    /// `workload` has been checked: every stream's part has room for the largest operation.
    pub(super) fn new(workload: &Workload, writer: u32) -> Self {
        let granule = workload.granule().0;
        let places = (workload.working_set.0 / granule).max(1);
        let zipfs = workload.access.0.values().map(|pattern| match pattern {
            Pattern::Zipf { exponent } => Scattered::new(places, *exponent),
            Pattern::Uniform | Pattern::Sequential => None,
        });
        let streams = u64::from(workload.streams.get());
        let part = places / workload.streams_total() * granule;
        let parts = (0..streams).map(|stream| {
            let start = (u64::from(writer) * streams + stream) * part;
            Part { start, end: start + part, next: start }
        });
        Self {
            access: workload.access.clone(),
            working_set: places * granule,
            granule,
            zipfs: zipfs.collect(),
            parts: parts.collect(),
        }
    }

    /// Where the next operation of `size` in the writer's stream `stream` begins.
    pub(super) fn offset(&mut self, random: &mut Pcg64, stream: u32, size: Sectors) -> Sectors {
        let size = size.0.max(1);
        let index = self.access.0.pick_index(random);
        if let Some(Some(scattered)) = self.zipfs.get(index) {
            return Sectors(self.aligned(scattered.place(random) * self.granule, size));
        }
        let pattern = self.access.0.entries().get(index).map(|(pattern, _)| *pattern);
        let part = usize::try_from(stream).ok().and_then(|stream| self.parts.get_mut(stream));
        match (pattern, part) {
            (Some(Pattern::Sequential), Some(part)) => {
                if part.end - part.next < size {
                    part.next = part.start;
                }
                let offset = part.next;
                part.next += size;
                Sectors(offset)
            }
            _ => Sectors(random.random_range(0..(self.working_set / size).max(1)) * size),
        }
    }

    /// The operation of `size` that covers `sector`: operations lie at multiples of their size, so
    /// that two of the same size are the same or apart.
    fn aligned(&self, sector: u64, size: u64) -> u64 {
        let last = (self.working_set / size).saturating_sub(1);
        (sector / size).min(last) * size
    }
}
