//! Metadata images: they read as the device does, hold no data, lose names on request, and are
//! restored whole or not at all.

use bcache_core::cache_set::testkit::{BuiltSet, SetBuilder, backing_volume};
use bcache_core::cache_set::{CacheDevice, CacheSet, NoVisitor, OpenError, ReadOptions};
use bcache_core::device::packed::{ChunkRole, PackedReader};
use bcache_core::device::testkit::{MemoryDevice, SimDevice};
use bcache_core::device::{BlockDevice, DeviceError, ReadDevice};
use bcache_core::layout::bkey::{Bkey, Ptr};
use bcache_core::layout::superblock::Label;
use bcache_core::ops::check::{CheckOptions, Report, check};
use bcache_core::ops::image::{RestoreError, create, restore};
use bcache_core::units::Sectors;

const NBUCKETS: u64 = 2000;
const DATA: u8 = 0xda;

/// A set on a device that is full of data everywhere else.
fn sample(with_labels: bool) -> (MemoryDevice, BuiltSet) {
    let mut volumes = vec![backing_volume(0x1234_5678_9abc), backing_volume(0xfedc_ba98_7654)];
    if with_labels {
        volumes[0].label = Label::new("secret-home").unwrap();
    }
    let mut builder = SetBuilder {
        nbuckets: NBUCKETS,
        bucket_size: Sectors(16),
        block_size: 1,
        sets_per_node: 2,
        fill_percent: 10,
        first_seq: 40,
        last_seq: 41,
        njournal: 8,
        volumes,
        ..SetBuilder::default()
    };
    let first = builder.data_buckets(0).start;
    let key = |builder: &SetBuilder, n: u64, end: u64| {
        let bucket = first + n;
        let ptr_gen = (builder.bucket_disk)(bucket).bucket_gen;
        Bkey::new(0, end, 8).with_ptrs(&[Ptr::new(ptr_gen, Sectors(bucket * 16), 0)])
    };
    builder.journal = (0..4).map(|n| vec![key(&builder, 400 + n, 90_000 + n * 8)]).collect();
    let device = MemoryDevice::new(NBUCKETS * 16 * 512);
    device.write_at(0, &vec![DATA; usize::try_from(NBUCKETS * 16 * 512).unwrap()]).unwrap();
    let keys: Vec<Bkey> =
        (0..300).map(|n| key(&builder, n, 100 + n * 16).with_dirty(n % 4 == 0)).collect();
    let built = builder.write(&device, keys.into_iter()).unwrap();
    assert!(built.root.0 > 0);
    (device, built)
}

fn image_of(device: &dyn ReadDevice, anonymize: bool) -> Vec<u8> {
    create(device, anonymize, Vec::new(), &mut |_| {}).unwrap().1
}

fn open(bytes: &[u8]) -> PackedReader<MemoryDevice> {
    PackedReader::open(MemoryDevice::from_bytes(bytes)).unwrap()
}

fn contents(image: &PackedReader<MemoryDevice>) -> Vec<(u64, Vec<u8>)> {
    let all = image.chunks().iter().enumerate();
    all.map(|(index, chunk)| (chunk.offset, image.contents(index).unwrap().to_vec())).collect()
}

fn report(device: &dyn ReadDevice) -> Report {
    check(device, &CheckOptions::default(), &mut |_| {}).unwrap()
}

fn read(device: &dyn ReadDevice) -> CacheSet<'_> {
    let cache = CacheDevice::open(device).unwrap();
    CacheSet::read(cache, &ReadOptions::default(), &mut NoVisitor).unwrap()
}

#[test]
fn an_image_reads_as_the_device_and_holds_no_data() {
    let (device, built) = sample(true);
    let bytes = image_of(&device, false);
    assert!(bytes.len() < 200_000, "{}", bytes.len());
    let image = open(&bytes);
    assert!(report(&image).is_clean(), "{:?}", report(&image).findings);
    let (whole, packed) = (read(&device), read(&image));
    assert_eq!(whole.table, packed.table);
    assert_eq!(whole.volumes, packed.volumes);
    assert_eq!(whole.btree, packed.btree);
    assert_eq!(whole.uuids, packed.uuids);
    assert_eq!(
        whole.journal.headers().collect::<Vec<_>>(),
        packed.journal.headers().collect::<Vec<_>>()
    );
    for (offset, bytes) in contents(&image) {
        let run = bytes.windows(8).position(|window| window == [DATA; 8]);
        assert_eq!(run, None, "data in the part at byte {offset}");
    }
    // Data is absent, not zero.
    let data = built.geometry.bucket_to_sector(built.prio_buckets[0]).bytes() + 100 * 16 * 512;
    let error = image.read_at(data, &mut [0; 512]).unwrap_err();
    assert!(matches!(error, DeviceError::Absent { .. }), "{error}");
}

#[test]
fn an_anonymous_image_has_no_names_and_is_as_sound() {
    let (device, built) = sample(true);
    let image = open(&image_of(&device, true));
    assert!(image.header().anonymized);
    assert!(report(&image).is_clean(), "{:?}", report(&image).findings);
    let (whole, packed) = (read(&device), read(&image));
    assert_eq!(whole.table, packed.table);
    assert_eq!(whole.volumes, packed.volumes);
    assert_eq!(packed.uuids.slots[0].label.to_string(), "volume-0");
    assert!(packed.uuids.slots[1].label.is_empty());
    let sb = &built.superblock;
    let mut secrets: Vec<Vec<u8>> = vec![b"secret".to_vec()];
    secrets.extend([sb.uuid(), sb.set_uuid()].map(|uuid| uuid.as_bytes().to_vec()));
    secrets.extend(whole.uuids.used().map(|(_, entry)| entry.uuid.as_bytes().to_vec()));
    secrets.extend(
        [built.magic.jset(), built.magic.pset(), built.magic.bset()]
            .map(|m| m.to_le_bytes().to_vec()),
    );
    for (offset, bytes) in contents(&image) {
        for secret in &secrets {
            let found = bytes.windows(secret.len()).any(|window| window == secret.as_slice());
            assert!(!found, "{secret:02x?} in the part at byte {offset}");
        }
    }
    // The control: they are there without it.
    let all: Vec<u8> =
        contents(&open(&image_of(&device, false))).into_iter().flat_map(|it| it.1).collect();
    for secret in &secrets {
        assert!(all.windows(secret.len()).any(|window| window == secret.as_slice()));
    }
}

/// What is wrong with a set is wrong with its images.
#[test]
fn damage_stays() {
    let (device, built) = sample(false);
    let places = [
        built.geometry.bucket_to_sector(built.prio_buckets[0]).bytes() + 1000,
        built.root.1.ptrs()[0].offset().bytes() + 48,
        4096 + 300,
    ];
    for byte in places {
        let damaged = device.snapshot();
        let mut sector = [0; 512];
        damaged.read_at(byte / 512 * 512, &mut sector).unwrap();
        sector[usize::try_from(byte % 512).unwrap()] ^= 16;
        damaged.write_at(byte / 512 * 512, &sector).unwrap();
        let counts = report(&damaged).counts;
        for anonymize in [false, true] {
            let image = open(&image_of(&damaged, anonymize));
            assert_eq!(report(&image).counts, counts, "byte {byte}, anonymize {anonymize}");
        }
        if byte > 5000 {
            assert!(!counts.is_empty());
        }
    }
}

#[test]
fn a_restored_device_holds_the_set() {
    let (device, _) = sample(false);
    let image = open(&image_of(&device, false));
    let target = MemoryDevice::new(NBUCKETS * 16 * 512);
    restore(&image, &target, &mut |_, _| {}).unwrap();
    assert!(report(&target).is_clean());
    assert_eq!(read(&target).table, read(&device).table);
    let short = MemoryDevice::new(NBUCKETS * 16 * 512 - 512);
    let error = restore(&image, &short, &mut |_, _| {}).unwrap_err();
    assert!(matches!(error, RestoreError::TooSmall { .. }) && !error.may_have_written());
    assert_eq!(short.resident_bytes(), 0);
}

/// Cut at every write, any subset of the unflushed ones surviving: no superblock, or all.
#[test]
fn a_power_cut_while_restoring_leaves_nothing_or_all() {
    let (device, _) = sample(false);
    let image = open(&image_of(&device, false));
    // Over an older set.
    let (old, _) = sample(true);
    let whole = SimDevice::new(&old);
    restore(&image, &whole, &mut |_, _| {}).unwrap();
    let changes = whole.changes();
    assert!(changes > 10);
    let expected = read(&device).table.clone();
    let (mut old_left, mut none, mut new) = (0, 0, 0);
    for cut in 0..changes {
        let sim = SimDevice::new(&old).with_power_cut_at(cut);
        assert!(restore(&image, &sim, &mut |_, _| {}).is_err());
        for seed in 0..3 {
            let left = sim.crash(seed);
            match CacheDevice::open(&left) {
                Err(OpenError::NotBcache) => none += 1,
                Err(error) => panic!("{error}"),
                Ok(cache) if cache.superblock().csum_ok() => {
                    assert!(report(&left).is_clean(), "cut {cut}");
                    let labelled = !read(&left).uuids.slots[0].label.is_empty();
                    if labelled { old_left += 1 } else { new += 1 }
                }
                // The superblock's write was torn: its checksum tells.
                Ok(_) => none += 1,
            }
            restore(&image, &left, &mut |_, _| {}).unwrap();
            assert!(report(&left).is_clean());
            assert!(read(&left).table == expected);
        }
    }
    assert!(old_left > 0 && none > 0 && new > 0, "{old_left} {none} {new}");
}

#[test]
fn chunks_of_a_metadata_image_are_contents() {
    let (device, _) = sample(false);
    let image = open(&image_of(&device, false));
    assert!(image.chunks().iter().all(|chunk| chunk.role == ChunkRole::Contents));
}
