//! The superblock of a RAID member.

/// The block with the superblock (version 1.0) of a RAID member of `bytes` bytes, and where it stands:
/// 8 KiB before the end.
pub fn raid_member(bytes: u64) -> (u64, [u8; 4096]) {
    let at = bytes.saturating_sub(8192) / 4096 * 4096;
    let mut block = [0; 4096];
    let mut put = |at: usize, bytes: &[u8]| {
        block.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
    };
    let (magic, major, uuid, sectors) = (0xa92b_4efc_u32, 1_u32, [0x77; 16], at / 512);
    put(0, &magic.to_le_bytes());
    put(4, &major.to_le_bytes());
    put(16, &uuid);
    put(144, &sectors.to_le_bytes());
    // The words added up, the carry added to that: libblkid looks at it since 2.41.
    let words = u64::from(magic) + u64::from(major) + 4 * 0x7777_7777;
    let sum = words + (sectors & 0xffff_ffff) + (sectors >> 32);
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    put(216, sum.to_le_bytes().split_at(4).0);
    (at, block)
}
