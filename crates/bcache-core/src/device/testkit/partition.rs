//! A partition table with one partition.

use crate::units::Sectors;

/// The first sector of a disk whose only partition begins at `start` and is `size` long. (A master boot
/// record: what does not fit into its 32 bits is cut off.)
pub fn partition_table(start: Sectors, size: Sectors) -> [u8; 512] {
    const ENTRY: usize = 446;
    /// Linux.
    const KIND: u8 = 0x83;
    let mut table = [0; 512];
    let mut put = |at: usize, bytes: &[u8]| {
        table.iter_mut().skip(at).zip(bytes).for_each(|(to, from)| *to = *from);
    };
    let [start, size] = [start, size].map(|sectors| sectors.0.to_le_bytes());
    put(ENTRY + 12, &size[..4]);
    put(ENTRY + 8, &start[..4]);
    put(ENTRY + 4, &[KIND]);
    put(510, &[0x55, 0xaa]);
    table
}
