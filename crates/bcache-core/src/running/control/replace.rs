//! Giving the backing devices of a set another cache.
//!
//! Each device goes by itself: written back, detached, attached to the new set. Between the two it
//! runs without a cache, and all of its data is on it. So whenever this ends, nothing is lost; what is
//! left to do is seen from where the devices are.

use uuid::Uuid;

use super::plans::{attach_to, fits, wrong_state};
use super::settings::Change;
use super::{FlushOptions, Plan, Refusal, plan_detach, plan_flush};
use crate::running::findings::DeviceState;
use crate::running::tunables::{Scope, TUNABLES};
use crate::running::view::{Backing, Set, View};

/// What it takes to move one backing device, as it is now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// The backing device.
    pub device: String,
    /// Its UUID.
    pub uuid: Option<Uuid>,
    /// Writing its dirty data back; can be broken off without a trace.
    pub flush: Plan,
    /// Detaching it; cannot be called off.
    pub detach: Plan,
    /// Attaching it to the new set.
    pub attach: Plan,
}

/// What it takes to move all backing devices of `old` to the set `new` with blocks of
/// `new_block_bytes`, where that is known.
///
/// # Errors
/// When `old` has flash-only volumes, which nothing can move; when a device is in no state to be
/// moved; when its blocks are smaller than those of the new set.
pub fn plan_replace(
    view: &View,
    old: &Set,
    new: Uuid,
    new_block_bytes: Option<u64>,
    options: FlushOptions,
) -> Result<Vec<Move>, Refusal> {
    if !old.volumes.is_empty() {
        let volumes = old.volumes.iter().map(|it| it.bcache.clone()).collect();
        return Err(Refusal::HasVolumes { set: old.uuid, volumes });
    }
    let of = |backing: &Backing| {
        match DeviceState::of(backing) {
            DeviceState::AttachedClean | DeviceState::AttachedDirty | DeviceState::Detaching => {}
            _ => return Err(wrong_state(backing)),
        }
        fits(backing, new_block_bytes)?;
        Ok(Move {
            device: backing.name.clone(),
            uuid: backing.uuid,
            flush: plan_flush(backing, options)?,
            detach: plan_detach(backing, true)?,
            attach: attach_to(backing, new),
        })
    };
    view.backing_of(old.uuid).map(of).collect()
}

/// The settings of `old` that differ from the kernel's defaults, for the set in its place. With
/// `is_fresh` nobody has chosen a replacement policy for that yet. What goes with the device itself
/// (discard) is left out.
pub fn settings_to_carry(old: &Set, is_fresh: bool) -> Vec<Change> {
    TUNABLES
        .iter()
        .filter(|tunable| match tunable.scope {
            Scope::Set | Scope::Internal => tunable.name != "synchronous",
            Scope::Cache => tunable.name == "cache_replacement_policy" && is_fresh,
            Scope::Backing => false,
        })
        .filter_map(|tunable| {
            let value = tunable.read(&old.attributes)?;
            (!tunable.is(tunable.default, &value)).then_some(Change { tunable, value })
        })
        .collect()
}
