//! What of a trace is no request.

use std::collections::BTreeMap;

use serde::Serialize;

/// Why a line or record is no request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SkipReason {
    /// Not what a line or record of the format looks like.
    NotUnderstood,
    /// Longer than any line of the format.
    TooLong,
    /// A later stage of a request that is counted when it is queued, or a remap of one.
    OtherStage,
    /// A flush, or another request without data.
    NoData,
    /// Neither read, write nor discard.
    OtherCommand,
    /// A message, a process name, a plug: nothing about a request.
    Notice,
    /// A header or comment.
    Heading,
    /// Sectors beyond 2^48, or a length of more than 2 GiB.
    OutOfRange,
    /// The end of the trace is cut off in a record.
    CutOff,
    /// Of a part of the addresses that `--sample` leaves out.
    NotSampled,
}

impl SkipReason {
    /// For people.
    pub const fn describe(self) -> &'static str {
        match self {
            Self::NotUnderstood => "not understood",
            Self::TooLong => "lines too long",
            Self::OtherStage => "other stages of a request",
            Self::NoData => "without data",
            Self::OtherCommand => "neither read, write nor discard",
            Self::Notice => "notices",
            Self::Heading => "headings and comments",
            Self::OutOfRange => "addresses or lengths out of range",
            Self::CutOff => "cut off at the end",
            Self::NotSampled => "not sampled",
        }
    }
}

/// How much of each kind was skipped.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Skipped(BTreeMap<SkipReason, u64>);

impl Skipped {
    pub(super) fn add(&mut self, reason: SkipReason) {
        self.add_many(reason, 1);
    }

    pub(super) fn add_many(&mut self, reason: SkipReason, count: u64) {
        if count > 0 {
            *self.0.entry(reason).or_default() += count;
        }
    }

    pub(super) fn merge(&mut self, other: &Self) {
        for (reason, count) in other.iter() {
            self.add_many(reason, count);
        }
    }

    /// Of one kind.
    pub fn of(&self, reason: SkipReason) -> u64 {
        self.0.get(&reason).copied().unwrap_or(0)
    }

    /// Every kind that there was, and how many.
    pub fn iter(&self) -> impl Iterator<Item = (SkipReason, u64)> + '_ {
        self.0.iter().map(|(reason, count)| (*reason, *count))
    }
}
