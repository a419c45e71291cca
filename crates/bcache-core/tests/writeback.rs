//! Writing dirty data back, on sets made for it: what ends up where, what is refused, power cuts,
//! failing devices, full caches.

use std::collections::BTreeMap;

use bcache_core::cache_set::testkit::{BuiltSet, SetBuilder, backing_volume};
use bcache_core::cache_set::{Below, CacheDevice, CacheSet, NoVisitor, ReadOptions, VolumeReader};
use bcache_core::device::testkit::{
    Fault, FaultDevice, Lasting, MemoryDevice, SimDevice, TraceDevice, Trigger,
};
use bcache_core::device::{AlignedBuf, BlockDevice, Operation, ReadDevice};
use bcache_core::inspect::FindVolumeError;
use bcache_core::layout::bkey::{Bkey, Ptr};
use bcache_core::layout::superblock::{
    BackingParams, BackingState, CacheMode, Label, SB_BYTES, SB_OFFSET_BYTES, Superblock,
};
use bcache_core::layout::uuid_entry::UuidEntry;
use bcache_core::ops::check::{CheckOptions, check};
use bcache_core::ops::plan::Plan;
use bcache_core::ops::rebuild::{self, KeptExtents, RebuildError};
use bcache_core::ops::writeback::{
    BackingRefusal, CopyError, Method, Options, WritebackDone, WritebackError, WritebackPlan,
    WritebackRunError, WritebackState, plan, run,
};
use bcache_core::units::{BucketIndex, Gen, Sectors};
use proptest::prelude::*;
use rand::SeedableRng as _;
use rand_pcg::Pcg64;
use uuid::Uuid;

const BUCKET: u64 = 8;
const SET_UUID: Uuid = Uuid::from_u128(0x5e7_5e7_5e7_5e7);
const BACKING_SECTORS: u64 = 12_000;
const DATA_OFFSET: u64 = 16;

/// A cache with two backing devices and a flash-only volume.
struct World {
    cache: MemoryDevice,
    backing: Vec<MemoryDevice>,
    built: BuiltSet,
}

/// What to fill the world with.
#[derive(Clone, Copy, Debug)]
struct Fill {
    seed: u64,
    nbuckets: u64,
    /// Data buckets that get no data.
    spare: u64,
    /// Share of dirty extents in per cent.
    dirty_percent: u32,
    /// Keys in the journal.
    replay: usize,
    njournal: u16,
}

impl Default for Fill {
    fn default() -> Self {
        Self { seed: 1, nbuckets: 1000, spare: 300, dirty_percent: 40, replay: 30, njournal: 8 }
    }
}

fn builder(fill: &Fill) -> SetBuilder {
    let flash = UuidEntry { flags: 1, sectors: Sectors(4096), ..backing_volume(3) };
    let label = Label::new("home").unwrap();
    SetBuilder {
        nbuckets: fill.nbuckets,
        bucket_size: Sectors(BUCKET),
        block_size: 1,
        njournal: fill.njournal,
        sets_per_node: 2,
        fill_percent: 70,
        first_seq: 40,
        last_seq: 41,
        entries_per_bucket: 3,
        volumes: vec![UuidEntry { label, ..backing_volume(1) }, backing_volume(2), flash],
        ..SetBuilder::default()
    }
}

fn pattern(seed: u64, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    Pcg64::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}

fn backing_superblock(number: u128) -> Superblock {
    let mut sb = Superblock::new_backing(&BackingParams {
        uuid: Uuid::from_u128(number << 64 | number),
        set_uuid: SET_UUID,
        label: Label::default(),
        data_offset: Sectors(DATA_OFFSET),
        block_size: 1,
        cache_mode: CacheMode::Writeback,
    });
    sb.edit(|edit| {
        edit.state(BackingState::Dirty);
    });
    sb
}

impl World {
    fn new(fill: Fill) -> Self {
        let mut builder = builder(&fill);
        let backing: Vec<MemoryDevice> = (1..=2u8)
            .map(|number| {
                let device =
                    MemoryDevice::from_bytes(&pattern(number.into(), BACKING_SECTORS * 512));
                let sb = backing_superblock(number.into());
                device.write_at(SB_OFFSET_BYTES, sb.as_bytes()).unwrap();
                device
            })
            .collect();
        let cache = MemoryDevice::new(fill.nbuckets * BUCKET * 512);
        let mut rng = Pcg64::seed_from_u64(fill.seed);
        // Nodes are taken from the end.
        let buckets = builder.data_buckets(fill.nbuckets / 33);
        let mut free: Vec<u64> = (buckets.start..buckets.end - fill.spare).collect();
        let mut at = [DATA_OFFSET, DATA_OFFSET, 0];
        let mut keys: Vec<Bkey> = Vec::new();
        let mut journal: Vec<Bkey> = Vec::new();
        let put = |rng: &mut Pcg64, inode: u32, start: u64, bucket: u64| {
            let size = rng.random_range(1..=BUCKET);
            let within = rng.random_range(0..=BUCKET - size);
            let sector = Sectors(bucket * BUCKET + within);
            let dirty = inode == 2 || rng.random_ratio(fill.dirty_percent, 100);
            let mut data = pattern(bucket, size * 512);
            if !dirty {
                // What is clean is on the backing device, too.
                let device = &backing[usize::try_from(inode).unwrap()];
                device.read_at(Sectors(start).bytes(), &mut data).unwrap();
            }
            cache.write_at(sector.bytes(), &data).unwrap();
            let ptr_gen = (builder.bucket_disk)(bucket).bucket_gen;
            Bkey::new(inode, start + size, u16::try_from(size).unwrap())
                .with_ptrs(&[Ptr::new(ptr_gen, sector, 0)])
                .with_dirty(dirty)
        };
        while free.len() > fill.replay {
            let bucket = free.remove(rng.random_range(0..free.len()));
            let inode = rng.random_range(0..3u32);
            let end = &mut at[usize::try_from(inode).unwrap()];
            let start = *end + if rng.random() { 0 } else { rng.random_range(1..20) };
            if start + BUCKET > BACKING_SECTORS {
                continue;
            }
            let key = put(&mut rng, inode, start, bucket);
            *end = key.offset();
            keys.push(key);
        }
        keys.sort_by_key(Bkey::pos);
        // Newer keys anywhere over them, dirty: a clean one would have to fit what is below.
        let dirty_only = Fill { dirty_percent: 100, ..fill };
        for bucket in free {
            let inode = rng.random_range(0..3u32);
            let start = rng.random_range(DATA_OFFSET..BACKING_SECTORS - BUCKET);
            let size = rng.random_range(1..=BUCKET);
            let sector = Sectors(bucket * BUCKET);
            cache.write_at(sector.bytes(), &pattern(bucket, size * 512)).unwrap();
            let ptr_gen = (builder.bucket_disk)(bucket).bucket_gen;
            journal.push(
                Bkey::new(inode, start + size, u16::try_from(size).unwrap())
                    .with_ptrs(&[Ptr::new(ptr_gen, sector, 0)])
                    .with_dirty(dirty_only.dirty_percent > 0),
            );
        }
        builder.journal =
            std::iter::once(Vec::new()).chain(journal.chunks(4).map(<[Bkey]>::to_vec)).collect();
        let built = builder.write(&cache, keys.into_iter()).unwrap();
        assert!(built.nodes <= fill.nbuckets / 33, "{} nodes", built.nodes);
        Self { cache, backing, built }
    }

    fn volumes(&self) -> [Vec<u8>; 3] {
        volumes(&self.cache, &self.backing)
    }

    fn plan(&self, options: &Options) -> Result<WritebackPlan<'_>, WritebackError> {
        let backing: Vec<&dyn ReadDevice> =
            self.backing.iter().map(|it| it as &dyn ReadDevice).collect();
        plan(&self.cache, &backing, options, &mut |_| {})
    }
}

/// What the volumes read as: two through the cache, and the flash-only one.
fn volumes(cache: &MemoryDevice, backing: &[MemoryDevice]) -> [Vec<u8>; 3] {
    let opened = CacheDevice::open(cache).unwrap();
    let set = CacheSet::read(opened, &ReadOptions::default(), &mut NoVisitor).unwrap();
    [0, 1, 2].map(|index: usize| {
        let under: Option<(&dyn ReadDevice, Sectors)> =
            backing.get(index).map(|it| (it as &dyn ReadDevice, Sectors(DATA_OFFSET)));
        let sectors = if index == 2 { 4096 } else { BACKING_SECTORS - DATA_OFFSET };
        let mut bytes = vec![0; usize::try_from(sectors * 512).unwrap()];
        // A detached device is no volume of the set any more.
        if under.is_some_and(|(device, _)| state_of(device) == BackingState::None) {
            backing[index].read_at(DATA_OFFSET * 512, &mut bytes).unwrap();
            return bytes;
        }
        let inode = u32::try_from(index).unwrap();
        let below = under.map_or(Below::Nothing, |(device, start)| Below::Backing(device, start));
        VolumeReader::new(&set, inode, below).read_at(0, &mut bytes).unwrap();
        bytes
    })
}

fn superblock_of(device: &dyn ReadDevice) -> Superblock {
    let mut bytes = vec![0; SB_BYTES];
    device.read_at(SB_OFFSET_BYTES, &mut bytes).unwrap();
    Superblock::from_bytes(&bytes).unwrap()
}

fn state_of(device: &dyn ReadDevice) -> BackingState {
    let sb = superblock_of(device);
    assert!(sb.csum_ok());
    sb.state()
}

/// The backing devices alone read as the volumes did, and the cache holds nothing dirty of them.
fn assert_written_back(
    cache: &MemoryDevice,
    backing: &[MemoryDevice],
    expected: &[Vec<u8>; 3],
    detached: bool,
    case: &str,
) {
    let now = volumes(cache, backing);
    for index in 0..3 {
        assert!(now[index] == expected[index], "{case}: volume {index} changed");
    }
    for (device, expected) in backing.iter().zip(expected) {
        let mut alone = vec![0; expected.len()];
        device.read_at(DATA_OFFSET * 512, &mut alone).unwrap();
        assert!(alone == *expected, "{case}: the backing device alone differs");
        let state = if detached { BackingState::None } else { BackingState::Clean };
        assert_eq!(state_of(device), state, "{case}");
    }
    let opened = CacheDevice::open(cache).unwrap();
    let set = CacheSet::read(opened, &ReadOptions::default(), &mut NoVisitor).unwrap();
    for slot in [0, 1] {
        let usage = set.volumes.get(&slot).copied().unwrap_or_default();
        assert_eq!(usage.dirty_sectors, Sectors(0), "{case}");
        assert!(!detached || usage.cached_sectors == Sectors(0), "{case}");
        assert_eq!(set.uuids.get(slot).unwrap().is_detached(), detached, "{case}");
    }
    assert!(set.volumes.get(&2).is_none_or(|it| it.dirty_sectors == it.cached_sectors));
    let report = check(cache, &CheckOptions::default(), &mut |_| {}).unwrap();
    assert!(report.findings.is_empty(), "{case}: {:?}", report.findings);
}

fn run_on(
    cache: &dyn BlockDevice,
    backing: &[&dyn BlockDevice],
    options: &Options,
) -> Result<WritebackDone, WritebackRunError> {
    let readers: Vec<&dyn ReadDevice> = backing.iter().map(|it| it as &dyn ReadDevice).collect();
    let plan = plan(&cache, &readers, options, &mut |_| {})
        .map_err(|error| WritebackRunError::Again(Box::new(error)))?;
    run(&plan, options, cache, backing, &|_| {})
}

fn run_all(world: &World, options: &Options) -> Result<WritebackDone, WritebackRunError> {
    let backing: Vec<&dyn BlockDevice> =
        world.backing.iter().map(|it| it as &dyn BlockDevice).collect();
    run_on(&world.cache, &backing, options)
}

fn verifying() -> Options {
    Options { verify: true, seed: 5, seconds: 1000, ..Options::default() }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn dirty_data_ends_up_where_it_belongs(
        seed: u64, dirty_percent in 0u32..101, replay in 0usize..60, detach: bool,
    ) {
        let world = World::new(Fill { seed, dirty_percent, replay, ..Fill::default() });
        let before = world.volumes();
        let options = Options { detach, ..verifying() };
        run_all(&world, &options).unwrap();
        assert_written_back(&world.cache, &world.backing, &before, detach, "once");
        // Once more there is nothing to do.
        if !detach {
            let (cache, done) = (world.cache.snapshot(), run_all(&world, &options).unwrap());
            prop_assert_eq!(done, WritebackDone::default());
            prop_assert_eq!(cache.first_difference(&world.cache), None);
        }
    }

    /// The new btree is the old one with the journal laid over it, whatever that is.
    #[test]
    fn a_rebuilt_set_reads_as_before(seed: u64, replay in 0usize..60, level: bool) {
        let nbuckets = if level { 3000 } else { 1000 };
        let world = World::new(Fill { seed, nbuckets, replay, ..Fill::default() });
        let before = world.volumes();
        let opened = CacheDevice::open(&world.cache).unwrap();
        let set = CacheSet::read(opened, &ReadOptions::default(), &mut NoVisitor).unwrap();
        let source = KeptExtents::new(&set, ReadOptions::default().walk);
        let plan = rebuild::plan(&set, &source, None, seed).unwrap();
        let mut steps = Plan::default();
        plan.prepare(&set, &source, &mut |step| {
            steps.steps.push(step);
            Ok::<(), std::convert::Infallible>(())
        })
        .unwrap();
        steps.steps.extend(plan.commit(&set).steps);
        steps.steps.extend(plan.tidy(&set).steps);
        let traced = TraceDevice::new(world.cache.clone());
        rebuild::run(&plan, &set, &source, &traced, &mut |_| {}).unwrap();
        steps.compare_with_trace(&traced.events()).unwrap();

        prop_assert!(world.volumes() == before);
        let opened = CacheDevice::open(&world.cache).unwrap();
        let after = CacheSet::read(opened, &ReadOptions::default(), &mut NoVisitor).unwrap();
        prop_assert_eq!(after.dirty_sectors(), set.dirty_sectors());
        prop_assert!(after.overlay.is_empty() && after.journal.entries.len() == 1);
        prop_assert_eq!(after.btree.depth, plan.contents.level);
        let report = check(&world.cache, &CheckOptions::default(), &mut |_| {}).unwrap();
        prop_assert!(report.findings.is_empty(), "{:?}", report.findings);
        // No new metadata lies where the old state had anything, and old nodes have the next gen.
        let new = plan.nodes.iter().chain(&plan.chain);
        for &bucket in new {
            prop_assert_eq!(set.metadata_role(bucket), None);
            prop_assert_eq!(set.table.get(bucket).unwrap().sectors_used(), 0);
        }
        for number in (0..nbuckets).map(BucketIndex) {
            let (old, new) = (set.table.get(number).unwrap(), after.table.get(number).unwrap());
            let moved = set.table.is_node(number) || plan.nodes.contains(&number)
                || plan.chain.contains(&number);
            let expected = if moved { old.bucket_gen().next() } else { old.bucket_gen() };
            prop_assert_eq!(new.bucket_gen(), expected);
            prop_assert_eq!(new.gen_span(), 0);
        }
    }
}

#[test]
fn one_volume_or_a_missing_device_leaves_the_others_dirty() {
    let world = World::new(Fill::default());
    let before = world.volumes();
    // By label, and with the other device not even there.
    let options = Options { volumes: vec!["home".to_owned()], ..verifying() };
    let backing: [&dyn BlockDevice; 1] = [&world.backing[0]];
    let other = world.backing[1].snapshot();
    run_on(&world.cache, &backing, &options).unwrap();
    assert!(world.volumes() == before);
    assert_eq!(other.first_difference(&world.backing[1]), None);
    assert_eq!(state_of(&world.backing[0]), BackingState::Clean);
    let opened = CacheDevice::open(&world.cache).unwrap();
    let set = CacheSet::read(opened, &ReadOptions::default(), &mut NoVisitor).unwrap();
    assert_eq!(set.volumes[&0].dirty_sectors, Sectors(0));
    assert!(
        set.volumes[&1].dirty_sectors > Sectors(0) && set.volumes[&2].dirty_sectors > Sectors(0)
    );

    let plan = world.plan(&verifying()).unwrap();
    let kept: Vec<(u32, bool)> = plan.kept.iter().map(|it| (it.slot, it.flash_only)).collect();
    assert_eq!(kept, [(2, true)]);
    run_all(&world, &verifying()).unwrap();
    assert_written_back(&world.cache, &world.backing, &before, false, "both");
}

/// A refusal for each reason, and nothing written.
#[test]
fn what_would_be_wrong_is_refused() {
    let world = World::new(Fill::default());
    let refused = |change: &dyn Fn(&mut Superblock), size: Option<u64>, block: u32| {
        let mut sb = superblock_of(&world.backing[0]);
        change(&mut sb);
        let changed = world.backing[0].snapshot();
        changed.write_at(SB_OFFSET_BYTES, sb.as_bytes()).unwrap();
        let changed = match size {
            Some(size) => {
                let mut bytes = vec![0; usize::try_from(size).unwrap()];
                changed.read_at(0, &mut bytes).unwrap();
                MemoryDevice::from_bytes(&bytes)
            }
            None => changed.with_info(|info| info.logical_block_bytes = block),
        };
        let backing: [&dyn ReadDevice; 1] = [&changed];
        match plan(&world.cache, &backing, &verifying(), &mut |_| {}) {
            Err(WritebackError::Backing { reason, .. }) => reason,
            other => panic!("{other:?}"),
        }
    };
    let state = |state: BackingState| {
        refused(
            &|sb| {
                sb.edit(|edit| {
                    edit.state(state);
                });
            },
            None,
            512,
        )
    };
    assert!(matches!(state(BackingState::None), BackingRefusal::NotAttached));
    assert!(matches!(state(BackingState::Stale), BackingRefusal::RanAlone));
    assert!(state(BackingState::Stale).may_be_newer());
    let set_uuid = |sb: &mut Superblock| {
        sb.edit(|edit| {
            edit.set_uuid(Uuid::from_u128(9));
        });
    };
    assert!(matches!(refused(&set_uuid, None, 512), BackingRefusal::OtherSet { .. }));
    let as_it_is = |_: &mut Superblock| {};
    let small = refused(&as_it_is, Some(512 * 2000), 512);
    assert!(matches!(small, BackingRefusal::TooSmall { size: 2000, end } if end > 2000));
    let other = |sb: &mut Superblock| {
        *sb = backing_superblock(77);
    };
    assert!(matches!(refused(&other, None, 512), BackingRefusal::Unknown { .. }));
    let broken = |sb: &mut Superblock| {
        let mut bytes = sb.as_bytes().to_vec();
        bytes[60] ^= 1;
        *sb = Superblock::from_bytes(&bytes).unwrap();
    };
    assert!(matches!(refused(&broken, None, 512), BackingRefusal::KernelRefuses(_)));
    let cache = |sb: &mut Superblock| *sb = superblock_of(&world.cache);
    assert!(matches!(
        refused(&cache, None, 512),
        BackingRefusal::CacheDevice | BackingRefusal::KernelRefuses(_)
    ));
    let blocks = |sb: &mut Superblock| {
        let params = BackingParams {
            uuid: sb.uuid(),
            set_uuid: SET_UUID,
            label: Label::default(),
            data_offset: Sectors(DATA_OFFSET),
            block_size: 8,
            cache_mode: CacheMode::Writeback,
        };
        *sb = Superblock::new_backing(&params);
        sb.edit(|edit| {
            edit.state(BackingState::Dirty);
        });
    };
    assert!(matches!(refused(&blocks, None, 4096), BackingRefusal::Misaligned { .. }));
    let twice: [&dyn ReadDevice; 2] = [&world.backing[0], &world.backing[0]];
    assert!(matches!(
        plan(&world.cache, &twice, &verifying(), &mut |_| {}),
        Err(WritebackError::Backing { reason: BackingRefusal::Repeated { .. }, .. })
    ));

    let named = |name: &str| {
        let options = Options { volumes: vec![name.to_owned()], ..verifying() };
        let backing: [&dyn ReadDevice; 1] = [&world.backing[0]];
        plan(&world.cache, &backing, &options, &mut |_| {}).map(|_| ())
    };
    assert!(matches!(named("2"), Err(WritebackError::FlashOnly { slot: 2 })));
    assert!(matches!(named("1"), Err(WritebackError::NotGiven { slot: 1, .. })));
    assert!(matches!(named("nobody"), Err(WritebackError::Volume(FindVolumeError::None { .. }))));
    named("0").unwrap();

    // A leaf is damaged: dirty data may be missing.
    let leaf = (world.built.geometry.nbuckets() - 1) * BUCKET * 512;
    let mut block = [0; 512];
    world.cache.read_at(leaf, &mut block).unwrap();
    block[100] ^= 1;
    world.cache.write_at(leaf, &block).unwrap();
    let damaged = world.plan(&verifying());
    assert!(matches!(damaged, Err(WritebackError::Damaged { count: 1.., .. })), "{damaged:?}");
}

/// Disks that share a power supply, of which one is where it is cut.
struct Machine {
    cache: SimDevice,
    backing: Vec<SimDevice>,
}

impl Machine {
    fn new(world: &World, cut: Option<(usize, u64)>) -> Self {
        let disk = |index: usize, contents: &MemoryDevice| match cut {
            Some((device, n)) if device == index => SimDevice::new(contents).with_power_cut_at(n),
            _ => SimDevice::new(contents),
        };
        let backing = world.backing.iter().enumerate();
        Self {
            cache: disk(0, &world.cache),
            backing: backing.map(|(index, device)| disk(index + 1, device)).collect(),
        }
    }

    fn run(&self, options: &Options) -> Result<WritebackDone, WritebackRunError> {
        let backing: Vec<&dyn BlockDevice> =
            self.backing.iter().map(|it| it as &dyn BlockDevice).collect();
        run_on(&self.cache, &backing, options)
    }

    fn changes(&self) -> Vec<u64> {
        std::iter::once(&self.cache).chain(&self.backing).map(SimDevice::changes).collect()
    }
}

/// Power cuts at each write, flush and discard of each device, with any subset of what was not
/// flushed surviving: the volumes read as before, and the command run again completes it.
fn power_cuts(fill: Fill, detach: bool) -> BTreeMap<&'static str, u32> {
    let world = World::new(fill);
    let before = world.volumes();
    let options = Options { detach, ..verifying() };
    let whole = Machine::new(&world, None);
    whole.run(&options).unwrap();
    let mut seen = BTreeMap::new();
    for (device, changes) in whole.changes().into_iter().enumerate() {
        for n in 0..changes {
            let case = format!("device {device}, change {n}");
            let machine = Machine::new(&world, Some((device, n)));
            let error = machine.run(&options).unwrap_err();
            let what = match error.state() {
                WritebackState::Unchanged => "unchanged",
                WritebackState::Old => "old",
                WritebackState::OldOrNew => "old or new",
                WritebackState::New => "new",
                WritebackState::Undefined => panic!("{case}: {error:?}"),
            };
            *seen.entry(what).or_insert(0) += 1;
            for seed in 0..2 {
                let crashed = World {
                    cache: machine.cache.crash(seed),
                    backing: (seed..).zip(&machine.backing).map(|(s, it)| it.crash(s)).collect(),
                    built: world.built.clone(),
                };
                let now = crashed.volumes();
                assert!(now == before, "{case}, seed {seed}: a volume changed");
                run_all(&crashed, &options).unwrap_or_else(|error| panic!("{case}: {error:?}"));
                assert_written_back(&crashed.cache, &crashed.backing, &before, detach, &case);
            }
        }
    }
    seen
}

#[test]
fn power_cuts_leave_old_or_new() {
    let seen = power_cuts(Fill { nbuckets: 620, spare: 350, ..Fill::default() }, false);
    assert!(seen["old"] > 20 && seen["old or new"] > 0 && seen["new"] > 0, "{seen:?}");
}

#[test]
fn power_cuts_while_detaching() {
    let seen = power_cuts(Fill { nbuckets: 580, spare: 400, ..Fill::default() }, true);
    assert!(seen["old"] > 20 && seen["new"] > 0, "{seen:?}");
}

#[test]
fn a_full_cache_gets_room_from_clean_buckets() {
    // One bucket beside the reserve of the new chain.
    let fill = Fill { spare: 0, nbuckets: 800, ..Fill::default() };
    let world = World::new(fill);
    use_up(&world, 2);
    let before = world.volumes();
    let plan = world.plan(&verifying()).unwrap();
    assert!(matches!(plan.method, Method::InvalidateFirst { .. }), "{:?}", plan.method);
    drop(plan);
    let done = run_all(&world, &verifying()).unwrap();
    assert!(done.invalidated_buckets > 0);
    assert_written_back(&world.cache, &world.backing, &before, false, "full");
}

#[test]
fn a_cache_full_of_dirty_data_is_made_clean_by_the_journal() {
    let fill =
        Fill { spare: 0, nbuckets: 900, dirty_percent: 100, njournal: 40, ..Fill::default() };
    let world = World::new(fill);
    use_up(&world, 0);
    let before = world.volumes();
    let plan = world.plan(&verifying()).unwrap();
    assert!(matches!(plan.method, Method::Journal(_)), "{:?}", plan.method);
    drop(plan);
    run_all(&world, &verifying()).unwrap();
    assert_written_back(&world.cache, &world.backing, &before, false, "journal");
    // Detaching needs buckets, and now there are clean ones.
    let seen = power_cuts_of_journal(fill);
    assert!(seen > 5, "{seen}");
}

fn power_cuts_of_journal(fill: Fill) -> u64 {
    let world = World::new(fill);
    use_up(&world, 0);
    let before = world.volumes();
    let whole = Machine::new(&world, None);
    whole.run(&verifying()).unwrap();
    let changes = whole.cache.changes();
    for n in 0..changes {
        let machine = Machine::new(&world, Some((0, n)));
        machine.run(&verifying()).unwrap_err();
        let crashed = World {
            cache: machine.cache.crash(n),
            backing: machine.backing.iter().map(|it| it.crash(n)).collect(),
            built: world.built.clone(),
        };
        assert!(crashed.volumes() == before, "change {n}");
        run_all(&crashed, &verifying()).unwrap();
        assert_written_back(&crashed.cache, &crashed.backing, &before, false, "journal, cut");
    }
    changes
}

/// Gives unused buckets a clean extent, as one that a volume past the end of others has, until
/// `left` are unused; they are in the journal's replay range.
fn use_up(world: &World, left: usize) {
    use bcache_core::cache_set::GcMark;
    use bcache_core::layout::jset::{JsetParams, encode};
    let opened = CacheDevice::open(&world.cache).unwrap();
    let set = CacheSet::read(opened, &ReadOptions::default(), &mut NoVisitor).unwrap();
    let unused: Vec<BucketIndex> = (0u64..)
        .map(BucketIndex)
        .zip(set.table.as_slice())
        .filter(|(number, bucket)| {
            bucket.mark() == GcMark::Unused && set.geometry().contains(*number)
        })
        .map(|(number, _)| number)
        .collect();
    let keys: Vec<Bkey> = (0u64..)
        .zip(unused.iter().skip(left))
        .map(|(index, &bucket)| {
            let start = BACKING_SECTORS - BUCKET - index * BUCKET;
            let sector = set.geometry().bucket_to_sector(bucket);
            world.cache.write_at(sector.bytes(), &pattern(bucket.0, 512)).unwrap();
            let ptr_gen = set.table.get(bucket).unwrap().bucket_gen();
            // Of the flash-only volume: dirty for good.
            Bkey::new(2, start + 1, 1).with_ptrs(&[Ptr::new(ptr_gen, sector, 0)]).with_dirty(true)
        })
        .collect();
    let newest = set.journal.newest().unwrap().jset.clone();
    let entry = encode(
        &JsetParams { seq: newest.seq() + 1, ..JsetParams::of(&newest, &keys) },
        set.cache.magic(),
    )
    .unwrap();
    let place = set.journal.append_places(&set.cache).unwrap().next_bucket.unwrap();
    let len = entry.as_bytes().len().next_multiple_of(512);
    assert!(len as u64 <= BUCKET * 512, "{} keys", keys.len());
    let at = set.geometry().bucket_to_sector(place.bucket).bytes();
    world.cache.write_at(at, &AlignedBuf::padded(entry.as_bytes(), len)).unwrap();
}

/// Every write, flush or discard failed once on each device: the volumes are as they were, the error
/// says so, and the command run again completes it.
#[test]
fn failing_devices() {
    let world = World::new(Fill { nbuckets: 620, spare: 350, ..Fill::default() });
    let before = world.volumes();
    let options = verifying();
    let run_with = |faults: [Option<Fault>; 3]| {
        let copy = World {
            cache: world.cache.snapshot(),
            backing: world.backing.iter().map(MemoryDevice::snapshot).collect(),
            built: world.built.clone(),
        };
        let faulty = |index: usize, device: &MemoryDevice| {
            let faulty = FaultDevice::new(device.clone());
            if let Some(fault) = faults[index] {
                faulty.add(fault);
            }
            faulty
        };
        let cache = faulty(0, &copy.cache);
        let backing: Vec<_> =
            copy.backing.iter().enumerate().map(|(index, it)| faulty(index + 1, it)).collect();
        let refs: Vec<&dyn BlockDevice> = backing.iter().map(|it| it as &dyn BlockDevice).collect();
        let result = run_on(&cache, &refs, &options);
        let changes: Vec<u64> =
            std::iter::once(&cache).chain(&backing).map(FaultDevice::changes).collect();
        (copy, result, changes)
    };
    let (_, whole, changes) = run_with([None; 3]);
    whole.unwrap();
    let mut states = Vec::new();
    for device in 0..3 {
        for n in 0..changes[device] {
            for lasting in [Lasting::Once, Lasting::DeviceGone] {
                let mut faults = [None; 3];
                faults[device] =
                    Some(Fault::new(Trigger::NthChange(n)).torn_after(512).lasting(lasting));
                let (after, result, _) = run_with(faults);
                let error = result.unwrap_err();
                states.push(error.state());
                assert_ne!(error.state(), WritebackState::Undefined, "{error:?}");
                assert!(after.volumes() == before, "device {device}, change {n}: {error:?}");
                run_all(&after, &options).unwrap();
                let case = format!("device {device}, change {n}");
                assert_written_back(&after.cache, &after.backing, &before, false, &case);
            }
        }
    }
    for state in [WritebackState::Old, WritebackState::OldOrNew, WritebackState::New] {
        assert!(states.contains(&state), "{state:?}");
    }

    // Dirty data that the cache cannot read any more: said where it belongs, nothing made clean.
    let opened = CacheDevice::open(&world.cache).unwrap();
    let set = CacheSet::read(opened, &ReadOptions::default(), &mut NoVisitor).unwrap();
    let mut lost = None;
    set.for_each_extent(&ReadOptions::default().walk, &mut |found| {
        if let bcache_core::cache_set::Found::Extent { key, .. } = found {
            if key.dirty() && key.inode() == 1 {
                lost.get_or_insert(*key);
            }
        }
        std::ops::ControlFlow::Continue(())
    });
    let lost = lost.unwrap();
    let offset = lost.ptrs()[0].offset().bytes();
    let fault =
        Fault::new(Trigger::Overlaps { operation: Some(Operation::Read), offset, len: 512 })
            .lasting(Lasting::Always);
    let (after, result, _) = run_with([Some(fault), None, None]);
    match result.unwrap_err() {
        WritebackRunError::Copy { slot: 1, source: CopyError::Cache { sector, len, .. } } => {
            assert!(sector <= lost.start() && lost.start() < sector + len.0);
        }
        other => panic!("{other:?}"),
    }
    assert_eq!(after.cache.first_difference(&world.cache), None);
    assert!(after.volumes() == before);
}

#[test]
fn too_few_buckets_are_told_with_what_there_is() {
    let fill = Fill { spare: 0, nbuckets: 900, dirty_percent: 100, ..Fill::default() };
    let world = World::new(fill);
    use_up(&world, 0);
    let opened = CacheDevice::open(&world.cache).unwrap();
    let set = CacheSet::read(opened, &ReadOptions::default(), &mut NoVisitor).unwrap();
    let source = KeptExtents::new(&set, ReadOptions::default().walk);
    match rebuild::plan(&set, &source, None, 1) {
        Err(RebuildError::TooFewUnused { needed, found: 0, clean: 0 }) => assert!(needed > 2),
        other => panic!("{other:?}"),
    }
    assert_eq!(Gen(1), (SetBuilder::default().bucket_disk)(0).bucket_gen);
}
