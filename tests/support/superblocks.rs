//! Superblocks around those that we write: one legal superblock, and a few of its fields set to
//! values at which something changes. The same seed gives the same superblocks.

use bcache_core::layout::superblock::{
    BackingParams, CacheMode, CacheParams, Kind, Label, Replacement, SB_BYTES, Superblock,
};
use bcache_core::layout::verdict::Target;
use bcache_core::units::Sectors;
use rand::seq::IndexedRandom as _;
use rand::{Rng, RngCore as _};
use rand_pcg::Pcg64;
use std::fmt::Write as _;
use uuid::Uuid;

/// A superblock, and what was done to it.
#[derive(Clone, Debug)]
pub struct Varied {
    /// The superblock.
    pub superblock: Superblock,
    /// What it was made from and which fields were changed, in words.
    pub story: String,
}

/// Fields by their place in the superblock (docs/on-disk-format.md §1.1), so that none is left out
/// because our code has no setter for it.
const OFFSET: (usize, usize) = (8, 8);
const VERSION: (usize, usize) = (16, 8);
const UUID: usize = 40;
const SET_UUID: usize = 56;
const LABEL: usize = 72;
const FLAGS: (usize, usize) = (104, 8);
const SEQ: (usize, usize) = (112, 8);
const COMPAT: (usize, usize) = (120, 8);
const INCOMPAT: (usize, usize) = (128, 8);
const RO_COMPAT: (usize, usize) = (136, 8);
const PAD: usize = 144;
const NBUCKETS: (usize, usize) = (184, 8);
const BLOCK_SIZE: (usize, usize) = (192, 2);
const BUCKET_SIZE: (usize, usize) = (194, 2);
const NR_IN_SET: (usize, usize) = (196, 2);
const NR_THIS_DEV: (usize, usize) = (198, 2);
const LAST_MOUNT: (usize, usize) = (200, 4);
const FIRST_BUCKET: (usize, usize) = (204, 2);
const KEYS: (usize, usize) = (206, 2);
const D: usize = 208;
const BUCKET_SIZE_HI: (usize, usize) = (2256, 2);

struct Bytes {
    bytes: Vec<u8>,
    story: String,
}

impl Bytes {
    fn get(&self, (offset, len): (usize, usize)) -> u64 {
        let mut word = [0; 8];
        word[..len].copy_from_slice(&self.bytes[offset..offset + len]);
        u64::from_le_bytes(word)
    }

    fn set(&mut self, name: &str, (offset, len): (usize, usize), value: u64) {
        self.bytes[offset..offset + len].copy_from_slice(&value.to_le_bytes()[..len]);
        let _ = write!(self.story, ", {name} {value:#x}");
    }

    fn tell(&mut self, what: &str) {
        self.story.push_str(", ");
        self.story.push_str(what);
    }
}

fn pick<T: Copy>(rng: &mut Pcg64, values: &[T]) -> T {
    *values.choose(rng).expect("a choice of at least one")
}

fn fresh_uuid(rng: &mut Pcg64) -> Uuid {
    uuid::Builder::from_random_bytes(rng.random()).into_uuid()
}

/// A superblock for a device such as `target`, with up to four fields changed.
///
/// # Panics
/// On a device so small that no cache fits it at all (under 8 buckets of a page).
pub fn vary(rng: &mut Pcg64, target: &Target) -> Varied {
    let superblock = if rng.random_bool(0.6) { cache(rng, target) } else { backing(rng, target) };
    let story = format!("{superblock:?}");
    let mut bytes = Bytes { bytes: superblock.as_bytes().to_vec(), story };
    if rng.random_bool(0.5) {
        let version = match superblock.kind() {
            Some(Kind::Cache) => pick(rng, &[3, 5]),
            _ => pick(rng, &[4, 6]),
        };
        bytes.set("version", VERSION, version);
        if version == 4 || version == 6 {
            bytes.set("data_offset", NBUCKETS, pick(rng, &[16, 17, 24, 64, 2048]));
        }
    }
    for _ in 0..pick(rng, &[0, 1, 1, 1, 1, 2, 2, 3, 4]) {
        change(rng, &mut bytes, target);
    }
    let mut superblock = Superblock::from_bytes(&bytes.bytes).expect("enough bytes");
    superblock.update_checksum();
    if rng.random_bool(0.03) {
        let mut damaged = superblock.as_bytes().to_vec();
        let bit = rng.random_range(0..8 * D);
        damaged[bit / 8] ^= 1 << (bit % 8);
        bytes.tell(&format!("bit {bit} flipped"));
        superblock = Superblock::from_bytes(&damaged).expect("enough bytes");
    }
    Varied { superblock, story: bytes.story }
}

fn cache(rng: &mut Pcg64, target: &Target) -> Superblock {
    let most = (target.device_size.0 / 513).max(8);
    let shifts: Vec<u32> = (3..=16).filter(|shift| 1 << shift <= most).collect();
    let bucket_size = 1_u64 << pick(rng, &shifts);
    let room = target.device_size.0 / bucket_size;
    let nbuckets = pick(rng, &[513, 514, 600, 1023, 1024, 1025, 4096]).min(room);
    Superblock::new_cache(&CacheParams {
        uuid: fresh_uuid(rng),
        set_uuid: fresh_uuid(rng),
        label: Label::new(pick(rng, &["", "label"])).unwrap_or_default(),
        nbuckets,
        bucket_size: Sectors(bucket_size),
        block_size: block_size(rng, target),
        replacement: pick(rng, &[Replacement::Lru, Replacement::Fifo, Replacement::Random]),
        discard: rng.random(),
    })
}

fn backing(rng: &mut Pcg64, target: &Target) -> Superblock {
    Superblock::new_backing(&BackingParams {
        uuid: fresh_uuid(rng),
        set_uuid: fresh_uuid(rng),
        label: Label::new(pick(rng, &["", "label"])).unwrap_or_default(),
        data_offset: Sectors(pick(rng, &[16, 16, 24, 2048])),
        block_size: block_size(rng, target),
        cache_mode: pick(rng, &[CacheMode::Writethrough, CacheMode::Writeback]),
    })
}

fn block_size(rng: &mut Pcg64, target: &Target) -> u16 {
    let least = u16::try_from(target.logical_block_bytes / 512).unwrap_or(8).max(1);
    pick(rng, &[1, 2, 4, 8]).max(least)
}

/// Changes one field.
fn change(rng: &mut Pcg64, sb: &mut Bytes, target: &Target) {
    match rng.random_range(0..26) {
        // What is looked at first would else hide all that is looked at later.
        0 | 3 if rng.random_bool(0.7) => change(rng, sb, target),
        0 => sb.set("offset", OFFSET, pick(rng, &[0, 7, 9, 8 | 1 << 32, u64::MAX])),
        1 | 2 => {
            let versions = [0, 1, 2, 3, 4, 5, 6, 7, 1 << 32, 5 | 1 << 63, u64::MAX];
            sb.set("version", VERSION, pick(rng, &versions));
        }
        3 => {
            sb.bytes[24 + rng.random_range(0..16)] ^= 1 << rng.random_range(0..8);
            sb.tell("another magic");
        }
        4 => {
            let start = pick(rng, &[UUID, SET_UUID]);
            sb.bytes[start..start + 16].fill(0);
            // A uuid of which only the end is not zero is one.
            sb.bytes[start + 15] = pick(rng, &[0, 0, 1]);
            sb.tell(&format!("uuid at byte {start} cleared"));
        }
        5 => {
            rng.fill_bytes(&mut sb.bytes[LABEL..LABEL + 32]);
            sb.tell("random label");
        }
        6 | 7 => {
            let bit = 1 << rng.random_range(0..64);
            let flags = pick(rng, &[0, 1, 3, 0xc, 0x10, 0x1f, bit, bit | 1, 3 << 61, u64::MAX]);
            sb.set("flags", FLAGS, flags);
        }
        8 => sb.set("seq", SEQ, pick(rng, &[0, 1, 1 << 32, u64::MAX])),
        9 => {
            let field = pick(rng, &[COMPAT, RO_COMPAT]);
            sb.set("(ro_)compat", field, pick(rng, &[0, 1, 2, 1 << 63]));
            if sb.get(VERSION) % 2 == 0 || sb.get(VERSION) == 3 {
                sb.set("version", VERSION, 5);
            }
        }
        10 | 11 => {
            sb.set("incompat", INCOMPAT, pick(rng, &[0, 1, 2, 3, 4, 6, 1 << 63]));
            let log2 = pick(rng, &[0, 2, 3, 4, 10, 15, 16, 31, 32, 35, 42, 64, 0xffff]);
            if rng.random() {
                sb.set("bucket_size", BUCKET_SIZE, log2);
            }
        }
        12 => {
            let start = pick(rng, &[PAD, D + 8 * 100, 2258]);
            let end = if start == 2258 { SB_BYTES } else { start + 40 };
            rng.fill_bytes(&mut sb.bytes[start..end]);
            sb.tell(&format!("random bytes at {start}"));
        }
        13 | 14 => {
            let bucket = sb.get(BUCKET_SIZE).max(1);
            let (disk, device) = (target.disk_size.0 / bucket, target.device_size.0 / bucket);
            let counts = [
                0,
                1,
                127,
                128,
                129,
                512,
                513,
                514,
                1024,
                disk.saturating_sub(1),
                disk,
                disk + 1,
                device,
                device + 1,
                u64::from(u32::MAX),
                1 << 32,
                (1 << 32) + 513,
                1 << 61,
                i64::MAX as u64,
                1 << 63,
                u64::MAX,
            ];
            sb.set("nbuckets", NBUCKETS, pick(rng, &counts));
        }
        15 => {
            let size = target.device_size.0;
            let before = |sectors| size.saturating_sub(sectors);
            let offsets = [
                0,
                1,
                15,
                16,
                17,
                before(9),
                before(1),
                size,
                size + 1,
                1 << 32,
                1 << 62,
                u64::MAX,
            ];
            sb.set("data_offset", NBUCKETS, pick(rng, &offsets));
        }
        16 | 24 => {
            let sizes = [0, 1, 2, 3, 4, 5, 7, 8, 9, 12, 16, 64, 128, 0x8000, 0xffff];
            sb.set("block_size", BLOCK_SIZE, pick(rng, &sizes));
        }
        17 | 25 => {
            let sizes = [0, 1, 4, 7, 8, 9, 12, 16, 24, 64, 1000, 1024, 0x4000, 0x8000, 0xffff];
            sb.set("bucket_size", BUCKET_SIZE, pick(rng, &sizes));
        }
        18 => sb.set("bucket_size_hi", BUCKET_SIZE_HI, pick(rng, &[0, 1, 2, 0x8000, 0xffff])),
        19 => {
            sb.set("nr_in_set", NR_IN_SET, pick(rng, &[0, 1, 2, 8, 9, 0xffff]));
            sb.set("nr_this_dev", NR_THIS_DEV, pick(rng, &[0, 1, 7, 8, 0xffff]));
        }
        20 => sb.set("last_mount", LAST_MOUNT, pick(rng, &[0, 1, u64::from(u32::MAX)])),
        21 => {
            let nbuckets = sb.get(NBUCKETS);
            let near = nbuckets.saturating_sub(rng.random_range(0..30)).min(0xffff);
            let buckets = [0, 1, 2, 3, 5, 16, 100, near, near, 0xffff];
            sb.set("first_bucket", FIRST_BUCKET, pick(rng, &buckets));
        }
        _ => journal(rng, sb),
    }
}

/// Names journal buckets, in their order or nearly so.
fn journal(rng: &mut Pcg64, sb: &mut Bytes) {
    // With 487 and more the checksum reaches past the 4096 bytes that are read.
    let count = pick(rng, &[0, 1, 2, 4, 8, 100, 255, 256, 257, 486, 487]);
    sb.set("keys", KEYS, count);
    let first = sb.get(FIRST_BUCKET);
    let count = usize::try_from(count).unwrap_or(0).min(256);
    for index in 0..count {
        let bucket = first + index as u64;
        sb.bytes[D + 8 * index..D + 8 * index + 8].copy_from_slice(&bucket.to_le_bytes());
    }
    if count > 0 && rng.random_bool(0.3) {
        let index = pick(rng, &[0, count / 2, count - 1]);
        let value = pick(rng, &[0, first, first + index as u64 + 1, 1 << 32, u64::MAX]);
        sb.set(&format!("d[{index}]"), (D + 8 * index, 8), value);
    }
}
