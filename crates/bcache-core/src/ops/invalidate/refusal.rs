//! Which buckets may be invalidated, and why the others may not (docs/on-disk-format.md §8.3).

use crate::cache_set::{Bucket, CacheSet, GcMark, MetadataRole};
use crate::units::{BUCKET_GC_GEN_MAX, BucketIndex};

/// Why a bucket is not invalidated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// It holds data that the backing device lacks.
    #[error("dirty: {}", dirty(shares))]
    Dirty {
        /// What of which volume; none where only keys that the journal replaces are dirty, and for
        /// buckets beyond 65,536.
        shares: Vec<DirtyShare>,
    },
    /// It holds metadata.
    #[error("metadata: {}", metadata(*role))]
    Metadata {
        /// Which.
        role: MetadataRole,
    },
    /// Its gen is as far ahead of the oldest pointer to it as it may be.
    #[error(
        "gen span {span} is at the limit of {BUCKET_GC_GEN_MAX}: pointers that old would become \
         valid again"
    )]
    GenLimit {
        /// Gen minus the oldest pointer's.
        span: u8,
    },
    /// Its gen is as far ahead of the marker of a btree node that was freed in it as it may be. The
    /// kernel does not look at these, and would set the gen back at the 129th.
    #[error(
        "gen span {span} past the marker of a freed btree node is at the limit of \
         {BUCKET_GC_GEN_MAX}: the marker would set the gen back"
    )]
    FreedNodeLimit {
        /// Gen minus the oldest marker's.
        span: u8,
    },
    /// It lies before the first bucket that holds anything.
    #[error("before the first bucket ({first_bucket}): the superblock is there")]
    BeforeFirst {
        /// The first bucket.
        first_bucket: BucketIndex,
    },
    /// The device has no such bucket, nor any up to `last`.
    #[error("out of range: the last bucket is {}{}", nbuckets.saturating_sub(1), up_to(*first, *last))]
    OutOfRange {
        /// First number that was asked for.
        first: u64,
        /// Last number that was asked for.
        last: u64,
        /// Buckets of the device.
        nbuckets: u64,
    },
}

/// Dirty data of one volume in a bucket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirtyShare {
    /// Slot of the volume.
    pub slot: u32,
    /// Its name: label, or else uuid.
    pub name: String,
    /// Whether it has no backing device at all.
    pub flash_only: bool,
    /// Sectors.
    pub sectors: u64,
}

impl Reason {
    /// What kind of bucket it is about: each has its own [`Self::instead`].
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Dirty { shares } if shares.iter().any(|share| share.flash_only) => {
                "dirty, of a flash-only volume"
            }
            Self::Dirty { .. } => "dirty",
            Self::Metadata { role: MetadataRole::Journal } => "journal",
            Self::Metadata { role: MetadataRole::Prios } => "prios",
            Self::Metadata { role: MetadataRole::Uuids } => "uuids",
            Self::Metadata { role: MetadataRole::Btree } => "btree",
            Self::GenLimit { .. } => "gen limit",
            Self::FreedNodeLimit { .. } => "marker of a freed node",
            Self::BeforeFirst { .. } => "before the first bucket",
            Self::OutOfRange { .. } => "out of range",
        }
    }

    /// What can be done instead.
    pub fn instead(&self) -> &'static str {
        match self {
            Self::Dirty { shares } if shares.iter().any(|share| share.flash_only) => {
                "a flash-only volume has no other copy: register the cache and copy its data away, \
                 or remove the volume"
            }
            Self::Dirty { .. } => {
                "register cache and backing device, set cache_mode to writethrough, wait until \
                 dirty_data is 0, stop them, and repeat"
            }
            Self::Metadata { role: MetadataRole::Journal } => {
                "the journal's place is fixed: write back, detach, and make the cache anew"
            }
            Self::Metadata { role: MetadataRole::Prios } => {
                "the prio chain moves by itself: invalidate other buckets, or run the cache for a \
                 while, and repeat"
            }
            Self::Metadata { role: MetadataRole::Uuids } => {
                "the uuid table moves when a backing device is attached or detached: do so, and \
                 repeat"
            }
            Self::Metadata { role: MetadataRole::Btree } => {
                "btree nodes move when they are rewritten: run the cache, write 1 to its \
                 internal/trigger_gc in sysfs, stop it, and repeat"
            }
            Self::GenLimit { .. } => {
                "a garbage collection drops the old pointers: run the cache, write 1 to its \
                 internal/trigger_gc in sysfs, stop it, and repeat"
            }
            Self::FreedNodeLimit { .. } => {
                "the marker goes when the btree node with it is rewritten: run the cache for a \
                 while, stop it, and repeat"
            }
            Self::BeforeFirst { .. } => "leave it out: nothing is cached there",
            Self::OutOfRange { .. } => "leave it out: there is no such bucket",
        }
    }
}

fn dirty(shares: &[DirtyShare]) -> String {
    if shares.is_empty() {
        return "holds data that the backing device may lack".to_owned();
    }
    let shares: Vec<String> = shares
        .iter()
        .map(|share| {
            let kind = if share.flash_only { "flash-only volume" } else { "volume" };
            format!("{} sectors of {kind} {} ({})", share.sectors, share.slot, share.name)
        })
        .collect();
    format!("the only copy of {}", shares.join(" and "))
}

const fn metadata(role: MetadataRole) -> &'static str {
    match role {
        MetadataRole::Journal => "a journal bucket",
        MetadataRole::Prios => "a prio set of the current chain",
        MetadataRole::Uuids => "the uuid table",
        MetadataRole::Btree => "a btree node",
    }
}

fn up_to(first: u64, last: u64) -> String {
    if last > first { format!(" (nor are there any up to {last})") } else { String::new() }
}

/// Whether a bucket is legal to invalidate.
///
/// Pins do not count: the kernel holds them only until replay has inserted the keys, which are
/// stale then (docs/on-disk-format.md §8.5).
pub(super) fn is_legal(set: &CacheSet<'_>, number: BucketIndex, bucket: Bucket) -> bool {
    set.geometry().contains(number)
        && matches!(bucket.mark(), GcMark::Unused | GcMark::Reclaimable)
        // The root's bucket may lack its mark (docs/on-disk-format.md §5.7).
        && !set.table.is_node(number)
        && bucket.gen_span() < BUCKET_GC_GEN_MAX
        && set.table.freed_node_span(number) < BUCKET_GC_GEN_MAX
}

/// Why a bucket of the device is not legal, in few bytes: there can be millions.
#[derive(Clone, Copy, Debug)]
pub(super) enum Cause {
    BeforeFirst,
    Dirty,
    Metadata(MetadataRole),
    GenLimit(u8),
    FreedNodeLimit(u8),
}

impl Cause {
    /// Why `number` is not legal.
    pub(super) fn of(set: &CacheSet<'_>, number: BucketIndex) -> Self {
        let bucket = set.table.get(number).copied().unwrap_or_default();
        if number < set.geometry().first_bucket() {
            return Self::BeforeFirst;
        }
        if bucket.mark() == GcMark::Dirty {
            return Self::Dirty;
        }
        match set.metadata_role(number) {
            Some(role) => Self::Metadata(role),
            None if bucket.gen_span() >= BUCKET_GC_GEN_MAX => Self::GenLimit(bucket.gen_span()),
            None => Self::FreedNodeLimit(set.table.freed_node_span(number)),
        }
    }

    /// The same as it is told; `shares` are those of a dirty bucket.
    pub(super) fn reason(
        self,
        first_bucket: BucketIndex,
        shares: impl FnOnce() -> Vec<DirtyShare>,
    ) -> Reason {
        match self {
            Self::BeforeFirst => Reason::BeforeFirst { first_bucket },
            Self::Dirty => Reason::Dirty { shares: shares() },
            Self::Metadata(role) => Reason::Metadata { role },
            Self::GenLimit(span) => Reason::GenLimit { span },
            Self::FreedNodeLimit(span) => Reason::FreedNodeLimit { span },
        }
    }
}
