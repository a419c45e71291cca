//! Options of `bcachectl make`.

use std::path::PathBuf;

use bcache_cli::policy::PolicyName;
use bcache_cli::size::{parse_bytes, parse_sectors};
use bcache_core::layout::superblock::{CacheMode, Kind, Label, SB_LABEL_BYTES};
use bcache_core::ops::make::{LoseDirtyData, Options};
use bcache_core::units::Sectors;
use clap::{ArgAction, ArgMatches, Args};
use uuid::Uuid;

/// Options of `bcachectl make`.
#[derive(Debug, Args)]
#[command(override_usage = "bcachectl make [OPTIONS] --cache DEV... [--bdev DEV...]\n       \
                      bcachectl make [OPTIONS] --bdev DEV...")]
pub struct MakeArgs {
    /// Make the devices that follow cache devices
    #[arg(short = 'C', long, action = ArgAction::Append, num_args = 0, default_missing_value = "true", value_name = "DEV")]
    cache: Vec<bool>,

    /// Make the devices that follow backing devices
    #[arg(short = 'B', long, action = ArgAction::Append, num_args = 0, default_missing_value = "true", value_name = "DEV")]
    bdev: Vec<bool>,

    /// Block devices or image files
    #[arg(value_name = "DEV")]
    devices: Vec<PathBuf>,

    /// Bucket size: a power of two from 4k to 1G, of two blocks or more [default: 512k, or less on a small device]
    #[arg(short, long, value_name = "SIZE", value_parser = parse_bytes)]
    bucket: Option<u64>,

    /// Block size: a power of two from 512 to 4k [default: the largest logical block of the
    /// devices, 4k for image files; less where buckets would hold fewer than two]
    #[arg(short = 'w', long, value_name = "SIZE", value_parser = parse_bytes)]
    block: Option<u64>,

    /// Where the data of backing devices starts: a number of sectors, or a size in bytes with its
    /// unit (make-bcache ignores the unit) [default: 16]
    #[arg(short = 'o', long, alias = "data_offset", value_name = "SECTORS", value_parser = parse_sectors)]
    data_offset: Option<Sectors>,

    /// UUID of the cache set to make, or to attach the backing devices to [default: a new one]
    #[arg(long, alias = "cset_uuid", value_name = "UUID")]
    cset_uuid: Option<Uuid>,

    /// Label of the devices, at most 31 bytes
    #[arg(short, long, value_name = "LABEL", value_parser = parse_label)]
    label: Option<Label>,

    /// Cache writes too: backing devices start in writeback mode instead of writethrough
    #[arg(long)]
    writeback: bool,

    /// Discard cache devices now, and have the kernel discard buckets that it reuses (before
    /// version 6.19)
    #[arg(long)]
    discard: bool,

    /// How the cache picks the buckets that it reuses
    #[arg(
        long,
        alias = "cache_replacement_policy",
        value_name = "POLICY",
        value_enum,
        default_value = "lru"
    )]
    cache_replacement_policy: PolicyName,

    /// Overwrite bcache superblocks
    #[arg(long, alias = "wipe_bcache")]
    wipe_bcache: bool,

    /// Do not ask before overwriting caches that hold the only copy of data
    #[arg(long, alias = "lose_dirty_data", conflicts_with = "lose_set")]
    lose_dirty_data: bool,

    /// Do not ask before overwriting the cache of this set, which holds the only copy of data
    #[arg(long, alias = "lose_set", value_name = "UUID")]
    lose_set: Option<Uuid>,

    /// Overwrite anything else: filesystems, partition tables, RAID, LVM, unknown data
    #[arg(short, long)]
    force: bool,

    /// Create devices that do not exist as image files of this size
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes)]
    pub size: Option<u64>,

    /// Save what is overwritten to this new file first, for bcachectl undo
    #[arg(long, value_name = "FILE", conflicts_with = "discard")]
    pub undo: Option<PathBuf>,

    /// Show what would be written, and write nothing
    #[arg(short = 'n', long, alias = "dry_run")]
    pub dry_run: bool,

    /// Print JSON
    #[arg(long)]
    pub json: bool,

    /// Do not ask, even on a terminal
    #[arg(short, long)]
    pub yes: bool,
}

fn parse_label(text: &str) -> Result<Label, String> {
    Label::new(text).ok_or_else(|| {
        format!("a label has at most {} bytes, this one {}", SB_LABEL_BYTES - 1, text.len())
    })
}

/// A device on the command line without `--cache` or `--bdev` before it.
#[derive(Debug, thiserror::Error)]
#[error("{} is neither a cache nor a backing device yet: put --cache or --bdev before it", .0.display())]
pub struct NoKind(pub PathBuf);

impl MakeArgs {
    /// The devices in order, each with what the nearest option before it says.
    ///
    /// `matches` are those that `self` was read from. As in make-bcache, `-C` and `-B` hold for all
    /// the devices that follow, other options between them included.
    pub fn devices(&self, matches: &ArgMatches) -> Result<Vec<(Kind, PathBuf)>, NoKind> {
        let indices = |id| matches.indices_of(id).into_iter().flatten();
        let mut kinds: Vec<(usize, Kind)> = indices("cache")
            .map(|index| (index, Kind::Cache))
            .chain(indices("bdev").map(|index| (index, Kind::Backing)))
            .collect();
        kinds.sort_by_key(|(index, _)| *index);
        self.devices
            .iter()
            .zip(indices("devices"))
            .map(|(path, index)| {
                let kind = kinds.iter().rev().find(|(at, _)| *at < index);
                kind.map(|(_, kind)| (*kind, path.clone())).ok_or_else(|| NoKind(path.clone()))
            })
            .collect()
    }

    /// What is wanted of all devices.
    pub fn options(&self) -> Options {
        Options {
            bucket_bytes: self.bucket,
            block_bytes: self.block,
            data_offset: self.data_offset,
            set_uuid: self.cset_uuid,
            label: self.label.unwrap_or_default(),
            cache_mode: if self.writeback { CacheMode::Writeback } else { CacheMode::Writethrough },
            discard: self.discard,
            replacement: self.cache_replacement_policy.into(),
            wipe_bcache: self.wipe_bcache,
            force: self.force,
            lose_dirty_data: match (self.lose_dirty_data, self.lose_set) {
                (true, _) => LoseDirtyData::Allowed,
                (false, Some(set)) => LoseDirtyData::OfSet(set),
                (false, None) => LoseDirtyData::Refused,
            },
            set_block_size: None,
        }
    }
}
