//! The set on which buckets are invalidated.

use bcache_core::cache_set::testkit::{BuiltSet, SetBuilder, backing_volume};
use bcache_core::cache_set::{CacheDevice, CacheSet, GcMark, NoVisitor, ReadOptions, WalkOptions};
use bcache_core::device::testkit::MemoryDevice;
use bcache_core::device::{AlignedBuf, BlockDevice, ReadDevice};
use bcache_core::layout::bkey::{Bkey, Ptr};
use bcache_core::layout::jset::JsetParams;
use bcache_core::layout::superblock::Label;
use bcache_core::layout::uuid_entry::UuidEntry;
use bcache_core::layout::{bset, jset};
use bcache_core::ops::check::{CheckOptions, Code, check};
use bcache_core::ops::invalidate::{
    Chosen, InvalidateError, InvalidatePlan, Options, RunError, Selection, TrustedSet, plan, run,
};
use bcache_core::units::{BucketIndex, Gen, Sectors};

pub(crate) const BUCKET: u64 = 8;

pub(crate) const NBUCKETS: u64 = 3000;

/// Buckets with data, by what is in them, from the first data bucket on.
pub(crate) const CLEAN: std::ops::Range<u64> = 0..300;

pub(crate) const MIXED: std::ops::Range<u64> = 300..340;

pub(crate) const DIRTY: std::ops::Range<u64> = 340..400;

/// Clean by the journal's replay range.
pub(crate) const REPLAY_CLEAN: std::ops::Range<u64> = 400..404;

/// Dirty by the journal's replay range.
pub(crate) const REPLAY_DIRTY: std::ops::Range<u64> = 404..408;

/// A pointer that is 96 gens old, and none else.
pub(crate) const AT_LIMIT: u64 = 408;

/// A pointer that is 95 gens old.
pub(crate) const BELOW_LIMIT: u64 = 409;

/// A device with two volumes, a btree of several levels, three prio sets and keys to replay.
pub(crate) struct Sample {
    pub(crate) device: MemoryDevice,
    pub(crate) built: BuiltSet,
    pub(crate) first_data: u64,
}

pub(crate) fn volume(number: u128, label: &str) -> UuidEntry {
    UuidEntry { label: Label::new(label).unwrap(), ..backing_volume(number) }
}

pub(crate) fn builder() -> SetBuilder {
    SetBuilder {
        nbuckets: NBUCKETS,
        bucket_size: Sectors(BUCKET),
        block_size: 1,
        njournal: 16,
        sets_per_node: 2,
        fill_percent: 50,
        first_seq: 40,
        last_seq: 41,
        entries_per_bucket: 2,
        volumes: vec![volume(1, "home"), volume(2, "data\n")],
        ..SetBuilder::default()
    }
}

pub(crate) fn key(
    builder: &SetBuilder,
    inode: u32,
    end: u64,
    bucket: u64,
    within: u64,
    size: u16,
) -> Bkey {
    let ptr_gen = (builder.bucket_disk)(bucket).bucket_gen;
    let ptr = Ptr::new(ptr_gen, Sectors(bucket * BUCKET + within), 0);
    Bkey::new(inode, end, size).with_ptrs(&[ptr])
}

impl Sample {
    pub(crate) fn new() -> Self {
        Self::with(builder())
    }

    pub(crate) fn with(mut builder: SetBuilder) -> Self {
        let first_data = builder.data_buckets(0).start;
        let one = |bucket: u64| {
            let place = 1_000_000 + bucket * 100;
            vec![
                key(&builder, 0, place, first_data + bucket, 0, 4)
                    .with_dirty(REPLAY_DIRTY.contains(&bucket)),
            ]
        };
        let mut journal: Vec<Vec<Bkey>> = vec![Vec::new()];
        journal.extend((REPLAY_CLEAN.start..REPLAY_DIRTY.end).map(one));
        builder.journal = journal;
        let mut keys = Vec::new();
        for inode in [0, 1] {
            for bucket in CLEAN.start..DIRTY.end {
                if bucket % 2 == u64::from(inode) || MIXED.contains(&bucket) {
                    let dirty = DIRTY.contains(&bucket) || (MIXED.contains(&bucket) && inode == 1);
                    let within = u64::from(inode) * 4;
                    let end = 100 + bucket * 10;
                    keys.push(
                        key(&builder, inode, end, first_data + bucket, within, 4).with_dirty(dirty),
                    );
                }
            }
            if inode == 0 {
                for (bucket, age) in [(AT_LIMIT, 96u8), (BELOW_LIMIT, 95)] {
                    let old = Gen((builder.bucket_disk)(0).bucket_gen.0.wrapping_sub(age));
                    let sector = (first_data + bucket) * BUCKET;
                    keys.push(Bkey::new(0, 20_000 + bucket * 10, 4).with_ptrs(&[Ptr::new(
                        old,
                        Sectors(sector),
                        0,
                    )]));
                }
            }
        }
        let device = MemoryDevice::new(NBUCKETS * BUCKET * 512);
        let built = builder.write(&device, keys.into_iter()).unwrap();
        assert!(built.root.0 >= 1 && built.prio_buckets.len() == 3);
        let sample = Self { device, built, first_data };
        assert_clean(&sample.device);
        sample
    }

    /// Numbers of buckets, as a list to be named.
    pub(crate) fn buckets(&self, from: impl IntoIterator<Item = u64>) -> Selection {
        Selection::Buckets(from.into_iter().map(|it| self.data(it)..=self.data(it)).collect())
    }

    pub(crate) fn data(&self, bucket: u64) -> u64 {
        self.first_data + bucket
    }

    /// A pointer to the start of a data bucket, so many gens past the one it had when it was made.
    pub(crate) fn ptr(&self, bucket: u64, gens: u8) -> Ptr {
        let bucket = self.data(bucket);
        let Gen(made) = (builder().bucket_disk)(bucket).bucket_gen;
        Ptr::new(Gen(made.wrapping_add(gens)), Sectors(bucket * BUCKET), 0)
    }

    /// Lets the journal go on by an entry with these keys, as a kernel would.
    pub(crate) fn append_entry(&self, keys: &[Bkey]) {
        let cache = CacheDevice::open(&self.device).unwrap();
        let set = CacheSet::read(cache, &read_options(), &mut NoVisitor).unwrap();
        let newest = &set.journal.newest().unwrap().jset;
        let entry = JsetParams { seq: newest.seq() + 1, ..JsetParams::of(newest, keys) };
        let entry = jset::encode(&entry, self.built.magic).unwrap();
        let place = set.journal.append_places(&set.cache).unwrap().after_newest.unwrap().0;
        let at = self.built.geometry.bucket_to_sector(place.bucket).bytes() + place.offset;
        self.device.write_at(at, &AlignedBuf::padded(entry.as_bytes(), 512)).unwrap();
    }

    /// Appends a set with one key to the root node.
    pub(crate) fn add_to_root(&self, key: Bkey) {
        let ptr = self.built.root.1.ptrs()[0];
        let start = ptr.offset().bytes();
        let word = |at: u64| {
            let mut bytes = [0; 8];
            self.device.read_at(at, &mut bytes).unwrap();
            u64::from_le_bytes(bytes)
        };
        let seq = word(start + 16);
        let mut end = start;
        while word(end + 16) == seq {
            end += (32 + 8 * (word(end + 24) >> 32)).next_multiple_of(512);
        }
        let set = bset::encode(self.built.magic, ptr, seq, &[key]);
        self.device.write_at(end, &AlignedBuf::padded(&set, 512)).unwrap();
    }
}

pub(crate) fn read_options() -> ReadOptions {
    ReadOptions {
        walk: WalkOptions { threads: 1, ..WalkOptions::default() },
        ..ReadOptions::default()
    }
}

pub(crate) fn options(selection: Selection) -> Options {
    Options { selection, skip_refused: false, walk: read_options().walk }
}

pub(crate) fn plan_on<'d>(
    device: &'d dyn ReadDevice,
    options: &Options,
) -> Result<InvalidatePlan<'d>, InvalidateError> {
    plan(TrustedSet::read(device, &read_options(), &mut |_| {})?, options)
}

pub(crate) fn assert_clean(device: &dyn ReadDevice) {
    let report = check(device, &CheckOptions::default(), &mut |_| {}).unwrap();
    // The sample has a bucket at the limit, and torn journal entries are what power cuts leave.
    let expected = [Code::BucketGenLimit, Code::JournalTorn];
    let findings: Vec<_> =
        report.findings.iter().filter(|finding| !expected.contains(&finding.code())).collect();
    assert!(findings.is_empty(), "{findings:#?}");
}

/// All that an invalidation may change, and that it must not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) seq: u64,
    pub(crate) last_seq: u64,
    pub(crate) root: Bkey,
    pub(crate) chain: Vec<BucketIndex>,
    pub(crate) buckets: Vec<(u8, GcMark, u16)>,
    pub(crate) volumes: Vec<(u32, u64, u64)>,
}

pub(crate) fn state_of(device: &dyn ReadDevice) -> State {
    let cache = CacheDevice::open(device).unwrap();
    let set = CacheSet::read(cache, &read_options(), &mut NoVisitor).unwrap();
    let newest = &set.journal.newest().unwrap().jset;
    State {
        seq: newest.seq(),
        last_seq: newest.last_seq(),
        root: set.root,
        chain: set.prios.buckets.clone(),
        buckets: set
            .table
            .as_slice()
            .iter()
            .map(|bucket| (bucket.bucket_gen().0, bucket.mark(), bucket.sectors_used()))
            .collect(),
        volumes: set
            .volumes
            .iter()
            .map(|(&slot, usage)| (slot, usage.cached_sectors.0, usage.dirty_sectors.0))
            .collect(),
    }
}

pub(crate) fn targets(plan: &InvalidatePlan<'_>) -> Vec<u64> {
    plan.chosen.targets().map(|target| target.bucket.0).collect()
}

pub(crate) fn invalidate(device: &MemoryDevice, options: &Options) -> Result<Vec<u64>, RunError> {
    let plan = plan_on(device, options).unwrap();
    let planned = targets(&plan);
    let lists = |chosen: &Chosen<'_>| {
        (chosen.targets().collect::<Vec<_>>(), chosen.refused().collect::<Vec<_>>())
    };
    let before = lists(&plan.chosen);
    let finished = run(plan, &read_options(), || Ok(device), &mut |_| {});
    // The table of the plan is gone by now.
    assert_eq!(lists(&finished.chosen), before);
    finished.result.map(|()| planned)
}
