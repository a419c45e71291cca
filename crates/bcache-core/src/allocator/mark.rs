//! What a bucket holds.

use serde::Serialize;

/// `GC_MARK`: what the last GC, or the allocation since, says a bucket holds
/// (on-disk-format.md §6.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mark {
    /// Nothing that a valid pointer points to.
    #[default]
    None,
    /// Clean data: also on the backing device.
    Reclaimable,
    /// Dirty data: nowhere else.
    Dirty,
    /// Btree nodes, prio sets, uuids, journal.
    Metadata,
}
