//! One request as it would enter `/dev/bcacheN`.

use serde::Serialize;

/// What a request does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Op {
    /// Reads.
    #[default]
    Read,
    /// Writes.
    Write,
    /// Discards (TRIM).
    Discard,
}

/// What the kernel looks at besides the direction (`bi_opf`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Flags(u8);

impl Flags {
    /// None.
    pub const NONE: Self = Self(0);
    /// `REQ_SYNC`, `REQ_FUA` or `REQ_PREFLUSH`: somebody waits for it (`op_is_sync`).
    pub const SYNC: Self = Self(1);
    /// `REQ_META`: a file system's metadata.
    pub const META: Self = Self(2);
    /// `REQ_RAHEAD`: readahead.
    pub const READAHEAD: Self = Self(4);
    /// `REQ_PRIO`.
    pub const PRIO: Self = Self(8);

    /// Whether all of `other` are set.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether any of `other` is set.
    pub(crate) const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Both.
    #[must_use]
    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A request of a trace: one bio.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// When it was made, in ns from any fixed moment.
    pub time_ns: u64,
    /// First sector (512 bytes) on its device.
    pub sector: u64,
    /// Who made it; `None` where the trace does not tell.
    pub process: Option<u32>,
    /// Length in sectors.
    pub sectors: u32,
    /// Number of its device, from 0.
    pub device: u16,
    /// Direction.
    pub op: Op,
    /// Flags.
    pub flags: Flags,
}

impl Request {
    /// The sector after its last one.
    pub const fn end(&self) -> u64 {
        self.sector.saturating_add(self.sectors as u64)
    }
}
