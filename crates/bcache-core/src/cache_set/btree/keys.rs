//! The keys of a node in memory, compact where they can be.
//!
//! A [`Bkey`] has room for seven pointers, 72 bytes, and nearly every extent has one. The usual node
//! holds [`ShortKey`]s of 24 bytes, merged straight out of the bytes read.

use crate::layout::bkey::{Bkey, Ptr};
use crate::layout::bset::Bset;
use crate::units::Geometry;

use super::overlap::try_join;

/// Sets that are merged in one pass; kernels keep at most four of a node apart.
const SETS_MAX: usize = 8;

/// A key with at most one pointer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ShortKey {
    high: u64,
    low: u64,
    ptr: Ptr,
}

impl ShortKey {
    /// The same key with room for more pointers.
    #[inline]
    pub(crate) fn bkey(self) -> Bkey {
        Bkey::short(self.high, self.low, self.ptr)
    }

    /// Its pointer, if it has one.
    #[inline]
    pub(crate) fn ptr(self) -> Option<Ptr> {
        (self.bkey().ptrs_count() == 1).then_some(self.ptr)
    }

    fn from_bkey(key: &Bkey) -> Self {
        Self { high: key.high, low: key.low, ptr: key.ptrs().first().copied().unwrap_or_default() }
    }
}

#[derive(Clone, Debug)]
enum Repr {
    Short(Vec<ShortKey>),
    Full(Vec<Bkey>),
}

/// The keys of one node, in order.
#[derive(Clone, Debug)]
pub struct NodeKeys(Repr);

impl From<Vec<Bkey>> for NodeKeys {
    fn from(keys: Vec<Bkey>) -> Self {
        Self(Repr::Full(keys))
    }
}

impl NodeKeys {
    /// How many.
    pub fn len(&self) -> usize {
        match &self.0 {
            Repr::Short(keys) => keys.len(),
            Repr::Full(keys) => keys.len(),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// One key; `None` past the end.
    pub fn get(&self, index: usize) -> Option<Bkey> {
        match &self.0 {
            Repr::Short(keys) => keys.get(index).map(|key| key.bkey()),
            Repr::Full(keys) => keys.get(index).copied(),
        }
    }

    /// The last key.
    pub fn last(&self) -> Option<Bkey> {
        self.get(self.len().checked_sub(1)?)
    }

    /// All keys.
    pub fn iter(&self) -> impl Iterator<Item = Bkey> {
        self.iter_from(0)
    }

    /// The keys as they are kept, where all are short.
    pub(crate) fn short(&self) -> Option<&[ShortKey]> {
        match &self.0 {
            Repr::Short(keys) => Some(keys),
            Repr::Full(_) => None,
        }
    }

    /// The keys from `index` on.
    pub(crate) fn iter_from(&self, index: usize) -> impl Iterator<Item = Bkey> {
        let (short, full): (&[ShortKey], &[Bkey]) = match &self.0 {
            Repr::Short(keys) => (keys.get(index..).unwrap_or_default(), &[]),
            Repr::Full(keys) => (&[], keys.get(index..).unwrap_or_default()),
        };
        short.iter().map(|key| key.bkey()).chain(full.iter().copied())
    }

    /// How many keys from the start on `pred` holds for; it must not hold for any after them.
    pub fn partition_point(&self, mut pred: impl FnMut(&Bkey) -> bool) -> usize {
        match &self.0 {
            Repr::Short(keys) => keys.partition_point(|key| pred(&key.bkey())),
            Repr::Full(keys) => keys.partition_point(pred),
        }
    }

    /// Bytes that they take on the device.
    pub fn bytes(&self) -> usize {
        match &self.0 {
            Repr::Short(keys) => keys.iter().map(|key| key.bkey().words() * 8).sum(),
            Repr::Full(keys) => keys.iter().map(|key| key.words() * 8).sum(),
        }
    }
}

/// Extents of one set that are still to be merged.
struct Cursor<'a> {
    rest: &'a [u8],
    head: ShortKey,
    /// Place where `head` starts; past every place when there is none.
    start: u128,
    /// Place where it ends.
    end: u128,
    /// Keys taken, those without a size included.
    keys: usize,
}

/// Past the place of every key.
const NOWHERE: u128 = u128::MAX;

impl<'a> Cursor<'a> {
    fn new(bytes: &'a [u8]) -> Option<Self> {
        let head = ShortKey { high: 0, low: 0, ptr: Ptr(0) };
        let mut cursor = Self { rest: bytes, head, start: 0, end: 0, keys: 0 };
        cursor.advance()?;
        Some(cursor)
    }

    /// Goes on to the next key with a size; `None` when that is no usual one.
    #[inline]
    fn advance(&mut self) -> Option<()> {
        loop {
            if self.rest.is_empty() {
                self.start = NOWHERE;
                return Some(());
            }
            let (words, _) = self.rest.split_first_chunk::<16>()?;
            let words = u128::from_le_bytes(*words);
            let high = low_word(words);
            let low = low_word(words >> 64);
            let key = Bkey::short(high, low, Ptr(0));
            let (ptr, len) = match key.ptrs_count() {
                0 => (Ptr(0), 16),
                1 => {
                    let (bytes, _) = self.rest.get(16..)?.split_first_chunk::<8>()?;
                    (Ptr(u64::from_le_bytes(*bytes)), 24)
                }
                _ => return None,
            };
            self.rest = self.rest.get(len..)?;
            self.keys += 1;
            let size = key.size().0;
            // Offsets are compared as signed numbers; those of the volumes there are, are positive.
            if low > i64::MAX as u64 || size > low {
                return None;
            }
            let volume = u128::from(key.inode()) << 64;
            let start = volume | u128::from(low - size);
            if start < self.end {
                return None;
            }
            if size > 0 {
                self.head = ShortKey { high, low, ptr };
                self.start = start;
                self.end = volume | u128::from(low);
                return Some(());
            }
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half of two words")]
const fn low_word(words: u128) -> u64 {
    words as u64
}

/// What `sets` of extents add up to, neighbours joined, and how many keys each has; `None` unless
/// all is as usual: few sets, every key valid, with at most one pointer, in order, and no overlap.
///
/// In one pass over the bytes, where the general way of `overlap` takes one for each step and copies
/// whole keys.
pub(super) fn merge_usual(
    sets: &[Bset<'_>],
    geometry: &Geometry,
) -> Option<(NodeKeys, Vec<usize>)> {
    if sets.len() > SETS_MAX {
        return None;
    }
    let mut cursors = Vec::with_capacity(sets.len());
    for set in sets {
        cursors.push(Cursor::new(set.key_bytes_slice())?);
    }
    let bytes: usize = sets.iter().map(Bset::key_bytes).sum();
    let mut keys: Vec<ShortKey> = Vec::with_capacity(bytes / 24 + 1);
    // Where the last key ended.
    let mut at = 0u128;
    while let Some(first) = cursors.iter_mut().min_by_key(|cursor| cursor.start) {
        if first.start == NOWHERE {
            break;
        }
        if first.start < at {
            return None;
        }
        let key = first.head;
        let adjacent = first.start == at;
        at = first.end;
        first.advance()?;
        if !key.bkey().ptrs_in_range(geometry) {
            return None;
        }
        if let Some(last) = keys.last_mut().filter(|_| adjacent) {
            let (mut joined, mut next) = (last.bkey(), key.bkey());
            let whole = try_join(&mut joined, &mut next, geometry);
            *last = ShortKey::from_bkey(&joined);
            if !whole {
                keys.push(ShortKey::from_bkey(&next));
            }
        } else {
            keys.push(key);
        }
    }
    let counts = cursors.iter().map(|cursor| cursor.keys).collect();
    Some((NodeKeys(Repr::Short(keys)), counts))
}
