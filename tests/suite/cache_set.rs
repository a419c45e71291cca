//! What the reader finds on images that stock kernels wrote, against the kernels' own figures.
//!
//! The figures in each `kernel.log` were taken by the running kernel, before it read the whole of
//! each volume for its MD5 sum and was stopped or lost power. That reading filled the cache with
//! clean data and aged the buckets, so that these figures cannot equal those of the image: unused
//! and clean per cent, ages, `root_usage_percent`, `average_key_size`, `btree_used_percent`.
//! `cache_available_percent` leaves out buckets that the kernel had pinned for its reserves, in
//! memory only. What the reading does not change must be the same: dirty and metadata per cent,
//! `dirty_data`, the depth and, where the kernel had run a GC, the nodes of the btree. Two of the
//! images lost power while data was written on and on: there dirty data may only have grown.

use std::io::Write as _;
use std::ops::ControlFlow;
use std::process::{Command, Stdio};

use bcache_core::cache_set::usage::hprint;
use bcache_core::cache_set::{
    Below, CacheDevice, CacheSet, NoVisitor, Problem, ReadOptions, Visitor, VolumeReader,
};
use bcache_core::device::file::open_read;
use bcache_core::device::testkit::MemoryDevice;
use bcache_core::device::{AlignedBuf, BlockDevice as _, ReadDevice};
use bcache_core::layout::superblock::{SB_BYTES, SB_OFFSET_BYTES, Superblock};
use bcache_core::ops::check::{CheckOptions, Code, Place, Registration, check};
use bcache_core::units::Sectors;
use bcache_tests::fixture::Fixture;

/// Images whose volumes were not written to between the figures and the end.
const AT_REST: [&str; 3] = ["clean-612", "dirty-61", "multi-612"];

#[derive(Default)]
struct Problems(Vec<String>);

impl Visitor for Problems {
    fn problem(&mut self, problem: Problem) {
        self.0.push(problem.to_string());
    }
}

/// The value of a line of `priority_stats`, such as `Dirty:`.
fn priority_stat(fixture: &Fixture, name: &str) -> u64 {
    let stats = fixture.log.figure("cache0/priority_stats").unwrap();
    let line = stats.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches('%').parse().unwrap()
}

fn for_each(names: &[&str], mut test: impl FnMut(&Fixture, &CacheSet<'_>)) {
    for name in names {
        let fixture = Fixture::unpack(name).unwrap();
        let device = open_read(&fixture.cache).unwrap();
        let cache = CacheDevice::open(&device).unwrap();
        let mut problems = Problems::default();
        let set = CacheSet::read(cache, &ReadOptions::default(), &mut problems).unwrap();
        assert_eq!(problems.0, [""; 0], "{name}");
        test(&fixture, &set);
    }
}

fn all() -> Vec<String> {
    Fixture::names().unwrap()
}

#[test]
fn figures_are_the_kernels() {
    for_each(&AT_REST, |fixture, set| {
        let name = &fixture.name;
        let stats = set.priority_stats();
        let percent = |count| stats.buckets.percent(count);
        assert_eq!(percent(stats.buckets.dirty), priority_stat(fixture, "Dirty:"), "{name}");
        assert_eq!(percent(stats.buckets.metadata), priority_stat(fixture, "Metadata:"), "{name}");
        let number = |figure| fixture.log.number(figure).unwrap();
        assert_eq!(stats.buckets.total, number("cache0/nbuckets"), "{name}");
        assert_eq!(set.btree.nodes, number("internal/btree_nodes"), "{name}");
        assert_eq!(u64::from(set.btree.depth), number("tree_depth"), "{name}");
        // Reading the volumes can only have moved these in one direction.
        assert!(percent(stats.buckets.unused) <= priority_stat(fixture, "Unused:"), "{name}");
        assert!(percent(stats.buckets.clean) >= priority_stat(fixture, "Clean:"), "{name}");
        assert!(set.btree.root_usage_percent() >= number("root_usage_percent"), "{name}");
        assert!(set.available_percent() >= number("cache_available_percent"), "{name}");
        let disks = ["vda", "vdc"];
        for (slot, disk) in (0..).zip(disks.iter().take(fixture.backing.len())) {
            let figure = format!("/sys/block/{disk}/bcache/dirty_data");
            let dirty = set.volumes.get(&slot).copied().unwrap_or_default().dirty_sectors;
            assert_eq!(Some(hprint(dirty.bytes()).as_str()), fixture.log.figure(&figure), "{name}");
        }
    });
}

#[test]
fn figures_of_images_that_lost_power_are_those_the_kernel_came_from() {
    for_each(&["crash-612", "crashhot-61"], |fixture, set| {
        let name = &fixture.name;
        let stats = set.priority_stats();
        let percent = |count| stats.buckets.percent(count);
        assert_eq!(percent(stats.buckets.metadata), priority_stat(fixture, "Metadata:"), "{name}");
        assert!(percent(stats.buckets.dirty) >= priority_stat(fixture, "Dirty:"), "{name}");
        assert_eq!(u64::from(set.btree.depth), fixture.log.number("tree_depth").unwrap(), "{name}");
        // "7.3M": at least that many tenths of a megabyte.
        let dirty = fixture.log.figure("/sys/block/vda/bcache/dirty_data").unwrap();
        let tenths: u64 = dirty.replace(['.', 'M'], "").parse().unwrap();
        assert!((set.dirty_sectors().bytes() * 10) >> 20 >= tenths, "{name}: {dirty}");
    });
}

#[test]
fn replay_ranges_are_whole_and_found_where_the_kernel_looks() {
    let names = all();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let expected = [
        ("clean-612", (239, 240), 0),
        ("crash-612", (259, 260), 0),
        ("crashhot-61", (76, 78), 81),
        ("dirty-61", (196, 197), 0),
        ("multi-612", (195, 196), 0),
    ];
    let mut found = Vec::new();
    for_each(&names, |fixture, set| {
        let range = set.journal.replay_range().unwrap();
        found.push((fixture.name.clone(), range, set.journal.replay_keys().count()));
        let places = set.journal.append_places(&set.cache).unwrap();
        assert!(places.after_newest.is_some() && places.next_bucket.is_ok(), "{places:?}");
    });
    let expected = expected.map(|(name, range, keys)| (name.to_owned(), range, keys));
    assert_eq!(found, expected);
}

/// The MD5 sum of a whole volume, read through the cache.
fn md5_of_volume(set: &CacheSet<'_>, slot: u32, backing: Option<&dyn ReadDevice>) -> String {
    let (data_offset, size) = if let Some(device) = backing {
        let mut bytes = AlignedBuf::zeroed(SB_BYTES);
        device.read_at(SB_OFFSET_BYTES, &mut bytes).unwrap();
        let sb = Superblock::from_bytes(&bytes).unwrap();
        assert_eq!(set.uuids.find(sb.uuid()).unwrap().0, slot);
        (sb.data_offset(), device.info().size() - sb.data_offset())
    } else {
        (Sectors(0), set.uuids.get(slot).unwrap().sectors)
    };
    let mut reader = VolumeReader::new(
        set,
        slot,
        backing.map_or(Below::Nothing, |device| Below::Backing(device, data_offset)),
    );
    let mut md5sum =
        Command::new("md5sum").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut pipe = md5sum.stdin.take().unwrap();
    let mut chunk = AlignedBuf::zeroed(1 << 20);
    let mut offset = 0;
    while offset < size.bytes() {
        let len = usize::try_from(size.bytes() - offset).unwrap().min(chunk.len());
        reader.read_at(offset, &mut chunk[..len]).unwrap();
        pipe.write_all(&chunk[..len]).unwrap();
        offset += len as u64;
    }
    drop(pipe);
    let output = md5sum.wait_with_output().unwrap();
    String::from_utf8(output.stdout).unwrap().split(' ').next().unwrap().to_owned()
}

#[test]
fn volumes_read_as_the_kernel_read_them() {
    for_each(&AT_REST, |fixture, set| {
        let backing: Vec<_> = fixture.backing.iter().map(|path| open_read(path).unwrap()).collect();
        let volumes: Vec<u32> = set.uuids.used().map(|(slot, _)| slot).collect();
        assert!(volumes.len() >= backing.len());
        for (index, slot) in volumes.into_iter().enumerate() {
            let device = backing.get(index).map(|device| device as &dyn ReadDevice);
            let kernel = fixture.log.md5(&format!("/dev/bcache{index}")).unwrap();
            assert_eq!(md5_of_volume(set, slot, device), kernel, "{} {slot}", fixture.name);
        }
    });
}

#[test]
fn without_the_cache_a_dirty_volume_reads_differently() {
    // The control for the test above: it would not notice a reader that never uses the cache.
    for_each(&["dirty-61"], |fixture, set| {
        let device = open_read(&fixture.backing[0]).unwrap();
        let mut empty = set.clone();
        empty.volumes.clear();
        empty.uuids.slots.rotate_right(1);
        let data_offset = Sectors(16);
        let mut reader = VolumeReader::new(&empty, 1, Below::Backing(&device, data_offset));
        let mut through = VolumeReader::new(set, 0, Below::Backing(&device, data_offset));
        let (mut a, mut b) = (vec![0; 1 << 20], vec![0; 1 << 20]);
        let differ = (0..32u64).any(|mib| {
            reader.read_at(mib << 20, &mut a).unwrap();
            through.read_at(mib << 20, &mut b).unwrap();
            a != b
        });
        assert!(differ);
    });
}

#[test]
fn reading_without_a_visitor_finds_the_same() {
    let fixture = Fixture::unpack("multi-612").unwrap();
    let device = open_read(&fixture.cache).unwrap();
    let read = |threads| {
        let mut options = ReadOptions::default();
        options.walk.threads = threads;
        CacheSet::read(CacheDevice::open(&device).unwrap(), &options, &mut NoVisitor).unwrap()
    };
    let (one, many) = (read(1), read(4));
    assert_eq!(one.table, many.table);
    assert_eq!(one.volumes, many.volumes);
    assert_eq!(one.btree, many.btree);
}

#[test]
fn check_finds_nothing_and_says_what_is_dirty() {
    let dirty_volumes =
        [("clean-612", 0), ("crash-612", 1), ("crashhot-61", 1), ("dirty-61", 1), ("multi-612", 3)];
    for (name, volumes) in dirty_volumes {
        let fixture = Fixture::unpack(name).unwrap();
        let device = open_read(&fixture.cache).unwrap();
        let backing: Vec<_> = fixture.backing.iter().map(|path| open_read(path).unwrap()).collect();
        let options = CheckOptions {
            backing: backing.iter().map(|device| device as &dyn ReadDevice).collect(),
            verify_clean: true,
            ..CheckOptions::default()
        };
        let report = check(&device, &options, &mut |_| {}).unwrap();
        let findings: Vec<String> = report.findings.iter().map(ToString::to_string).collect();
        assert_eq!(findings, [""; 0], "{name}");
        assert!(report.is_clean() && !report.incomplete && !report.data_at_risk, "{name}");
        assert_eq!(report.registration, Registration::Accepted, "{name}");
        assert_eq!(report.dirty.len(), volumes, "{name}: {:?}", report.dirty);
        let flash_only = report.dirty.iter().filter(|volume| volume.flash_only).count();
        assert_eq!(flash_only, usize::from(name == "multi-612"));
    }
}

#[test]
fn verify_clean_notices_a_single_byte() {
    let fixture = Fixture::unpack("clean-612").unwrap();
    let device = open_read(&fixture.cache).unwrap();
    let backing = MemoryDevice::from_reader(&mut std::fs::File::open(&fixture.backing[0]).unwrap());
    let backing = backing.unwrap();
    let set = CacheSet::read(
        CacheDevice::open(&device).unwrap(),
        &ReadOptions::default(),
        &mut NoVisitor,
    );
    let mut extents = Vec::new();
    let end = backing.info().size().0;
    let keep = &mut |extent| {
        extents.push(extent);
        ControlFlow::Continue(())
    };
    set.unwrap().view().lookup(0, 0, end, keep).unwrap();
    let extent = extents.iter().filter(|extent| extent.cached.is_some()).nth(100).unwrap();
    let place = (extent.end - 1) * 512;
    let mut sector = [0; 512];
    backing.read_at(place, &mut sector).unwrap();
    sector[77] ^= 1;
    backing.write_at(place, &sector).unwrap();
    let options =
        CheckOptions { backing: vec![&backing], verify_clean: true, ..CheckOptions::default() };
    let report = check(&device, &options, &mut |_| {}).unwrap();
    assert_eq!(report.counts.keys().collect::<Vec<_>>(), [&Code::CleanMismatch]);
    let Place::Volume { slot, start, sectors } = report.findings[0].place() else { panic!() };
    assert_eq!((slot, start, sectors), (0, extent.end - 1, 1));
}
