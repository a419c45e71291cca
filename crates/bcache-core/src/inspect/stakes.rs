//! What exists only here, and how certain that is.

use serde::Serialize;
use uuid::Uuid;

use crate::inspect::device::{Contents, Device};
use crate::inspect::doubt::Doubt;
use crate::inspect::volume::{Volume, Volumes};
use crate::layout::superblock::BackingState;

/// Whether there is dirty data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// None.
    None,
    /// Some.
    Present,
    /// It cannot be told.
    Unknown,
}

/// What exists nowhere else: in all, and of each volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Stakes {
    /// Whether there is any.
    pub answer: Answer,
    /// Sectors that certainly are.
    pub at_least_sectors: u64,
    /// Sectors that there can be at most; `None` where nothing bounds it.
    pub at_most_sectors: Option<u64>,
    /// The volumes of which something is at stake, or may be.
    pub volumes: Vec<VolumeStakes>,
    /// Why the two differ.
    #[serde(skip)]
    pub doubts: Vec<Doubt>,
}

/// The same of one volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VolumeStakes {
    /// Its slot.
    pub slot: u32,
    /// Its UUID, where that is known.
    pub uuid: Option<Uuid>,
    /// Its label.
    pub label: String,
    /// Whether all of it exists only on the cache.
    pub flash_only: bool,
    /// Sectors that certainly exist only on the cache.
    pub at_least_sectors: u64,
    /// Sectors that do at most; `None` where nothing bounds it.
    pub at_most_sectors: Option<u64>,
}

impl Stakes {
    /// Nothing is at stake.
    pub(crate) const fn none() -> Self {
        Self {
            answer: Answer::None,
            at_least_sectors: 0,
            at_most_sectors: Some(0),
            volumes: Vec::new(),
            doubts: Vec::new(),
        }
    }

    /// Nothing can be told.
    pub(crate) fn unknown(doubts: Vec<Doubt>) -> Self {
        Self { answer: Answer::Unknown, at_most_sectors: None, doubts, ..Self::none() }
    }

    /// Of a cache device, whose set has `volumes`. `is_lacking` says that a backing device of the set is
    /// at hand that the uuid table does not have.
    pub(super) fn of_cache(device: &Device<'_>, volumes: &Volumes, is_lacking: bool) -> Self {
        let mut doubts: Vec<Doubt> = device.doubts.iter().copied().collect();
        let hides_keys = doubts.iter().any(|doubt| doubt.hides_keys());
        if is_lacking && hides_keys && !doubts.contains(&Doubt::UuidTable) {
            doubts.push(Doubt::UuidTable);
        }
        match &device.contents {
            Contents::New
                if ![Doubt::OldJournal, Doubt::OlderSet].iter().any(|it| doubts.contains(it)) =>
            {
                Self::none()
            }
            Contents::Set(_) => Self::of_set(doubts, volumes),
            Contents::New | Contents::None | Contents::Unreadable(_) => Self::unknown(doubts),
        }
    }

    fn of_set(doubts: Vec<Doubt>, volumes: &Volumes) -> Self {
        let exact = !doubts.iter().any(|doubt| doubt.hides_keys());
        // Every volume is in the table: those whose backing devices lack nothing are accounted for. A
        // table without volumes is no proof of anything while keys cannot be read.
        let table_is_whole = !volumes.0.is_empty()
            && doubts.iter().all(|doubt| !doubt.hides_keys() || doubt.leaves_volumes_known())
            && !doubts.contains(&Doubt::UuidTable)
            && !doubts.contains(&Doubt::UuidSlot);
        let gens_known = !doubts.contains(&Doubt::Gens);
        let of_volume = |volume: &Volume| {
            let dirty = volume.usage.dirty_sectors.0;
            let in_doubt = if gens_known { 0 } else { volume.usage.dirty_journal_sectors.0 };
            let complete = dirty == 0 && table_is_whole && volume.owner_is_complete();
            VolumeStakes {
                slot: volume.slot,
                uuid: volume.uuid,
                label: volume.label.clone(),
                flash_only: volume.is_flash_only(),
                at_least_sectors: dirty.saturating_sub(in_doubt),
                at_most_sectors: (exact || complete).then_some(dirty),
            }
        };
        let mut all: Vec<VolumeStakes> = volumes.0.iter().map(of_volume).collect();
        let at_least = all.iter().fold(0u64, |sum, it| sum.saturating_add(it.at_least_sectors));
        let at_most = all
            .iter()
            .map(|it| it.at_most_sectors)
            .try_fold(0u64, |sum, most| most.map(|most| sum.saturating_add(most)))
            .filter(|_| exact || table_is_whole);
        all.retain(|it| it.flash_only || it.at_most_sectors != Some(0));
        Self {
            answer: answer(at_least, at_most),
            at_least_sectors: at_least,
            at_most_sectors: at_most,
            volumes: all,
            doubts,
        }
    }

    /// Of a backing device alone, as far as its superblock tells: what its cache holds of it.
    pub(super) fn of_backing(device: &Device<'_>) -> Self {
        let doubts: Vec<Doubt> = device.doubts.iter().copied().collect();
        let Some(sb) = device.superblock.as_ref().filter(|sb| sb.csum_ok()) else {
            return Self::unknown(doubts);
        };
        if doubts.contains(&Doubt::OlderSet) {
            return Self::unknown(doubts);
        }
        match sb.state() {
            BackingState::None | BackingState::Clean => Self::none(),
            BackingState::Dirty => {
                Self { answer: Answer::Present, ..Self::unknown(vec![Doubt::State]) }
            }
            BackingState::Stale => Self::unknown(vec![Doubt::State]),
        }
    }

    /// Of a backing device whose cache is at hand: what that holds of it.
    pub(super) fn of_volume(cache: &Self, slot: u32) -> Self {
        let found = cache.volumes.iter().find(|volume| volume.slot == slot);
        let (at_least, at_most) =
            found.map_or((0, Some(0)), |it| (it.at_least_sectors, it.at_most_sectors));
        Self {
            answer: answer(at_least, at_most),
            at_least_sectors: at_least,
            at_most_sectors: at_most,
            volumes: found.cloned().into_iter().collect(),
            doubts: cache.doubts.clone(),
        }
    }

    /// What is at stake on both.
    pub(crate) fn and(mut self, other: &Self) -> Self {
        self.answer = match (self.answer, other.answer) {
            (Answer::None, answer) | (answer, Answer::None) => answer,
            (Answer::Unknown, Answer::Unknown) => Answer::Unknown,
            (Answer::Present, _) | (_, Answer::Present) => Answer::Present,
        };
        self.at_least_sectors = self.at_least_sectors.saturating_add(other.at_least_sectors);
        let most = self.at_most_sectors.zip(other.at_most_sectors);
        self.at_most_sectors = most.map(|(one, other)| one.saturating_add(other));
        self.volumes.extend(other.volumes.iter().cloned());
        self.doubts.extend(&other.doubts);
        self
    }

    /// Whether flash-only volumes exist only here, be anything written to them or not.
    pub fn has_flash_only(&self) -> bool {
        self.volumes.iter().any(|volume| volume.flash_only)
    }

    /// Whether overwriting the cache loses nothing, as long as nobody uses it.
    pub(crate) fn nothing_to_lose(&self) -> bool {
        self.answer == Answer::None && !self.has_flash_only()
    }
}

const fn answer(at_least: u64, at_most: Option<u64>) -> Answer {
    match (at_least, at_most) {
        (0, Some(0)) => Answer::None,
        (0, _) => Answer::Unknown,
        _ => Answer::Present,
    }
}
