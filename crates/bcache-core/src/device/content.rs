//! What a range of a device holds: named, unknown, or nothing.

use super::probe::{ProbeError, probe, probe_from};
use super::signature::{Partition, Signature};
use super::{AlignedBuf, DeviceError, DeviceKind, ReadDevice};
use crate::units::Sectors;

/// How much is read at a time in search of a byte that is not zero.
const CHUNK_BYTES: u64 = 1 << 20;

/// How much of a volume is looked at before it counts as blank.
const LOOKED_AT: Sectors = Sectors(2048);

/// What a backing device holds behind its data offset.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// Nothing: the volume's first MiB is zeroes, and no signature is further behind.
    Blank,
    /// These.
    Known(Vec<Signature>),
    /// Data that nobody can name: encrypted without a header, raw data of a program, or a format
    /// that is not known here.
    Unknown,
}

/// What the backing device `device` holds from sector `data_offset` on.
///
/// This is the state of the backing device alone: what only its cache holds is missing from it.
/// Without the feature `blkid`, and for a device in memory, only what stands where bcache's
/// superblock would is named.
pub fn volume_content(
    device: &(impl ReadDevice + ?Sized),
    data_offset: Sectors,
) -> Result<Content, ContentError> {
    let info = device.info();
    // Devices of tests have no path that could be opened.
    let signatures = match info.kind {
        DeviceKind::Memory => Vec::new(),
        DeviceKind::Block | DeviceKind::Image => probe_from(&info.path, data_offset)?,
    };
    if !signatures.is_empty() {
        return Ok(Content::Known(signatures));
    }
    let len = info.size_bytes.saturating_sub(data_offset.bytes()).min(LOOKED_AT.bytes());
    Ok(match first_nonzero(device, data_offset.bytes(), len)? {
        Some(_) => Content::Unknown,
        None => Content::Blank,
    })
}

/// The first partition of the disk `device` with a superblock of bcache, by its number.
pub fn partition_with_bcache(device: &(impl ReadDevice + ?Sized)) -> Option<u32> {
    let info = device.info();
    // Devices of tests have no path that could be opened.
    if info.kind == DeviceKind::Memory {
        return None;
    }
    let found = probe(&info.path).ok()?;
    let mut partitions = found.iter().flat_map(|it| &it.partitions);
    let carries = |partition: &&Partition| partition.contents.iter().any(Signature::is_bcache);
    partitions.find(carries).map(|partition| partition.number)
}

/// Why the content of a volume is not known.
#[derive(Debug, thiserror::Error)]
pub enum ContentError {
    /// It could not be read.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// It could not be probed.
    #[error(transparent)]
    Probe(#[from] ProbeError),
}

/// Where the first byte that is not zero is in `len` bytes from `offset` on, in bytes from the start
/// of the device. The range must be on the device.
pub(crate) fn first_nonzero(
    device: &(impl ReadDevice + ?Sized),
    offset: u64,
    len: u64,
) -> Result<Option<u64>, DeviceError> {
    let end = offset.saturating_add(len);
    let chunk = usize::try_from(len.min(CHUNK_BYTES)).unwrap_or_default();
    let mut buf = AlignedBuf::zeroed(chunk);
    let mut at = offset;
    while at < end {
        let take = usize::try_from(end - at).unwrap_or(chunk).min(chunk);
        let (window, _) = buf.split_at_mut(take);
        device.read_at(at, window)?;
        if let Some(index) = window.iter().position(|byte| *byte != 0) {
            return Ok(Some(at.saturating_add(index as u64)));
        }
        at = at.saturating_add(take as u64);
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::device::file::open_read;
    use crate::device::signature::SignatureKind;

    fn content(bytes: &[u8], data_offset: u64) -> Content {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        fs::write(&path, bytes).unwrap();
        volume_content(&open_read(&path).unwrap(), Sectors(data_offset)).unwrap()
    }

    #[test]
    fn the_first_byte_that_is_not_zero_is_found_anywhere() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        for at in [0usize, 4095, 8191, (1 << 20) - 1, 1 << 20, (2 << 20) + 12] {
            let mut bytes = vec![0; (2 << 20) + 13];
            bytes[at] = 1;
            fs::write(&path, &bytes).unwrap();
            let device = open_read(&path).unwrap();
            let len = bytes.len() as u64;
            assert_eq!(first_nonzero(&device, 0, len).unwrap(), Some(at as u64));
            assert_eq!(first_nonzero(&device, 0, at as u64).unwrap(), None);
            let behind = at as u64 + 1;
            assert_eq!(first_nonzero(&device, behind, len - behind).unwrap(), None);
            assert!(first_nonzero(&device, len, 1).is_err());
        }
    }

    #[test]
    fn a_volume_is_blank_unknown_or_known() {
        let blank = vec![0; 2 << 20];
        assert_eq!(content(&blank, 16), Content::Blank);
        assert_eq!(content(&blank, 4096), Content::Blank);
        assert_eq!(content(&blank, 1 << 40), Content::Blank);
        let mut unknown = blank.clone();
        unknown[8192 + 100] = 1;
        assert_eq!(content(&unknown, 16), Content::Unknown);
        assert_eq!(content(&unknown, 17), Content::Blank);
        // Before the data is not in the volume.
        let mut before = blank.clone();
        before[4096..8192].fill(7);
        assert_eq!(content(&before, 16), Content::Blank);
    }

    /// Another bcache in a volume is named without libblkid.
    #[test]
    fn bcache_in_a_volume_is_named() {
        let mut image = vec![0; 2 << 20];
        let sb = crate::layout::superblock::Superblock::new_backing(
            &crate::layout::superblock::BackingParams {
                uuid: uuid::Uuid::from_u128(1),
                set_uuid: uuid::Uuid::from_u128(2),
                label: crate::layout::superblock::Label::default(),
                data_offset: Sectors(16),
                block_size: 8,
                cache_mode: crate::layout::superblock::CacheMode::Writethrough,
            },
        );
        image[8192 + 4096..][..4096].copy_from_slice(sb.as_bytes());
        let Content::Known(known) = content(&image, 16) else { panic!() };
        assert_eq!(known.len(), 1);
        assert_eq!(known[0].kind, SignatureKind::Bcache);
        assert_eq!(known[0].magic_offset, Some(4096 + 24));
    }

    #[cfg(feature = "blkid")]
    #[test]
    fn what_libblkid_knows_in_a_volume_is_named() {
        type Put = fn(&mut [u8]);
        let luks: Put = |at| {
            at[..8].copy_from_slice(b"LUKS\xba\xbe\0\x01");
            at[168..204].copy_from_slice(b"22222222-2222-2222-2222-222222222222");
        };
        let swap: Put = |at| {
            at[1024] = 1;
            at[1028] = 200;
            at[4086..4096].copy_from_slice(b"SWAPSPACE2");
        };
        let mbr: Put = |at| {
            at[440..444].copy_from_slice(&[1, 2, 3, 4]);
            at[446 + 4] = 0x83;
            at[446 + 8..446 + 12].copy_from_slice(&1024u32.to_le_bytes());
            at[446 + 12..446 + 16].copy_from_slice(&1024u32.to_le_bytes());
            at[510..512].copy_from_slice(&[0x55, 0xaa]);
        };
        for (put, kind) in [
            (luks, SignatureKind::Crypto),
            (swap, SignatureKind::Swap),
            (mbr, SignatureKind::PartitionTable),
        ] {
            for data_offset in [16, 2048] {
                let mut image = vec![0; 4 << 20];
                put(&mut image[data_offset * 512..]);
                let Content::Known(known) = content(&image, data_offset as u64) else { panic!() };
                assert_eq!(known[0].kind, kind, "{known:?}");
                if kind == SignatureKind::PartitionTable {
                    assert_eq!(known[0].partitions.len(), 1);
                }
            }
        }
    }
}
