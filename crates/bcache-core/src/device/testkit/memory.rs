//! A device in memory.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use crate::checksum::crc64_seeded;
use crate::device::{
    BlockDevice, DeviceError, DeviceInfo, DeviceKind, ReadDevice, check_aligned, check_range,
};
use crate::units::Sectors;

/// Bytes held together; what was never written takes no memory.
const PAGE: usize = 4096;
const PAGE_BYTES: u64 = PAGE as u64;

/// What a discarded range reads as. The contract says "undefined", so a test of code that discards
/// should try each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DiscardReads {
    /// Zeroes.
    #[default]
    Zeroes,
    /// The old data.
    OldData,
    /// A pattern that nothing of bcache's looks like.
    Garbage,
}

const GARBAGE: u8 = 0xd5;

/// Contents by page number. Pages are shared between snapshots until one of them is written.
type Pages = BTreeMap<u64, Arc<[u8; PAGE]>>;

/// A device in memory whose clones share their contents.
///
/// It takes memory for the pages written only, so that a device of 16 TiB costs what is on it.
#[derive(Clone, Debug)]
pub struct MemoryDevice {
    info: DeviceInfo,
    discard_reads: DiscardReads,
    pages: Arc<RwLock<Pages>>,
}

impl MemoryDevice {
    /// A device of `size_bytes` zero bytes with logical and physical blocks of 512 bytes.
    pub fn new(size_bytes: u64) -> Self {
        Self {
            info: DeviceInfo {
                path: PathBuf::from("memory"),
                kind: DeviceKind::Memory,
                size_bytes,
                logical_block_bytes: 512,
                physical_block_bytes: 512,
                disk_size: Sectors::from_bytes_floor(size_bytes),
                discard: true,
                zoned: false,
                read_only: false,
                is_bcache_volume: false,
            },
            discard_reads: DiscardReads::default(),
            pages: Arc::default(),
        }
    }

    /// A device that holds `bytes`.
    pub fn from_bytes(bytes: &[u8]) -> Self {
        let device = Self::new(bytes.len() as u64);
        write_pages(&mut device.pages_mut(), 0, bytes);
        device
    }

    /// A device that holds what `reader` gives until its end, such as a decompressed image.
    pub fn from_reader(reader: &mut dyn Read) -> io::Result<Self> {
        let mut device = Self::new(0);
        let mut chunk = vec![0; 1 << 20];
        let mut size_bytes = 0u64;
        loop {
            let got = match reader.read(&mut chunk) {
                Ok(0) => break,
                Ok(got) => got,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            write_pages(&mut device.pages_mut(), size_bytes, chunk.get(..got).unwrap_or_default());
            size_bytes += got as u64;
        }
        device.info.size_bytes = size_bytes;
        device.info.disk_size = Sectors::from_bytes_floor(size_bytes);
        Ok(device)
    }

    /// The same contents through a handle whose facts `change` has changed.
    #[must_use]
    pub fn with_info(mut self, change: impl FnOnce(&mut DeviceInfo)) -> Self {
        change(&mut self.info);
        self
    }

    /// The same contents with logical and physical blocks of `bytes`.
    #[must_use]
    pub fn with_block(self, bytes: u32) -> Self {
        self.with_info(|info| {
            info.logical_block_bytes = bytes;
            info.physical_block_bytes = bytes;
        })
    }

    /// The same contents through a handle whose discards read back as `reads`.
    #[must_use]
    pub fn with_discard_reads(mut self, reads: DiscardReads) -> Self {
        self.discard_reads = reads;
        self
    }

    /// A device with a copy of the contents as they are now.
    #[must_use]
    pub fn snapshot(&self) -> Self {
        let pages = Arc::new(RwLock::new(self.pages().clone()));
        Self { info: self.info.clone(), discard_reads: self.discard_reads, pages }
    }

    /// Makes the contents those of `snapshot`, for every clone of this device.
    pub fn restore(&self, snapshot: &Self) {
        let pages = snapshot.pages().clone();
        *self.pages_mut() = pages;
    }

    /// A hash of the size and the contents. Pages of zeroes count as never written.
    pub fn content_hash(&self) -> u64 {
        self.pages().iter().filter(|(_, page)| page.iter().any(|&byte| byte != 0)).fold(
            self.info.size_bytes,
            |hash, (number, page)| {
                crc64_seeded(crc64_seeded(hash, &number.to_le_bytes()), page.as_slice())
            },
        )
    }

    /// The first byte in which the contents differ from `other`'s; `None` when they are equal.
    pub fn first_difference(&self, other: &Self) -> Option<u64> {
        if Arc::ptr_eq(&self.pages, &other.pages) {
            return None;
        }
        let (ours, theirs) = (self.snapshot(), other.snapshot());
        let (ours, theirs) = (ours.pages(), theirs.pages());
        let mut numbers: Vec<u64> = ours.keys().chain(theirs.keys()).copied().collect();
        numbers.sort_unstable();
        numbers.dedup();
        numbers.into_iter().find_map(|number| {
            let page = |pages: &Pages| pages.get(&number).map_or([0; PAGE], |page| **page);
            let (our_page, their_page) = (page(&ours), page(&theirs));
            let at = our_page.iter().zip(&their_page).position(|(a, b)| a != b)?;
            Some(number * PAGE_BYTES + at as u64)
        })
    }

    /// Bytes of memory that the contents take.
    pub fn resident_bytes(&self) -> u64 {
        self.pages().len() as u64 * PAGE_BYTES
    }

    /// Writes the contents to a new sparse file, for programs that want a path.
    pub fn save(&self, path: impl AsRef<Path>) -> io::Result<()> {
        let file = File::create_new(path)?;
        file.set_len(self.info.size_bytes)?;
        for (number, page) in self.pages().iter() {
            let offset = number * PAGE_BYTES;
            let len = self.info.size_bytes.saturating_sub(offset).min(PAGE_BYTES);
            let bytes = page.get(..usize::try_from(len).unwrap_or(PAGE)).unwrap_or(page.as_slice());
            file.write_all_at(bytes, offset)?;
        }
        file.sync_data()
    }

    fn pages(&self) -> RwLockReadGuard<'_, Pages> {
        self.pages.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn pages_mut(&self) -> RwLockWriteGuard<'_, Pages> {
        self.pages.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReadDevice for MemoryDevice {
    fn info(&self) -> &DeviceInfo {
        &self.info
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DeviceError> {
        check_range(&self.info, offset, buf.len() as u64)?;
        let pages = self.pages();
        let mut at = offset;
        let mut rest = buf;
        while !rest.is_empty() {
            let (number, within, take) = piece(at, rest.len());
            let (head, tail) = rest.split_at_mut(take);
            match pages.get(&number).and_then(|page| page.get(within..within + take)) {
                Some(bytes) => head.copy_from_slice(bytes),
                None => head.fill(0),
            }
            at += take as u64;
            rest = tail;
        }
        Ok(())
    }
}

impl BlockDevice for MemoryDevice {
    fn write_at(&self, offset: u64, data: &[u8]) -> Result<(), DeviceError> {
        check_range(&self.info, offset, data.len() as u64)?;
        check_aligned(&self.info, offset, data.len() as u64)?;
        write_pages(&mut self.pages_mut(), offset, data);
        Ok(())
    }

    fn flush(&self) -> Result<(), DeviceError> {
        Ok(())
    }

    fn discard(&self, offset: u64, len: u64) -> Result<(), DeviceError> {
        check_range(&self.info, offset, len)?;
        check_aligned(&self.info, offset, len)?;
        match self.discard_reads {
            DiscardReads::OldData => {}
            DiscardReads::Zeroes => zero_pages(&mut self.pages_mut(), offset, len),
            DiscardReads::Garbage => {
                let mut pages = self.pages_mut();
                let end = offset.saturating_add(len);
                let mut at = offset;
                while at < end {
                    let (_, _, take) = piece(at, usize::try_from(end - at).unwrap_or(PAGE));
                    write_pages(&mut pages, at, [GARBAGE; PAGE].get(..take).unwrap_or_default());
                    at += take as u64;
                }
            }
        }
        Ok(())
    }
}

/// The page that the byte `at` is on, where on it, and how many of `len` bytes are on it.
fn piece(at: u64, len: usize) -> (u64, usize, usize) {
    let within = usize::try_from(at % PAGE_BYTES).unwrap_or(0);
    (at / PAGE_BYTES, within, len.min(PAGE - within))
}

fn write_pages(pages: &mut Pages, offset: u64, data: &[u8]) {
    let mut at = offset;
    let mut rest = data;
    while !rest.is_empty() {
        let (number, within, take) = piece(at, rest.len());
        let (head, tail) = rest.split_at(take);
        let page = Arc::make_mut(pages.entry(number).or_insert_with(|| Arc::new([0; PAGE])));
        if let Some(target) = page.get_mut(within..within + take) {
            target.copy_from_slice(head);
        }
        at += take as u64;
        rest = tail;
    }
}

/// Zeroes a range, dropping the pages that are wholly in it.
fn zero_pages(pages: &mut Pages, offset: u64, len: u64) {
    let end = offset.saturating_add(len);
    let (first_whole, end_whole) = (offset.div_ceil(PAGE_BYTES), end / PAGE_BYTES);
    if first_whole < end_whole {
        let dropped: Vec<u64> = pages.range(first_whole..end_whole).map(|(&n, _)| n).collect();
        for number in dropped {
            pages.remove(&number);
        }
    }
    for number in [offset / PAGE_BYTES, end / PAGE_BYTES] {
        let start = offset.clamp(number * PAGE_BYTES, (number + 1) * PAGE_BYTES);
        let stop = end.clamp(number * PAGE_BYTES, (number + 1) * PAGE_BYTES);
        let within = |at: u64| usize::try_from(at - number * PAGE_BYTES).unwrap_or(PAGE);
        if let Some(page) = pages.get_mut(&number) {
            if let Some(target) = Arc::make_mut(page).get_mut(within(start)..within(stop)) {
                target.fill(0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Op {
        Write { block: u64, blocks: u64, fill: u8 },
        Discard { block: u64, blocks: u64 },
        Read { offset: u64, len: u64 },
        SnapshotAndRestoreLater,
        Restore,
    }

    const SIZE: u64 = 48 * 1024;

    fn ops() -> impl Strategy<Value = Vec<Op>> {
        let blocks = SIZE / 512;
        let op = prop_oneof![
            (0..blocks, 0..24u64, 1u8..).prop_map(move |(block, len, fill)| Op::Write {
                block,
                blocks: len.min(blocks - block),
                fill
            }),
            (0..blocks, 0..40u64).prop_map(move |(block, len)| Op::Discard {
                block,
                blocks: len.min(blocks - block)
            }),
            (0..SIZE, 0..20_000u64)
                .prop_map(|(offset, len)| Op::Read { offset, len: len.min(SIZE - offset) }),
            Just(Op::SnapshotAndRestoreLater),
            Just(Op::Restore),
        ];
        proptest::collection::vec(op, 1..40)
    }

    proptest! {
        #[test]
        fn behaves_as_a_vector_of_bytes(ops in ops()) {
            let device = MemoryDevice::new(SIZE);
            let mut model = vec![0u8; usize::try_from(SIZE).unwrap()];
            let mut saved = (device.snapshot(), model.clone());
            for op in ops {
                match op {
                    Op::Write { block, blocks, fill } => {
                        let data: Vec<u8> =
                            (0..blocks * 512).map(|i| fill.wrapping_add(i.to_le_bytes()[1])).collect();
                        device.write_at(block * 512, &data).unwrap();
                        let start = usize::try_from(block * 512).unwrap();
                        model[start..start + data.len()].copy_from_slice(&data);
                    }
                    Op::Discard { block, blocks } => {
                        device.discard(block * 512, blocks * 512).unwrap();
                        let start = usize::try_from(block * 512).unwrap();
                        model[start..][..usize::try_from(blocks * 512).unwrap()].fill(0);
                    }
                    Op::Read { offset, len } => {
                        let mut buf = vec![0xee; usize::try_from(len).unwrap()];
                        device.read_at(offset, &mut buf).unwrap();
                        prop_assert_eq!(&buf, &model[usize::try_from(offset).unwrap()..][..buf.len()]);
                    }
                    Op::SnapshotAndRestoreLater => saved = (device.snapshot(), model.clone()),
                    Op::Restore => {
                        device.restore(&saved.0);
                        model.clone_from(&saved.1);
                    }
                }
            }
            let same = MemoryDevice::from_bytes(&model);
            prop_assert_eq!(device.first_difference(&same), None);
            prop_assert_eq!(device.content_hash(), same.content_hash());
            model[777] ^= 1;
            let other = MemoryDevice::from_bytes(&model);
            prop_assert_eq!(device.first_difference(&other), Some(777));
            prop_assert_ne!(device.content_hash(), other.content_hash());
        }
    }

    #[test]
    fn a_huge_device_takes_only_what_is_written() {
        let size = 16 << 40;
        let device = MemoryDevice::new(size);
        device.write_at(size - 4096, &[7; 4096]).unwrap();
        device.discard(0, size - 4096).unwrap();
        let mut tail = [0; 8192];
        device.read_at(size - 8192, &mut tail).unwrap();
        assert_eq!((tail[4095], tail[4096]), (0, 7));
        assert_eq!(device.resident_bytes(), 4096);
    }

    #[test]
    fn clones_share_and_snapshots_do_not() {
        let device = MemoryDevice::new(8192);
        let (clone, snapshot) = (device.clone(), device.snapshot());
        device.write_at(0, &[1; 512]).unwrap();
        assert_eq!(clone.content_hash(), device.content_hash());
        assert_eq!(snapshot.first_difference(&device), Some(0));
    }

    #[test]
    fn accesses_out_of_range_or_unaligned_are_refused() {
        let device = MemoryDevice::new(8192).with_block(4096);
        assert!(matches!(device.read_at(8000, &mut [0; 200]), Err(DeviceError::OutOfRange { .. })));
        assert!(matches!(
            device.read_at(u64::MAX, &mut [0; 2]),
            Err(DeviceError::OutOfRange { .. })
        ));
        assert!(matches!(device.write_at(512, &[0; 4096]), Err(DeviceError::Misaligned { .. })));
        assert!(matches!(device.write_at(0, &[0; 512]), Err(DeviceError::Misaligned { .. })));
        assert!(matches!(device.discard(0, 512), Err(DeviceError::Misaligned { .. })));
    }

    #[test]
    fn discards_read_as_asked() {
        for (reads, byte) in [
            (DiscardReads::Zeroes, 0),
            (DiscardReads::OldData, 9),
            (DiscardReads::Garbage, GARBAGE),
        ] {
            let device = MemoryDevice::from_bytes(&[9; 16384]).with_discard_reads(reads);
            device.discard(512, 10_240).unwrap();
            let mut all = [0; 16384];
            device.read_at(0, &mut all).unwrap();
            assert!(all[..512].iter().chain(&all[10_752..]).all(|&b| b == 9));
            assert!(all[512..10_752].iter().all(|&b| b == byte), "{reads:?}");
        }
    }

    #[test]
    fn saves_and_loads_sparse_images() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        let device = MemoryDevice::new(1 << 20);
        device.write_at(512 * 9, &[3; 512 * 9]).unwrap();
        device.save(&path).unwrap();
        let loaded = MemoryDevice::from_reader(&mut File::open(&path).unwrap()).unwrap();
        assert_eq!(loaded.info().size_bytes, 1 << 20);
        assert_eq!(loaded.content_hash(), device.content_hash());
    }
}
