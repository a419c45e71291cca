//! What is on a device: everything that making a bcache device there would destroy.
//!
//! libblkid says most of it (feature `blkid`). What lies where bcache's superblock goes is told
//! without it, so that formats and damage that it does not know are known, too.
//!
//! Probing reads through a descriptor of its own, buffered, because libblkid reads in pieces that
//! `O_DIRECT` refuses.

#[cfg(feature = "blkid")]
mod blkid;

use std::fs::File;
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::{Path, PathBuf};

use super::file::drop_page_cache;
use super::signature::Signature;
use super::superblock_area::SuperblockArea;
use crate::layout::superblock::{SB_BYTES, SB_OFFSET_BYTES};
use crate::units::Sectors;

/// Why a device could not be probed.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// It could not be opened.
    #[error("cannot open {}", path.display())]
    Open {
        /// The device.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// It could not be read.
    #[error("cannot read {}", path.display())]
    Read {
        /// The device.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// libblkid failed, so that what is on the device is not known.
    #[error("libblkid cannot {step} {}", path.display())]
    Blkid {
        /// The device.
        path: PathBuf,
        /// What it was doing.
        step: &'static str,
        /// Its reason.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Everything that is found on the device or image at `path`. Only reads.
///
/// An error means that the contents are unknown, not that there are none.
pub fn probe(path: impl AsRef<Path>) -> Result<Vec<Signature>, ProbeError> {
    let path = path.as_ref();
    probe_range(path, &open(path)?, None, Depth::Device)
}

/// Everything that is found behind the first `start` sectors of the device or image at `path`: what
/// a backing device whose data starts there holds. Partitions are listed and not looked into.
pub(crate) fn probe_from(
    path: impl AsRef<Path>,
    start: Sectors,
) -> Result<Vec<Signature>, ProbeError> {
    let path = path.as_ref();
    let file = open(path)?;
    let size = size_of(path, &file)?;
    match (i64::try_from(start.bytes()), i64::try_from(size.saturating_sub(start.bytes()))) {
        (Ok(start), Ok(len)) if len > 0 => {
            probe_range(path, &file, Some((start, len)), Depth::Partition)
        }
        _ => Ok(Vec::new()),
    }
}

/// What udev takes a device for. Its rule registers a device with bcache only where it takes it for
/// one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UdevView {
    /// bcache.
    Bcache,
    /// Something else, of this type: a RAID member counts more than anything beside it.
    Other {
        /// Name of the type as libblkid has it.
        type_name: String,
    },
    /// Several things at once, so that it decides for none.
    Ambiguous,
    /// Nothing that it knows.
    Nothing,
}

/// What udev takes the device at `path` for, asked of libblkid in the way in which udev asks.
#[cfg(feature = "blkid")]
pub fn udev_view(path: impl AsRef<Path>) -> Result<UdevView, ProbeError> {
    let path = path.as_ref();
    blkid::udev_view(path, &open(path)?)
}

fn open(path: &Path) -> Result<File, ProbeError> {
    let failed = |source| ProbeError::Open { path: path.to_owned(), source };
    let file = File::open(path).map_err(failed)?;
    if file.metadata().map_err(failed)?.file_type().is_block_device() {
        // Kernel and programs write past the page cache of the node.
        drop_page_cache(path, &file);
    }
    Ok(file)
}

fn size_of(path: &Path, mut file: &File) -> Result<u64, ProbeError> {
    let failed = |source| ProbeError::Read { path: path.to_owned(), source };
    file.seek(SeekFrom::End(0)).map_err(failed)
}

/// How deep a range is: the partitions of a device are looked into, those of a partition are not.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Depth {
    Device,
    Partition,
}

/// Probes `range` (start and length in bytes), or the whole file.
fn probe_range(
    path: &Path,
    file: &File,
    range: Option<(i64, i64)>,
    depth: Depth,
) -> Result<Vec<Signature>, ProbeError> {
    #[cfg(feature = "blkid")]
    let mut found = blkid::signatures(path, file, range, depth)?;
    #[cfg(not(feature = "blkid"))]
    let (mut found, _) = (Vec::new(), depth);
    if let Some(own) = in_superblock_area(path, file, range)?.signature() {
        // libblkid may know the same, by less: what is there is one of the two.
        found.retain(|it: &Signature| !it.is_bcache() && it.type_name != own.type_name);
        found.push(own);
    }
    Ok(found)
}

/// What lies where the superblock of a bcache device in `range` would be.
fn in_superblock_area(
    path: &Path,
    file: &File,
    range: Option<(i64, i64)>,
) -> Result<SuperblockArea, ProbeError> {
    let (start, len) = match range {
        Some((start, len)) => (u64::try_from(start).unwrap_or(0), u64::try_from(len).unwrap_or(0)),
        None => (0, size_of(path, file)?),
    };
    let mut bytes = vec![0; SB_BYTES];
    if len < SB_OFFSET_BYTES + SB_BYTES as u64 {
        return Ok(SuperblockArea::TooShort);
    }
    file.read_exact_at(&mut bytes, start.saturating_add(SB_OFFSET_BYTES))
        .map_err(|source| ProbeError::Read { path: path.to_owned(), source })?;
    Ok(SuperblockArea::from_bytes(&bytes))
}

#[cfg(all(test, feature = "blkid"))]
mod tests {
    use std::fs;

    use super::*;
    use crate::checksum::crc64;
    use crate::device::signature::SignatureKind;
    use crate::device::testkit::raid_member;
    use crate::units::Sectors;

    const MIB: usize = 1 << 20;

    /// What is found on an image of these bytes.
    fn found(bytes: &[u8]) -> Vec<Signature> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        fs::write(&path, bytes).unwrap();
        let found = probe(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), bytes, "probing wrote");
        found
    }

    fn kinds(found: &[Signature]) -> Vec<(SignatureKind, &str)> {
        found.iter().map(|found| (found.kind, found.type_name.as_str())).collect()
    }

    fn put(image: &mut [u8], offset: usize, bytes: &[u8]) {
        image[offset..][..bytes.len()].copy_from_slice(bytes);
    }

    fn put_ext2(image: &mut [u8], label: &[u8]) {
        put(image, 1024, &64u32.to_le_bytes()); // inodes
        put(image, 1024 + 4, &512u32.to_le_bytes()); // blocks
        put(image, 1024 + 56, &0xef53u16.to_le_bytes());
        put(image, 1024 + 76, &1u32.to_le_bytes()); // revision
        put(image, 1024 + 104, &[0x11; 16]);
        put(image, 1024 + 120, label);
    }

    fn put_luks(image: &mut [u8]) {
        put(image, 0, b"LUKS\xba\xbe\0\x01");
        put(image, 168, b"22222222-2222-2222-2222-222222222222\0");
    }

    fn put_swap(image: &mut [u8], label: &[u8]) {
        put(image, 1024, &1u32.to_le_bytes());
        put(image, 1028, &200u32.to_le_bytes());
        put(image, 1036, &[0x33; 16]);
        put(image, 1052, label);
        put(image, 4086, b"SWAPSPACE2");
    }

    fn put_bcache(image: &mut [u8]) {
        put(image, 4096 + 8, &8u64.to_le_bytes());
        let magic = 0xc685_73f6_4e1a_45ca_8265_f57f_48ba_6d81u128;
        put(image, 4096 + 24, &magic.to_be_bytes());
        put(image, 4096 + 40, &[0x44; 16]);
        let sum = crc64(&image[4096 + 8..4096 + 208]);
        put(image, 4096, &sum.to_le_bytes());
    }

    /// A table of primary partitions: type, first sector, sectors.
    fn put_mbr(image: &mut [u8], entries: &[(u8, u32, u32)]) {
        put(image, 440, &0xdead_beefu32.to_le_bytes());
        for (index, (kind, start, size)) in entries.iter().enumerate() {
            let at = 446 + index * 16;
            put(image, at + 4, &[*kind]);
            put(image, at + 8, &start.to_le_bytes());
            put(image, at + 12, &size.to_le_bytes());
        }
        put(image, 510, &[0x55, 0xaa]);
    }

    #[test]
    fn nothing_is_found_where_nothing_is() {
        assert_eq!(found(&[]), []);
        assert_eq!(found(&[0; 100]), []);
        assert_eq!(found(&vec![0; MIB]), []);
        assert!(matches!(probe("/nonexistent/image"), Err(ProbeError::Open { .. })));
    }

    #[test]
    fn file_systems_swap_and_bcache_are_told_apart() {
        let mut image = vec![0; MIB];
        put_ext2(&mut image, b"data");
        let ext2 = found(&image);
        assert_eq!(kinds(&ext2), [(SignatureKind::Filesystem, "ext2")]);
        assert_eq!(ext2[0].label.as_deref(), Some("data"));
        assert_eq!(ext2[0].uuid.as_deref(), Some("11111111-1111-1111-1111-111111111111"));
        assert_eq!(ext2[0].magic_offset, Some(1024 + 56));

        let mut image = vec![0; MIB];
        put_bcache(&mut image);
        let bcache = found(&image);
        assert_eq!(kinds(&bcache), [(SignatureKind::Bcache, "bcache")]);
        assert_eq!(bcache[0].uuid.as_deref(), Some("44444444-4444-4444-4444-444444444444"));
        assert!(!bcache[0].bad_checksum);
    }

    /// bcachefs as it has been since it left bcache's magic, which older libblkid does not know, and
    /// as it was before.
    #[test]
    fn bcachefs_is_named_with_its_copies() {
        for has_bcache_magic in [false, true] {
            let mut image = vec![0; MIB];
            let magic = if has_bcache_magic {
                0xc685_73f6_4e1a_45ca_8265_f57f_48ba_6d81u128
            } else {
                0xc685_73f6_66ce_90a9_d96a_60cf_803d_f7efu128
            };
            for at in [4096 + 24, 4096 + 240, 3584] {
                put(&mut image, at, &magic.to_be_bytes());
            }
            put(&mut image, 4096 + 56, &[0x66; 16]);
            put(&mut image, 4096 + 72, b"fs");
            put(&mut image, 4096 + 104, &8u64.to_le_bytes());
            put(&mut image, 4096 + 240 + 18, &[2]);
            put(&mut image, 4096 + 240 + 24, &8u64.to_le_bytes());
            put(&mut image, 4096 + 240 + 32, &136u64.to_le_bytes());
            let found = found(&image);
            assert_eq!(kinds(&found), [(SignatureKind::Filesystem, "bcachefs")]);
            assert_eq!(found[0].label.as_deref(), Some("fs"));
            assert_eq!(found[0].uuid.as_deref(), Some("66666666-6666-6666-6666-666666666666"));
            let ranges = found[0].magic_ranges(MIB as u64, 512);
            assert_eq!(ranges, [(4096 + 24, 512), (136 * 512 + 24, 512)]);
        }
    }

    #[test]
    fn bcache_whose_magic_was_wiped_is_named() {
        let mut image = vec![0; MIB];
        put_bcache(&mut image);
        put(&mut image, 4096 + 24, &[0; 16]);
        let wiped = found(&image);
        assert_eq!(kinds(&wiped), [(SignatureKind::Bcache, "bcache")]);
        assert!(wiped[0].magic_wiped && !wiped[0].bad_checksum);
        // In a partition likewise.
        let mut disk = vec![0; 4 * MIB];
        disk[MIB..2 * MIB].copy_from_slice(&image);
        put_mbr(&mut disk, &[(0x83, 2048, 2048)]);
        let table = found(&disk);
        assert!(table[0].holds_bcache() && table[0].partitions[0].contents[0].magic_wiped);
        // With one more byte gone, nothing can be said.
        put(&mut image, 4096 + 40, &[0]);
        assert_eq!(found(&image), []);
    }

    /// What udev makes of a device decides whether it is registered.
    #[test]
    fn udev_passes_over_what_it_takes_for_something_else() {
        let view = |image: &[u8]| {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("image");
            fs::write(&path, image).unwrap();
            udev_view(&path).unwrap()
        };
        assert_eq!(view(&[]), UdevView::Nothing);
        // Of what is as small as a floppy disk, libblkid takes the first.
        let mut image = vec![0; 4 * MIB];
        assert_eq!(view(&image), UdevView::Nothing);
        put_bcache(&mut image);
        assert_eq!(view(&image), UdevView::Bcache);
        let mut two = image.clone();
        put_ext2(&mut two, b"old");
        assert_eq!(view(&two), UdevView::Ambiguous);
        let mut raid = image.clone();
        let (at, member) = raid_member(raid.len() as u64);
        put(&mut raid, usize::try_from(at).unwrap(), &member);
        let type_name = "linux_raid_member".to_owned();
        assert_eq!(view(&raid), UdevView::Other { type_name });
        let listed = found(&raid);
        let mut listed = kinds(&listed);
        listed.sort_by_key(|(_, name)| *name);
        assert_eq!(
            listed,
            [(SignatureKind::Bcache, "bcache"), (SignatureKind::Raid, "linux_raid_member")]
        );
    }

    /// libblkid calls each of these ambivalent and says nothing more.
    #[test]
    fn several_signatures_are_all_listed() {
        let mut image = vec![0; MIB];
        put_swap(&mut image, b"swappy");
        put_bcache(&mut image);
        let both = found(&image);
        let mut both = kinds(&both);
        both.sort_by_key(|(_, name)| *name);
        assert_eq!(both, [(SignatureKind::Bcache, "bcache"), (SignatureKind::Swap, "swap")]);

        let mut image = vec![0; MIB];
        put_ext2(&mut image, b"old");
        put_luks(&mut image);
        let both = found(&image);
        let mut both = kinds(&both);
        both.sort_by_key(|(_, name)| *name);
        assert_eq!(
            both,
            [(SignatureKind::Crypto, "crypto_LUKS"), (SignatureKind::Filesystem, "ext2")]
        );
    }

    #[test]
    fn partitions_are_listed_with_what_is_in_them() {
        let mut image = vec![0; 4 * MIB];
        put_ext2(&mut image[MIB..], b"root");
        put_swap(&mut image[2 * MIB..], b"swappy");
        put_mbr(&mut image, &[(0x83, 2048, 2048), (0x82, 4096, 2048), (0x83, 6144, 1 << 30)]);
        let found = found(&image);
        assert_eq!(kinds(&found), [(SignatureKind::PartitionTable, "dos")]);
        assert_eq!(found[0].uuid.as_deref(), Some("deadbeef"));
        let [root, swap, beyond] = found[0].partitions.as_slice() else { panic!("{found:?}") };
        assert_eq!((root.number, root.start, root.size), (1, Sectors(2048), Sectors(2048)));
        assert_eq!((root.type_id.as_str(), root.uuid.as_deref()), ("0x83", Some("deadbeef-01")));
        assert_eq!(kinds(&root.contents), [(SignatureKind::Filesystem, "ext2")]);
        assert_eq!(root.contents[0].label.as_deref(), Some("root"));
        assert_eq!(kinds(&swap.contents), [(SignatureKind::Swap, "swap")]);
        assert_eq!(beyond.contents, []);
    }

    /// The reflected CRC-32 that GPT uses.
    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(u32::MAX, |mut crc, &byte| {
            crc ^= u32::from(byte);
            for _ in 0..8 {
                crc = crc >> 1 ^ if crc & 1 == 1 { 0xedb8_8320 } else { 0 };
            }
            crc
        })
    }

    #[test]
    fn gpt_partitions_have_names_and_uuids() {
        let mut image = vec![0; 4 * MIB];
        let last = (4 * MIB / 512 - 1) as u64;
        put_mbr(&mut image, &[(0xee, 1, u32::try_from(last).unwrap())]);
        let entries = 2 * 512;
        // Linux file system data, in the mixed order of bytes that GPT has.
        put(
            &mut image,
            entries,
            &uuid::uuid!("0fc63daf-8483-4772-8e79-3d69d8477de4").to_bytes_le(),
        );
        put(&mut image, entries + 16, &[0x55; 16]);
        put(&mut image, entries + 32, &2048u64.to_le_bytes());
        put(&mut image, entries + 40, &4095u64.to_le_bytes());
        let name: Vec<u8> = "cache".encode_utf16().flat_map(u16::to_le_bytes).collect();
        put(&mut image, entries + 56, &name);
        let entries_sum = crc32(&image[entries..entries + 128 * 128]);
        let mut header = [0u8; 92];
        put(&mut header, 0, b"EFI PART\0\0\x01\0");
        put(&mut header, 12, &92u32.to_le_bytes());
        put(&mut header, 24, &1u64.to_le_bytes());
        put(&mut header, 32, &last.to_le_bytes());
        put(&mut header, 40, &34u64.to_le_bytes());
        put(&mut header, 48, &(last - 33).to_le_bytes());
        put(&mut header, 56, &[0x66; 16]);
        put(&mut header, 72, &2u64.to_le_bytes());
        put(&mut header, 80, &128u32.to_le_bytes());
        put(&mut header, 84, &128u32.to_le_bytes());
        put(&mut header, 88, &entries_sum.to_le_bytes());
        let sum = crc32(&header);
        put(&mut header, 16, &sum.to_le_bytes());
        put(&mut image, 512, &header);
        put_bcache(&mut image[MIB..]);

        let found = found(&image);
        assert_eq!(kinds(&found), [(SignatureKind::PartitionTable, "gpt")]);
        let [partition] = found[0].partitions.as_slice() else { panic!("{found:?}") };
        assert_eq!(partition.type_id, "0fc63daf-8483-4772-8e79-3d69d8477de4");
        assert_eq!(partition.label.as_deref(), Some("cache"));
        assert_eq!(partition.uuid.as_deref(), Some("55555555-5555-5555-5555-555555555555"));
        assert_eq!((partition.start, partition.size), (Sectors(2048), Sectors(2048)));
        assert_eq!(kinds(&partition.contents), [(SignatureKind::Bcache, "bcache")]);
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig::with_cases(64))]

        /// Hostile tables neither panic nor hang.
        #[test]
        fn any_partition_table_is_survived(
            entries in proptest::collection::vec((1u8.., 0u32.., 0u32..), 0..5),
            noise in proptest::collection::vec((0..2 * MIB, 0u8..), 0..64),
        ) {
            let mut image = vec![0; 2 * MIB];
            put_mbr(&mut image, entries.get(..4.min(entries.len())).unwrap());
            for (at, byte) in noise {
                image[at] = byte;
            }
            found(&image);
        }
    }
}
