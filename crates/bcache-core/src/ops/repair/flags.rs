//! Flags of a sound superblock that the kernel would come to grief over.

use crate::layout::superblock::{Kind, Replacement, Superblock};

/// Whether it is the sound superblock of a cache.
pub(super) fn is_cache(sb: &Superblock) -> bool {
    sb.kind() == Some(Kind::Cache) && sb.magic_ok() && sb.csum_ok()
}

/// A superblock of a cache that is in use.
pub(super) fn with_sync(found: &Superblock) -> Superblock {
    let mut mended = found.clone();
    mended.edit(|edit| _ = edit.sync(true));
    mended
}

/// A sound superblock of a cache with a replacement policy that kernels have, where it has none of them.
/// Which data is dropped first is all that depends on it.
pub(super) fn with_policy(found: &Superblock) -> Option<Superblock> {
    if !is_cache(found) || found.replacement().is_some() {
        return None;
    }
    let mut mended = found.clone();
    mended.edit(|edit| _ = edit.replacement(Replacement::default()));
    Some(mended)
}
