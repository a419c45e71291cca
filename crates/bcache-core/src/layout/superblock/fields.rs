//! Fields of a superblock that are one of a few values.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::BDEV_STATE_MASK;

/// Which kind of device a superblock is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// An SSD that caches.
    Cache,
    /// A disk that is cached.
    Backing,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Cache => "cache",
            Self::Backing => "backing",
        })
    }
}

/// How a cache picks the buckets that it reuses (`CACHE_REPLACEMENT`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Replacement {
    /// Least recently used, weighted by the sectors in use.
    #[default]
    Lru,
    /// In turn.
    Fifo,
    /// At random.
    Random,
}

impl Replacement {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Lru, Self::Fifo, Self::Random];

    /// From its name; `None` for any other word.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|it| it.name() == name)
    }

    /// From the field's value; `None` for 3 to 7, on which kernels lock up (docs/on-disk-format.md
    /// §10.3).
    pub const fn from_raw(value: u8) -> Option<Self> {
        match value {
            0 => Some(Self::Lru),
            1 => Some(Self::Fifo),
            2 => Some(Self::Random),
            _ => None,
        }
    }

    /// The field's value.
    pub const fn to_raw(self) -> u8 {
        match self {
            Self::Lru => 0,
            Self::Fifo => 1,
            Self::Random => 2,
        }
    }

    /// The name that sysfs and options use.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lru => "lru",
            Self::Fifo => "fifo",
            Self::Random => "random",
        }
    }
}

impl fmt::Display for Replacement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// How a backing device is cached (`BDEV_CACHE_MODE`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheMode {
    /// Writes go to both.
    #[default]
    Writethrough,
    /// Writes go to the cache and later to the disk.
    Writeback,
    /// Writes go to the disk alone.
    Writearound,
    /// No caching.
    None,
}

impl CacheMode {
    /// From the field's value.
    pub const fn from_raw(value: u8) -> Option<Self> {
        match value {
            0 => Some(Self::Writethrough),
            1 => Some(Self::Writeback),
            2 => Some(Self::Writearound),
            3 => Some(Self::None),
            _ => None,
        }
    }

    /// The field's value.
    pub const fn to_raw(self) -> u8 {
        match self {
            Self::Writethrough => 0,
            Self::Writeback => 1,
            Self::Writearound => 2,
            Self::None => 3,
        }
    }

    /// The name that sysfs uses.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Writethrough => "writethrough",
            Self::Writeback => "writeback",
            Self::Writearound => "writearound",
            Self::None => "none",
        }
    }
}

impl fmt::Display for CacheMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// What a backing device's superblock says of its attachment (`BDEV_STATE`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BackingState {
    /// Never attached, or detached.
    #[default]
    None,
    /// Attached, nothing dirty in the cache.
    Clean,
    /// Attached, and the cache holds data that the disk lacks.
    Dirty,
    /// It ran without its cache: what only the cache had is missing. sysfs says "inconsistent".
    #[serde(rename = "inconsistent")]
    Stale,
}

impl BackingState {
    /// Whether it is attached and was not run without its cache: clean or dirty.
    pub const fn runs_on(self) -> bool {
        matches!(self, Self::Clean | Self::Dirty)
    }

    /// Whether the device may lack data that only a cache has: dirty or inconsistent.
    pub const fn lacks_data(self) -> bool {
        matches!(self, Self::Dirty | Self::Stale)
    }

    pub(super) const fn from_bits(value: u64) -> Self {
        match value & BDEV_STATE_MASK {
            0 => Self::None,
            1 => Self::Clean,
            2 => Self::Dirty,
            _ => Self::Stale,
        }
    }

    /// The field's value.
    pub const fn to_raw(self) -> u8 {
        match self {
            Self::None => 0,
            Self::Clean => 1,
            Self::Dirty => 2,
            Self::Stale => 3,
        }
    }

    /// The kernel's word for it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Clean => "clean",
            Self::Dirty => "dirty",
            Self::Stale => "inconsistent",
        }
    }
}

impl fmt::Display for BackingState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
