//! Replacement policies by name.

use bcache_core::allocator::Policy;
use bcache_core::layout::superblock::Replacement;
use clap::ValueEnum;

/// How a cache picks the buckets that it reuses.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PolicyName {
    /// Least recently used, little data before much
    Lru,
    /// In turn, from the first bucket
    Fifo,
    /// At random
    Random,
}

impl From<PolicyName> for Replacement {
    fn from(name: PolicyName) -> Self {
        match name {
            PolicyName::Lru => Self::Lru,
            PolicyName::Fifo => Self::Fifo,
            PolicyName::Random => Self::Random,
        }
    }
}

impl From<PolicyName> for Policy {
    fn from(name: PolicyName) -> Self {
        Replacement::from(name).into()
    }
}
