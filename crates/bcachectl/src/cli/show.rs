//! Options of `bcachectl show`.

use std::path::PathBuf;

use bcache_cli::lists::BucketList;
use bcache_cli::rows::Format;
use clap::Args;

use crate::cli::lists::{LookupPlace, Sort};

/// Options of `bcachectl show`.
#[derive(Debug, Default, Args)]
pub struct ShowArgs {
    /// Block devices or image files [default: all bcache devices of the machine]
    #[arg(value_name = "DEV")]
    pub devices: Vec<PathBuf>,

    /// Only say whether there is dirty data, and whose; scripts can use the exit status
    #[arg(long, requires = "devices", conflicts_with = "superblock", conflicts_with_all = DEEP)]
    pub dirty: bool,

    /// Show the superblock only, without reading what the cache holds
    #[arg(long, conflicts_with_all = DEEP)]
    pub superblock: bool,

    /// Show every field of the superblock
    #[arg(short, long, requires = "devices")]
    pub verbose: bool,

    /// Show how the cache is used: buckets, quantiles of age, gens, volumes
    #[arg(long, requires = "devices")]
    pub usage: bool,

    /// List the buckets: prio, gen, last_gc, gen span, mark, sectors used
    #[arg(long, requires = "devices")]
    pub prios: bool,

    /// Show the journal: entries, sequence numbers, what would be replayed
    #[arg(long, requires = "devices")]
    pub journal: bool,

    /// List the uuid table: backing devices and flash-only volumes
    #[arg(long, requires = "devices")]
    pub uuids: bool,

    /// Show the btree: nodes, depth, fill
    #[arg(long, requires = "devices")]
    pub btree: bool,

    /// List the keys of the btree and of the journal, or of the one that is named
    #[arg(long, requires = "devices")]
    pub keys: bool,

    /// Show what is cached at a place of a volume (a slot, a UUID or a label); sectors are those of
    /// the backing device
    #[arg(long, value_name = "VOLUME:SECTOR[+LEN]", requires = "devices")]
    pub lookup: Vec<LookupPlace>,

    /// Only these buckets (5,10-20), and only keys that point into them; alone, list both
    #[arg(long, value_name = "LIST", requires = "devices")]
    pub bucket: Option<BucketList>,

    /// Order of the list of buckets
    #[arg(long, value_name = "ORDER", value_enum, requires = "devices")]
    pub sort: Option<Sort>,

    /// List buckets from the end of that order
    #[arg(long, requires = "devices")]
    pub reverse: bool,

    /// Show at most N rows of each list
    #[arg(long, value_name = "N", requires = "devices")]
    pub limit: Option<u64>,

    /// All of the above, without the keys
    #[arg(long, requires = "devices")]
    pub all: bool,

    /// Print JSON; the same as --format json
    #[arg(long, conflicts_with = "format")]
    pub json: bool,

    /// How to print; ndjson and csv are for one list of one device
    #[arg(long, value_enum, value_name = "FORMAT")]
    pub format: Option<Format>,
}

/// Options that ask for more than the superblock.
const DEEP: [&str; 9] =
    ["usage", "prios", "journal", "uuids", "btree", "keys", "lookup", "bucket", "all"];

/// What of a cache set is to be shown.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Parts {
    /// Usage.
    pub usage: bool,
    /// Buckets.
    pub prios: bool,
    /// Journal.
    pub journal: bool,
    /// Uuid table.
    pub uuids: bool,
    /// Nodes of the btree.
    pub btree: bool,
    /// Keys of the btree.
    pub btree_keys: bool,
    /// Keys of the journal.
    pub journal_keys: bool,
    /// Places.
    pub lookup: bool,
}

impl ShowArgs {
    /// How to print.
    pub fn format(&self) -> Format {
        if self.json { Format::Json } else { self.format.unwrap_or_default() }
    }

    /// What is to be shown.
    pub fn parts(&self) -> Parts {
        let bucket_alone =
            self.bucket.is_some() && !(self.prios || self.btree || self.journal || self.keys);
        let sorted = self.sort.is_some() || self.reverse;
        let both = !self.btree && !self.journal;
        let keys = self.keys || bucket_alone || self.bucket.is_some() && !both;
        Parts {
            usage: self.usage || self.all,
            prios: self.prios || self.all || bucket_alone || sorted,
            journal: self.journal || self.all,
            uuids: self.uuids || self.all,
            btree: self.btree || self.all,
            btree_keys: keys && (self.btree || both),
            journal_keys: keys && (self.journal || both),
            lookup: !self.lookup.is_empty(),
        }
    }
}

impl Parts {
    /// Whether keys are to be listed.
    pub const fn has_keys(&self) -> bool {
        self.btree_keys || self.journal_keys
    }

    /// How many lists there are.
    pub fn lists(&self) -> usize {
        [self.prios, self.journal, self.uuids, self.btree, self.has_keys(), self.lookup]
            .into_iter()
            .filter(|wanted| *wanted)
            .count()
    }
}
