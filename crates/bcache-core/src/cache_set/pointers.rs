//! Where extents point to.

use std::collections::HashMap;

use crate::layout::bkey::Bkey;
use crate::units::Gen;

/// Where extents point to, apart from how they were cut.
pub(crate) struct Pointers(HashMap<(u32, Gen, u64), Vec<Span>>);

/// Where an extent begins and ends, and its place among all.
type Span = (u64, u64, usize);

impl Pointers {
    pub(crate) fn new<'k>(keys: impl Iterator<Item = &'k Bkey>) -> Self {
        let mut map: HashMap<_, Vec<Span>> = HashMap::new();
        for (index, key) in keys.enumerate() {
            if let Some(line) = Self::line(key) {
                map.entry(line).or_default().push((key.start(), key.offset(), index));
            }
        }
        Self(map)
    }

    /// What keys that point to the same have in common, apart from how they were cut; `None` without a
    /// pointer.
    pub(crate) fn line(key: &Bkey) -> Option<(u32, Gen, u64)> {
        let ptr = key.ptrs().first()?;
        Some((key.inode(), ptr.ptr_gen(), ptr.offset().0.wrapping_sub(key.start())))
    }

    pub(crate) fn has(&self, key: &Bkey) -> bool {
        self.first(key).is_some()
    }

    /// The place of the first key that points to what `key` begins with.
    pub(crate) fn first(&self, key: &Bkey) -> Option<usize> {
        let mut ranges = self.0.get(&Self::line(key)?)?.iter();
        ranges
            .find(|(start, end, _)| (*start..*end).contains(&key.start()))
            .map(|(_, _, index)| *index)
    }
}
