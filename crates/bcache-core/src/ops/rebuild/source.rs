//! Where the extents of a new btree come from.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use crate::cache_set::{CacheSet, Found, KeyState, WalkOptions};
use crate::layout::bkey::Bkey;
use crate::ops::rebuild::ExtentsError;

/// Extents in the order of their volumes and sectors, without overlaps. They can be told again and
/// again, and are the same each time.
pub trait Extents: Sync {
    /// Tells all extents until `found` breaks.
    fn for_each(&self, found: &mut dyn FnMut(&Bkey) -> ControlFlow<()>)
    -> Result<(), ExtentsError>;
}

/// What a sound cache set has now, journal replayed, with changes to whole volumes.
#[derive(Clone, Debug)]
pub struct KeptExtents<'s, 'd> {
    set: &'s CacheSet<'d>,
    walk: WalkOptions,
    clean: BTreeSet<u32>,
    left_out: BTreeSet<u32>,
}

impl<'s, 'd> KeptExtents<'s, 'd> {
    /// All valid extents of `set` as they are.
    pub const fn new(set: &'s CacheSet<'d>, walk: WalkOptions) -> Self {
        Self { set, walk, clean: BTreeSet::new(), left_out: BTreeSet::new() }
    }

    /// The extents of these slots' volumes become clean: the backing devices have the data.
    #[must_use]
    pub(crate) fn made_clean(mut self, slots: impl IntoIterator<Item = u32>) -> Self {
        self.clean.extend(slots);
        self
    }

    /// The extents of these slots' volumes are left out.
    #[must_use]
    pub fn without(mut self, slots: impl IntoIterator<Item = u32>) -> Self {
        self.left_out.extend(slots);
        self
    }
}

impl Extents for KeptExtents<'_, '_> {
    fn for_each(
        &self,
        found: &mut dyn FnMut(&Bkey) -> ControlFlow<()>,
    ) -> Result<(), ExtentsError> {
        let slots = self.set.uuids.slots.len() as u64;
        let mut failed = None;
        self.set.for_each_extent(&self.walk, &mut |it| match it {
            Found::Extent { key, state: KeyState::Valid, .. }
                if u64::from(key.inode()) < slots && !self.left_out.contains(&key.inode()) =>
            {
                let clean = self.clean.contains(&key.inode());
                let key = if clean { key.with_dirty(false) } else { *key };
                found(&key)
            }
            Found::Extent { .. } => ControlFlow::Continue(()),
            Found::Missing(missing) => {
                let (to, bucket, error) = (missing.to, missing.bucket, missing.error);
                failed = Some(ExtentsError::Missing { to, bucket, error });
                ControlFlow::Break(())
            }
            Found::OutOfOrder { key, end } => {
                failed = Some(ExtentsError::OutOfOrder { key: *key, end });
                ControlFlow::Break(())
            }
        });
        failed.map_or(Ok(()), Err)
    }
}
