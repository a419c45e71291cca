//! Signatures: what marks a device as a file system, a partition table, a RAID member and so on.

use serde::Serialize;

use crate::layout::superblock::Label;
use crate::units::Sectors;

/// A sort of content.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SignatureKind {
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

impl SignatureKind {
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

    #[cfg(feature = "blkid")]
    /// From what libblkid calls the use and the type of a superblock.
    pub(super) fn of_superblock(usage: Option<&str>, type_name: &str) -> Self {
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
pub struct Signature {
    /// What sort of thing it is.
    pub kind: SignatureKind,
    /// Name of the type as libblkid has it, such as `ext4`, `gpt`, `linux_raid_member`.
    pub type_name: String,
    /// Its label. Bytes that are not UTF-8 make it unknown.
    pub label: Option<String>,
    /// Its UUID or other identity, as that type writes it.
    pub uuid: Option<String>,
    /// Where its magic number is, in bytes from the start of what was probed, where that is known.
    pub magic_offset: Option<u64>,
    /// Where further copies of its superblock have their magic, in bytes likewise.
    pub copy_offsets: Vec<u64>,
    /// Whether its checksum is wrong: what it names may be damaged, or a leftover.
    pub bad_checksum: bool,
    /// Whether it is a bcache superblock whose magic is gone, as `wipefs` leaves it. The rest is
    /// whole: with the magic in place the checksum is right.
    pub magic_wiped: bool,
    /// The partitions, for a partition table; none where libblkid cannot make sense of them.
    pub partitions: Vec<Partition>,
}

impl Signature {
    /// Whether it is a bcache superblock, about which bcache itself knows more.
    pub fn is_bcache(&self) -> bool {
        self.kind == SignatureKind::Bcache
    }

    /// Whether it is a bcache superblock, or a table that lists a partition with one in it.
    pub(crate) fn holds_bcache(&self) -> bool {
        let mut contents = self.partitions.iter().flat_map(|partition| &partition.contents);
        self.is_bcache() || contents.any(Self::is_bcache)
    }

    /// Bytes of the device, as offset and length, without which this is no longer found.
    ///
    /// `size_bytes` is the size of the device: GUID partition tables have a second header in its
    /// last block, whose size is `block_bytes`.
    pub(crate) fn magic_ranges(&self, size_bytes: u64, block_bytes: u64) -> Vec<(u64, u64)> {
        let mut ranges: Vec<_> = self
            .magic_offset
            .iter()
            .chain(&self.copy_offsets)
            .map(|offset| (*offset, block_bytes))
            .collect();
        if self.kind == SignatureKind::PartitionTable && self.type_name == "gpt" {
            let last = (size_bytes / block_bytes.max(1)).saturating_sub(1);
            ranges.push((last.saturating_mul(block_bytes), block_bytes));
        }
        ranges
    }
}

impl std::fmt::Display for Signature {
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
        if self.magic_wiped {
            f.write_str(", its magic wiped")?;
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
    pub contents: Vec<Signature>,
}

/// A label as text; `None` for none, and for bytes that are not UTF-8.
pub(super) fn text_of(label: &Label) -> Option<String> {
    let text = std::str::from_utf8(label.as_bytes()).ok()?;
    (!text.is_empty()).then(|| text.to_owned())
}
