//! What libblkid finds on a device: everything that making a bcache device there would destroy.
//!
//! libblkid's usual answer is one signature, and "ambivalent" where there are several: a caller who
//! takes that for "nothing" destroys data. Here every signature is listed, as wipefs does, and the
//! partitions of a table with what is in each.
//!
//! Probing reads through a descriptor of its own, buffered, because libblkid reads in pieces that
//! `O_DIRECT` refuses.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use libblkid_rs::{
    BlkidErr, BlkidPartition, BlkidProbe, BlkidProbeRet, BlkidSublks, BlkidSublksFlags,
};
use serde::Serialize;

use super::file::drop_page_cache;
use crate::units::Sectors;

/// Signatures that a device may carry before probing gives up: the walk must end whatever libblkid
/// says, and no real device has as many.
const FOUND_MAX: usize = 64;

/// A sort of content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum FoundKind {
    /// A file system.
    Filesystem,
    /// A partition table.
    PartitionTable,
    /// A member of a RAID array.
    Raid,
    /// A physical volume of LVM.
    Lvm,
    /// An encrypted volume.
    Crypto,
    /// Swap space.
    Swap,
    /// A bcache superblock.
    Bcache,
    /// Something else that libblkid knows.
    Other,
}

impl FoundKind {
    /// The kind in words, with an article.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Filesystem => "a file system",
            Self::PartitionTable => "a partition table",
            Self::Raid => "a RAID member",
            Self::Lvm => "an LVM physical volume",
            Self::Crypto => "an encrypted volume",
            Self::Swap => "swap space",
            Self::Bcache => "a bcache superblock",
            Self::Other => "a signature",
        }
    }

    /// From what libblkid calls the use and the type of a superblock.
    fn of_superblock(usage: Option<&str>, type_name: &str) -> Self {
        match (type_name, usage) {
            ("bcache", _) => Self::Bcache,
            ("swap" | "swsuspend", _) => Self::Swap,
            _ if type_name.starts_with("LVM") => Self::Lvm,
            (_, Some("filesystem")) => Self::Filesystem,
            (_, Some("raid")) => Self::Raid,
            (_, Some("crypto")) => Self::Crypto,
            _ => Self::Other,
        }
    }
}

/// One signature.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Found {
    /// What sort of thing it is.
    pub kind: FoundKind,
    /// libblkid's name of the type, such as `ext4`, `gpt`, `linux_raid_member`.
    pub type_name: String,
    /// Its label. Bytes that are not UTF-8 make it unknown.
    pub label: Option<String>,
    /// Its UUID or other identity, as that type writes it.
    pub uuid: Option<String>,
    /// Where its magic number is, in bytes from the start of what was probed, if libblkid says.
    pub magic_offset: Option<u64>,
    /// Whether its checksum is wrong: what it names may be damaged, or a leftover.
    pub bad_checksum: bool,
    /// The partitions, for a partition table; none where libblkid cannot make sense of them.
    pub partitions: Vec<Partition>,
}

impl Found {
    /// Whether it is a bcache superblock, about which bcache itself knows more.
    pub fn is_bcache(&self) -> bool {
        self.kind == FoundKind::Bcache
    }

    /// Whether it is a bcache superblock, or a table that lists a partition with one in it.
    pub fn holds_bcache(&self) -> bool {
        let mut contents = self.partitions.iter().flat_map(|partition| &partition.contents);
        self.is_bcache() || contents.any(Self::is_bcache)
    }

    /// Bytes of the device, as offset and length, without which this is no longer found.
    ///
    /// `size_bytes` is the size of the device: GUID partition tables have a second header in its
    /// last block, whose size is `block_bytes`.
    pub fn signatures(&self, size_bytes: u64, block_bytes: u64) -> Vec<(u64, u64)> {
        let mut ranges: Vec<_> =
            self.magic_offset.iter().map(|offset| (*offset, block_bytes)).collect();
        if self.kind == FoundKind::PartitionTable && self.type_name == "gpt" {
            let last = (size_bytes / block_bytes.max(1)).saturating_sub(1);
            ranges.push((last.saturating_mul(block_bytes), block_bytes));
        }
        ranges
    }
}

impl std::fmt::Display for Found {
    /// What a person needs to recognise it: `a file system (ext4), label "home", UUID ...`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.kind.describe(), self.type_name)?;
        if let Some(label) = self.label.as_deref().filter(|label| !label.is_empty()) {
            write!(f, ", label \"{}\"", label.escape_debug())?;
        }
        if let Some(uuid) = &self.uuid {
            write!(f, ", UUID {uuid}")?;
        }
        if self.bad_checksum {
            f.write_str(", bad checksum")?;
        }
        for partition in &self.partitions {
            write!(f, "; partition {}: {}", partition.number, partition.size)?;
            if let Some(label) = partition.label.as_deref().filter(|label| !label.is_empty()) {
                write!(f, ", \"{}\"", label.escape_debug())?;
            }
            for found in &partition.contents {
                write!(f, ", {found}")?;
            }
        }
        Ok(())
    }
}

/// A partition that a table lists.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Partition {
    /// Its number.
    pub number: u32,
    /// Its first sector.
    pub start: Sectors,
    /// Its size.
    pub size: Sectors,
    /// Its type as the table writes it: a GUID, or a number as `0x83`.
    pub type_id: String,
    /// Its name, where the table has names.
    pub label: Option<String>,
    /// Its identity (`PARTUUID`).
    pub uuid: Option<String>,
    /// What is in it; empty for one that reaches past the device, and for an extended partition.
    pub contents: Vec<Found>,
}

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
    /// libblkid failed, so that what is on the device is not known.
    #[error("libblkid cannot {step} {}", path.display())]
    Blkid {
        /// The device.
        path: PathBuf,
        /// What it was doing.
        step: &'static str,
        /// Its reason.
        source: BlkidErr,
    },
}

/// Everything that libblkid finds on the device or image at `path`. Only reads.
///
/// An error means that the contents are unknown, not that there are none.
pub fn probe(path: impl AsRef<Path>) -> Result<Vec<Found>, ProbeError> {
    let path = path.as_ref();
    let open_failed = |source| ProbeError::Open { path: path.to_owned(), source };
    let file = File::open(path).map_err(open_failed)?;
    if file.metadata().map_err(open_failed)?.file_type().is_block_device() {
        // Kernel and programs write past the page cache of the node.
        drop_page_cache(path, &file);
    }
    probe_range(path, &file, None, Depth::Device)
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
) -> Result<Vec<Found>, ProbeError> {
    let failed = |step| move |source| ProbeError::Blkid { path: path.to_owned(), step, source };
    let mut probe = BlkidProbe::new().map_err(failed("start probing"))?;
    // To libblkid a size of 0 is the rest of the file.
    let (start, len) = range.unwrap_or((0, 0));
    probe.set_device(file.as_raw_fd(), start, len).map_err(failed("open"))?;
    if probe.get_size() <= 0 {
        // An empty image; libblkid fails on it.
        return Ok(Vec::new());
    }
    probe.enable_superblocks(true).map_err(failed("start probing"))?;
    probe
        .set_superblock_flags(BlkidSublksFlags::new(vec![
            BlkidSublks::Label,
            BlkidSublks::Uuid,
            BlkidSublks::Type,
            BlkidSublks::Usage,
            BlkidSublks::Magic,
            BlkidSublks::Badcsum,
        ]))
        .map_err(failed("start probing"))?;
    probe.enable_partitions(true).map_err(failed("start probing"))?;

    let mut found: Vec<Found> = Vec::new();
    while found.len() < FOUND_MAX {
        match probe.do_probe().map_err(failed("probe"))? {
            BlkidProbeRet::Done => break,
            BlkidProbeRet::Success => {}
        }
        if let Some(type_name) = value(&probe, "TYPE") {
            found.push(Found {
                kind: FoundKind::of_superblock(value(&probe, "USAGE").as_deref(), &type_name),
                type_name,
                label: value(&probe, "LABEL"),
                uuid: value(&probe, "UUID"),
                magic_offset: value(&probe, "SBMAGIC_OFFSET").and_then(|text| text.parse().ok()),
                bad_checksum: probe.has_value("SBBADCSUM").unwrap_or(false),
                partitions: Vec::new(),
            });
        } else if let Some(type_name) = value(&probe, "PTTYPE") {
            found.push(Found {
                kind: FoundKind::PartitionTable,
                type_name,
                label: None,
                uuid: value(&probe, "PTUUID"),
                magic_offset: None,
                bad_checksum: false,
                partitions: Vec::new(),
            });
        }
    }
    if let Some(table) = found.iter_mut().find(|found| found.kind == FoundKind::PartitionTable) {
        // The walk above has overwritten what libblkid remembers of the table: ask anew. It lists
        // nothing where a nested table makes no sense; that there is a table is known all the same.
        table.partitions = partitions(file, range, &table.type_name).unwrap_or_default();
        if depth == Depth::Device {
            for partition in &mut table.partitions {
                partition.contents = contents(path, file, &probe, partition)?;
            }
        }
    }
    Ok(found)
}

/// A value of the last result, where there is one that can be represented.
fn value(probe: &BlkidProbe, name: &str) -> Option<String> {
    probe.lookup_value(name).ok()
}

/// What is in a partition of the device that `probe` is of.
fn contents(
    path: &Path,
    file: &File,
    probe: &BlkidProbe,
    partition: &Partition,
) -> Result<Vec<Found>, ProbeError> {
    let end = partition.start.bytes().saturating_add(partition.size.bytes());
    let fits = u64::try_from(probe.get_size()).is_ok_and(|size| end <= size);
    // An extended partition holds a chain of tables; the logical ones in it are listed themselves.
    let is_extended = matches!(partition.type_id.as_str(), "0x5" | "0xf" | "0x85");
    match (i64::try_from(partition.start.bytes()), i64::try_from(partition.size.bytes())) {
        (Ok(start), Ok(len)) if fits && len > 0 && !is_extended => {
            probe_range(path, file, Some((start, len)), Depth::Partition)
        }
        _ => Ok(Vec::new()),
    }
}

fn partitions(
    file: &File,
    range: Option<(i64, i64)>,
    type_name: &str,
) -> Result<Vec<Partition>, BlkidErr> {
    let mut probe = BlkidProbe::new()?;
    let (start, len) = range.unwrap_or((0, 0));
    probe.set_device(file.as_raw_fd(), start, len)?;
    probe.enable_superblocks(false)?;
    probe.enable_partitions(true)?;
    let mut list = probe.get_partitions()?;
    let table_id = list.get_table().and_then(|table| table.get_id()).ok();
    let mut partitions = Vec::new();
    for index in 0..list.number_of_partitions()? {
        let partition = list.get_partition(index)?;
        partitions.push(describe_partition(&partition, type_name, table_id.as_deref())?);
    }
    Ok(partitions)
}

fn describe_partition(
    partition: &BlkidPartition<'_>,
    type_name: &str,
    table_id: Option<&str>,
) -> Result<Partition, BlkidErr> {
    let number = partition.get_partno()?;
    let sectors = |count: i64| Sectors(u64::try_from(count).unwrap_or(0));
    let uuid = if type_name == "dos" {
        // Not a UUID, so that the binding cannot give it; this is how libblkid makes it up.
        table_id.map(|id| format!("{id}-{number:02x}"))
    } else {
        partition.get_uuid().ok().flatten().map(|uuid| uuid.to_string())
    };
    Ok(Partition {
        number,
        start: sectors(*partition.get_start().as_ref()),
        size: sectors(*partition.get_size().as_ref()),
        type_id: partition
            .get_type_string()
            .unwrap_or_else(|_| format!("0x{:x}", partition.get_type())),
        label: partition.get_name().ok().flatten().filter(|name| !name.is_empty()),
        uuid,
        contents: Vec::new(),
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;
    use crate::checksum::crc64;

    const MIB: usize = 1 << 20;

    /// What is found on an image of these bytes.
    fn found(bytes: &[u8]) -> Vec<Found> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("image");
        fs::write(&path, bytes).unwrap();
        let found = probe(&path).unwrap();
        assert_eq!(fs::read(&path).unwrap(), bytes, "probing wrote");
        found
    }

    fn kinds(found: &[Found]) -> Vec<(FoundKind, &str)> {
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
        assert_eq!(kinds(&ext2), [(FoundKind::Filesystem, "ext2")]);
        assert_eq!(ext2[0].label.as_deref(), Some("data"));
        assert_eq!(ext2[0].uuid.as_deref(), Some("11111111-1111-1111-1111-111111111111"));
        assert_eq!(ext2[0].magic_offset, Some(1024 + 56));

        let mut image = vec![0; MIB];
        put_bcache(&mut image);
        let bcache = found(&image);
        assert_eq!(kinds(&bcache), [(FoundKind::Bcache, "bcache")]);
        assert_eq!(bcache[0].uuid.as_deref(), Some("44444444-4444-4444-4444-444444444444"));
        assert!(!bcache[0].bad_checksum);
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
        assert_eq!(both, [(FoundKind::Bcache, "bcache"), (FoundKind::Swap, "swap")]);

        let mut image = vec![0; MIB];
        put_ext2(&mut image, b"old");
        put_luks(&mut image);
        let both = found(&image);
        let mut both = kinds(&both);
        both.sort_by_key(|(_, name)| *name);
        assert_eq!(both, [(FoundKind::Crypto, "crypto_LUKS"), (FoundKind::Filesystem, "ext2")]);
    }

    #[test]
    fn partitions_are_listed_with_what_is_in_them() {
        let mut image = vec![0; 4 * MIB];
        put_ext2(&mut image[MIB..], b"root");
        put_swap(&mut image[2 * MIB..], b"swappy");
        put_mbr(&mut image, &[(0x83, 2048, 2048), (0x82, 4096, 2048), (0x83, 6144, 1 << 30)]);
        let found = found(&image);
        assert_eq!(kinds(&found), [(FoundKind::PartitionTable, "dos")]);
        assert_eq!(found[0].uuid.as_deref(), Some("deadbeef"));
        let [root, swap, beyond] = found[0].partitions.as_slice() else { panic!("{found:?}") };
        assert_eq!((root.number, root.start, root.size), (1, Sectors(2048), Sectors(2048)));
        assert_eq!((root.type_id.as_str(), root.uuid.as_deref()), ("0x83", Some("deadbeef-01")));
        assert_eq!(kinds(&root.contents), [(FoundKind::Filesystem, "ext2")]);
        assert_eq!(root.contents[0].label.as_deref(), Some("root"));
        assert_eq!(kinds(&swap.contents), [(FoundKind::Swap, "swap")]);
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
        assert_eq!(kinds(&found), [(FoundKind::PartitionTable, "gpt")]);
        let [partition] = found[0].partitions.as_slice() else { panic!("{found:?}") };
        assert_eq!(partition.type_id, "0fc63daf-8483-4772-8e79-3d69d8477de4");
        assert_eq!(partition.label.as_deref(), Some("cache"));
        assert_eq!(partition.uuid.as_deref(), Some("55555555-5555-5555-5555-555555555555"));
        assert_eq!((partition.start, partition.size), (Sectors(2048), Sectors(2048)));
        assert_eq!(kinds(&partition.contents), [(FoundKind::Bcache, "bcache")]);
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
