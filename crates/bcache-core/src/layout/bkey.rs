//! Keys of the btree and of the journal (docs/on-disk-format.md §5.3 to §5.6).
//!
//! A key is two words and one word for each pointer. It names the extent of a volume that *ends*
//! at [`Bkey::offset`], and the pointers say where on the cache it lies. Keys inside btree nodes
//! name child nodes the same way. `BkeyRef` is a key in place; [`KeyIter`] walks packed keys.

use std::cmp::Ordering;
use std::fmt;

use crate::units::{BucketIndex, Gen, Geometry, Sectors};

/// Most pointers that the field can tell; the kernel's padding leaves room for six.
pub const BKEY_PTRS_MAX: usize = 7;

/// Most pointers that a header field of 64 bytes (jset root, uuid bucket) can hold.
pub const BKEY_PADDED_PTRS: usize = 6;

/// Devices that a pointer can name; one beyond is not available (`MAX_CACHES_PER_SET`).
const PTR_DEV_AVAILABLE: u16 = 8;

const INODE_MASK: u64 = 0xF_FFFF;
const SIZE_SHIFT: u32 = 20;
const SIZE_MASK: u64 = 0xFFFF;
const DIRTY: u64 = 1 << 36;
const CSUM_SHIFT: u32 = 56;
const CSUM_MASK: u64 = 3;
const PTRS_SHIFT: u32 = 60;
const PTRS_MASK: u64 = 7;
const HEADER: u64 = 1 << 63;
const PTR_GEN_MASK: u64 = 0xFF;
const PTR_OFFSET_SHIFT: u32 = 8;
const PTR_OFFSET_MASK: u64 = (1 << 43) - 1;
const PTR_DEV_SHIFT: u32 = 51;
const PTR_DEV_MASK: u64 = (1 << 12) - 1;

/// Largest inode: that of the largest key.
pub const KEY_MAX_INODE: u32 = 0xF_FFFF;

/// Largest offset: that of the largest key.
pub const KEY_MAX_OFFSET: u64 = i64::MAX as u64;

/// A pointer to a place on the cache device.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Ptr(pub u64);

impl Ptr {
    /// A pointer to `offset` on device `dev` of the set.
    pub const fn new(ptr_gen: Gen, offset: Sectors, dev: u16) -> Self {
        Self(
            ptr_gen.0 as u64
                | (offset.0 & PTR_OFFSET_MASK) << PTR_OFFSET_SHIFT
                | (dev as u64 & PTR_DEV_MASK) << PTR_DEV_SHIFT,
        )
    }

    /// The gen that the bucket must have for the pointer to be valid.
    pub const fn ptr_gen(self) -> Gen {
        Gen((self.0 & PTR_GEN_MASK) as u8)
    }

    /// Sector on the cache device.
    pub const fn offset(self) -> Sectors {
        Sectors(self.0 >> PTR_OFFSET_SHIFT & PTR_OFFSET_MASK)
    }

    /// Number of the device in the set.
    pub const fn dev(self) -> u16 {
        (self.0 >> PTR_DEV_SHIFT & PTR_DEV_MASK) as u16
    }

    /// Whether it points anywhere (`ptr_available`): not so for the placeholder of a racing fill.
    pub const fn available(self) -> bool {
        self.dev() < PTR_DEV_AVAILABLE
    }

    /// The bucket pointed into.
    pub const fn bucket(self, geometry: &Geometry) -> BucketIndex {
        geometry.sector_to_bucket(self.offset())
    }

    /// The same place `sectors` further on.
    #[must_use]
    pub const fn advanced(self, sectors: u64) -> Self {
        let offset = self.offset().0.wrapping_add(sectors) & PTR_OFFSET_MASK;
        Self(self.0 & !(PTR_OFFSET_MASK << PTR_OFFSET_SHIFT) | offset << PTR_OFFSET_SHIFT)
    }
}

impl fmt::Debug for Ptr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{} gen {}", self.dev(), self.offset().0, self.ptr_gen())
    }
}

/// The place of a key in the btree: inode and the sector where the extent ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub struct Pos {
    /// Slot of the volume in the uuid table.
    pub inode: u32,
    /// Sector of the volume at which the extent ends.
    pub offset: u64,
}

impl Pos {
    /// The largest position: of the root's key.
    pub const MAX: Self = Self { inode: KEY_MAX_INODE, offset: KEY_MAX_OFFSET };
    /// The smallest position: of freed children's markers.
    pub const ZERO: Self = Self { inode: 0, offset: 0 };
}

impl Ord for Pos {
    /// The kernel's order: by inode, then by offset as a signed number.
    ///
    /// The kernel takes the sign of the wrapping difference, which is the same for offsets that
    /// are less than 2^63 apart. Beyond that its order is not transitive; this one always is.
    fn cmp(&self, other: &Self) -> Ordering {
        self.inode.cmp(&other.inode).then_with(|| signed(self.offset).cmp(&signed(other.offset)))
    }
}

impl PartialOrd for Pos {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl fmt::Display for Pos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.inode, self.offset)
    }
}

/// A key with its pointers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Bkey {
    /// First word of the header: inode, size, flags, number of pointers.
    pub high: u64,
    /// Second word of the header: [`Self::offset`].
    pub low: u64,
    ptrs: [Ptr; BKEY_PTRS_MAX],
}

impl Bkey {
    /// A key for the `size` sectors of `inode` that end at `end`.
    pub fn new(inode: u32, end: u64, size: u16) -> Self {
        Self {
            high: HEADER | u64::from(inode) & INODE_MASK | u64::from(size) << SIZE_SHIFT,
            low: end,
            ptrs: [Ptr(0); BKEY_PTRS_MAX],
        }
    }

    /// A key of these header words, with `ptr` where they tell of a pointer.
    pub(crate) const fn short(high: u64, low: u64, ptr: Ptr) -> Self {
        let none = Ptr(0);
        Self { high, low, ptrs: [ptr, none, none, none, none, none, none] }
    }

    /// The same key with `ptrs`, of which at most seven fit.
    #[must_use]
    pub fn with_ptrs(mut self, ptrs: &[Ptr]) -> Self {
        let count = ptrs.len().min(BKEY_PTRS_MAX);
        self.ptrs = [Ptr(0); BKEY_PTRS_MAX];
        self.ptrs.iter_mut().zip(ptrs).for_each(|(to, from)| *to = *from);
        self.high = self.high & !(PTRS_MASK << PTRS_SHIFT) | (count as u64) << PTRS_SHIFT;
        self
    }

    /// The same key, dirty or not.
    #[must_use]
    pub const fn with_dirty(mut self, dirty: bool) -> Self {
        self.high = if dirty { self.high | DIRTY } else { self.high & !DIRTY };
        self
    }

    /// Reads the key at the start of `words`; `None` where they end before the key does.
    pub fn read(words: &[u8]) -> Option<Self> {
        let high = word(words, 0)?;
        let low = word(words, 1)?;
        let mut key = Self { high, low, ptrs: [Ptr(0); BKEY_PTRS_MAX] };
        for index in 0..key.ptrs_count() {
            *key.ptrs.get_mut(index)? = Ptr(word(words, 2 + index)?);
        }
        Some(key)
    }

    /// Appends the key's words.
    pub fn write(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.high.to_le_bytes());
        out.extend_from_slice(&self.low.to_le_bytes());
        for ptr in self.ptrs() {
            out.extend_from_slice(&ptr.0.to_le_bytes());
        }
    }

    /// Length in words.
    pub fn words(&self) -> usize {
        2 + self.ptrs_count()
    }

    /// Number of pointers.
    pub fn ptrs_count(&self) -> usize {
        usize::try_from(self.high >> PTRS_SHIFT & PTRS_MASK).unwrap_or(0)
    }

    /// Slot of the volume.
    pub const fn inode(&self) -> u32 {
        (self.high & INODE_MASK) as u32
    }

    /// Length of the extent, or of the child node.
    pub const fn size(&self) -> Sectors {
        Sectors(self.high >> SIZE_SHIFT & SIZE_MASK)
    }

    /// Where the extent ends.
    pub const fn offset(&self) -> u64 {
        self.low
    }

    /// Where the extent starts; wraps for keys that the kernel would refuse.
    pub const fn start(&self) -> u64 {
        self.low.wrapping_sub(self.size().0)
    }

    /// Where the extent starts, as a position.
    pub const fn start_pos(&self) -> Pos {
        Pos { inode: self.inode(), offset: self.start() }
    }

    /// Where the extent ends, as a position: what keys are ordered by.
    pub const fn pos(&self) -> Pos {
        Pos { inode: self.inode(), offset: self.low }
    }

    /// Whether the backing device lacks the data.
    pub const fn dirty(&self) -> bool {
        self.high & DIRTY != 0
    }

    /// Legacy field: kind of data checksum.
    pub const fn csum(&self) -> u8 {
        (self.high >> CSUM_SHIFT & CSUM_MASK) as u8
    }

    /// The pointers.
    pub fn ptrs(&self) -> &[Ptr] {
        self.ptrs.get(..self.ptrs_count()).unwrap_or_default()
    }

    /// Whether it stands at position zero: a freed child's marker in interior nodes.
    pub(crate) const fn is_zero_key(&self) -> bool {
        self.inode() == 0 && self.low == 0
    }

    /// Removes what lies before `start` (`bch_cut_front`); the pointers move along.
    pub(crate) fn cut_front(&mut self, start: u64) {
        if signed(start.wrapping_sub(self.start())) <= 0 {
            return;
        }
        let (removed, left) = if signed(start.wrapping_sub(self.low)) < 0 {
            (start.wrapping_sub(self.start()), self.low.wrapping_sub(start))
        } else {
            (self.size().0, 0)
        };
        let count = self.ptrs_count();
        for ptr in self.ptrs.iter_mut().take(count) {
            *ptr = ptr.advanced(removed);
        }
        self.set_size(left);
    }

    /// Removes what lies from `end` on (`bch_cut_back`).
    pub fn cut_back(&mut self, end: u64) {
        if signed(end.wrapping_sub(self.low)) >= 0 {
            return;
        }
        let start = self.start();
        let left = if signed(end.wrapping_sub(start)) > 0 { end.wrapping_sub(start) } else { 0 };
        self.low = end;
        self.set_size(left);
    }

    /// Makes the extent `sectors` longer at its end.
    pub const fn extend_by(&mut self, sectors: u64) {
        self.low = self.low.wrapping_add(sectors);
        self.set_size(self.size().0.wrapping_add(sectors));
    }

    const fn set_size(&mut self, size: u64) {
        self.high = self.high & !(SIZE_MASK << SIZE_SHIFT) | (size & SIZE_MASK) << SIZE_SHIFT;
    }

    /// Whether every available pointer stays in a bucket for data (`ptr_invalid` negated, §5.5).
    pub(crate) fn ptrs_in_range(&self, geometry: &Geometry) -> bool {
        self.ptrs().iter().filter(|ptr| ptr.available()).all(|ptr| {
            let within = ptr.offset().0 & (geometry.bucket_size().0 - 1);
            within + self.size().0 <= geometry.bucket_size().0
                && geometry.contains(ptr.bucket(geometry))
        })
    }

    /// Whether it can point to a btree node (`__bch_btree_ptr_invalid` negated).
    pub fn is_valid_btree_ptr(&self, geometry: &Geometry) -> bool {
        self.ptrs_count() > 0 && self.size().0 > 0 && !self.dirty() && self.ptrs_in_range(geometry)
    }

    /// Whether it can be an extent (`__bch_extent_invalid` negated).
    pub fn is_valid_extent(&self, geometry: &Geometry) -> bool {
        self.size().0 > 0 && self.size().0 <= self.low && self.ptrs_in_range(geometry)
    }
}

impl fmt::Debug for Bkey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}..{} ->", self.inode(), self.start(), self.offset())?;
        for ptr in self.ptrs() {
            write!(f, " [{ptr:?}]")?;
        }
        if self.dirty() {
            f.write_str(" dirty")?;
        }
        Ok(())
    }
}

/// The kernel compares offsets by their difference as a signed number.
const fn signed(difference: u64) -> i64 {
    i64::from_le_bytes(difference.to_le_bytes())
}

fn word(bytes: &[u8], index: usize) -> Option<u64> {
    let start = index.checked_mul(8)?;
    let bytes = bytes.get(start..start.checked_add(8)?)?;
    Some(u64::from_le_bytes(bytes.try_into().ok()?))
}

/// Walks packed keys; ends early, with [`KeyIter::truncated`], where the last one is cut off.
#[derive(Clone, Debug)]
pub struct KeyIter<'a> {
    bytes: &'a [u8],
    truncated: bool,
}

impl<'a> KeyIter<'a> {
    /// Over the keys in `bytes`.
    pub const fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, truncated: false }
    }

    /// Whether the walk met a key that goes past the end.
    pub const fn truncated(&self) -> bool {
        self.truncated
    }
}

impl Iterator for KeyIter<'_> {
    type Item = Bkey;

    fn next(&mut self) -> Option<Bkey> {
        if self.bytes.is_empty() {
            return None;
        }
        let Some(key) = Bkey::read(self.bytes) else {
            self.truncated = true;
            self.bytes = &[];
            return None;
        };
        self.bytes = self.bytes.get(key.words() * 8..).unwrap_or_default();
        Some(key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_where_the_format_says() {
        let key = Bkey { high: 0x9000_0010_0080_0003, low: 1000, ptrs: Default::default() };
        assert_eq!((key.inode(), key.size().0, key.dirty(), key.ptrs_count()), (3, 8, true, 1));
        let ptr = Ptr(0x0010_0000_0004_0007);
        assert_eq!((ptr.ptr_gen(), ptr.offset(), ptr.dev()), (Gen(7), Sectors(0x400), 2));
        assert_eq!(Ptr::new(Gen(7), Sectors(0x400), 2), ptr);
    }

    #[test]
    fn cuts_move_pointers_and_keep_the_rest() {
        let ptr = Ptr::new(Gen(1), Sectors(4096), 0);
        let mut key = Bkey::new(2, 100, 50).with_ptrs(&[ptr]).with_dirty(true);
        key.cut_front(60);
        assert_eq!((key.start(), key.offset()), (60, 100));
        assert_eq!(key.ptrs(), [Ptr::new(Gen(1), Sectors(4106), 0)]);
        key.cut_back(90);
        assert_eq!((key.start(), key.offset(), key.dirty()), (60, 90, true));
        key.cut_front(1000);
        assert_eq!(key.size(), Sectors(0));
    }

    #[test]
    fn positions_compare_as_signed_numbers() {
        let pos = |offset| Pos { inode: 1, offset };
        assert!(pos(1) < pos(2));
        assert!(pos(u64::MAX) < pos(0));
        assert!(Pos { inode: 0, offset: 9 } < Pos { inode: 1, offset: 0 });
    }

    proptest::proptest! {
        #[test]
        fn keys_survive_bytes(high: u64, low: u64, words in proptest::collection::vec(0u64.., 7)) {
            let mut bytes = Vec::new();
            for word in [&[high, low][..], &words].concat() {
                bytes.extend_from_slice(&word.to_le_bytes());
            }
            let key = Bkey::read(&bytes).unwrap();
            let mut out = Vec::new();
            key.write(&mut out);
            proptest::prop_assert_eq!(&out[..], &bytes[..key.words() * 8]);
        }

        #[test]
        fn walks_end(bytes in proptest::collection::vec(0u8.., 0..400)) {
            let mut keys = KeyIter::new(&bytes);
            let words: usize = keys.by_ref().map(|key| key.words()).sum();
            proptest::prop_assert!(words * 8 <= bytes.len());
            proptest::prop_assert!(keys.truncated() || words * 8 == bytes.len());
        }
    }
}
