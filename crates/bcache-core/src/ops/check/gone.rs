//! Backing devices whose superblocks are gone, beside their cache: whether a repair has an answer.

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::cache_set::WalkOptions;
use crate::device::ReadDevice;
use crate::inspect::{Advice, Doubt, Identity, Member, Volume};
use crate::layout::superblock::Superblock;
use crate::ops::backing_gone::{self, Beside, KnownBy};

/// A backing device whose superblock a repair makes again.
pub(super) struct Gone {
    pub(super) path: PathBuf,
    /// Its volume.
    pub(super) slot: u32,
    /// Whether its data proves that.
    is_proven: bool,
}

/// Those of `others` whose superblocks a repair makes again beside `cache`.
pub(super) fn of_set(cache: &Member<'_>, others: &[Member<'_>], walk: WalkOptions) -> Vec<Gone> {
    let gone: Vec<&Member<'_>> =
        others.iter().filter(|it| backing_gone::is_gone(&it.device)).collect();
    let is_sound = cache.device.identity == Identity::Cache
        && cache.device.doubts.iter().all(|doubt| *doubt == Doubt::TornEntry);
    let Some(contents) = cache.device.set().filter(|_| is_sound && !gone.is_empty()) else {
        return Vec::new();
    };
    let devices: Vec<&dyn ReadDevice> = gone.iter().map(|it| it.device.handle).collect();
    let owners = cache.volumes.0.iter().filter_map(Volume::backing);
    let named = others.iter().filter_map(|it| it.device.superblock.as_ref());
    let present: BTreeSet<_> =
        owners.map(|it| it.superblock.uuid()).chain(named.map(Superblock::uuid)).collect();
    let beside = Beside { gone: &devices, present: &present, said: &[] };
    let rebuilt = backing_gone::rebuild(&contents.set, &beside, walk);
    let mut made = Vec::new();
    for (rebuilt, member) in rebuilt.into_iter().zip(gone) {
        let Ok(rebuilt) = rebuilt else { continue };
        let is_proven = rebuilt.device.known_by == KnownBy::Data;
        made.push(Gone { path: member.path().clone(), slot: rebuilt.device.slot, is_proven });
    }
    made
}

/// Adds the repair of `gone` to what can be done.
pub(super) fn advise(cache: &mut Member<'_>, gone: &[Gone]) {
    if gone.is_empty() || cache.in_use {
        return;
    }
    let paths = gone.iter().map(|it| &it.path);
    let owners = cache.volumes.0.iter().filter_map(Volume::backing).map(|device| &device.path);
    let devices = std::iter::once(cache.path()).chain(paths).chain(owners).cloned().collect();
    let advice = &mut cache.advice;
    advice.retain(|it| match it {
        // Without the cache, nothing tells any more what the device was.
        Advice::SafeToWipe | Advice::Repair { .. } => false,
        Advice::BringBacking { slot, .. } => {
            !gone.iter().any(|it| it.slot == *slot && it.is_proven)
        }
        _ => true,
    });
    add_behind_warnings(advice, [Advice::Repair { devices }]);
}

/// Adds to `advice`, behind what must not be done and what is to be copied before anything else.
pub(super) fn add_behind_warnings(
    advice: &mut Vec<Advice>,
    added: impl IntoIterator<Item = Advice>,
) {
    let is_warning = |it: &&Advice| {
        matches!(it, Advice::DoNotRegister { .. } | Advice::DoNotWipe | Advice::CopyDevice { .. })
    };
    let at = advice.iter().take_while(is_warning).count();
    advice.splice(at..at, added);
}
