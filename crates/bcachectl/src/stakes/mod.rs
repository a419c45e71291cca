//! What would be lost and what can be done, in words: the one place that turns what
//! [`bcache_core::inspect`] says into sentences and commands.

mod advice;
mod volume;

pub use advice::{AdviceReport, about_error, about_unread, advice};
pub use volume::{VolumeReport, find_volume};

use bcache_core::cache_set::OpenError;
use bcache_core::inspect::{Answer, Doubt, Member, Stakes, Standing, VolumeStakes, Volumes};
use bcache_core::layout::superblock::{BackingState, Kind};
use bcache_core::units::format_bytes;
use serde::Serialize;

/// Sectors as a person reads them.
pub fn size(sectors: u64) -> String {
    format_bytes(sectors.saturating_mul(512))
}

/// The answer of `show --dirty`, for programs and in words.
#[derive(Clone, Debug, Serialize)]
pub struct DirtyAnswer {
    /// Whether there is dirty data.
    pub answer: Answer,
    /// Sectors of it; where the answer is "unknown", those that are certain.
    pub sectors: Option<u64>,
    /// Whether wiping the device loses nothing.
    pub safe_to_wipe: bool,
    /// Slots of the volumes that would lose data.
    pub volumes: Vec<u32>,
    /// The answer in sentences.
    pub text: Vec<String>,
}

impl DirtyAnswer {
    /// What the stakes of `member` are.
    pub fn of(member: &Member<'_>) -> Self {
        let stakes = &member.stakes;
        let bounded = stakes.at_most_sectors.is_some() || stakes.at_least_sectors > 0;
        let listed = |it: &&VolumeStakes| it.flash_only || it.at_least_sectors > 0;
        Self {
            answer: stakes.answer,
            sectors: (bounded || member.device.set().is_some()).then_some(stakes.at_least_sectors),
            safe_to_wipe: member.safe_to_wipe(),
            volumes: stakes.volumes.iter().filter(listed).map(|it| it.slot).collect(),
            text: sentences(member),
        }
    }
}

/// What is at stake, in sentences: the answer, then volume by volume, then what to do.
pub fn sentences(member: &Member<'_>) -> Vec<String> {
    let mut text = Vec::new();
    match member.device.kind() {
        Some(Kind::Cache) => {
            text.push(of_cache(&member.stakes));
            text.extend(of_volumes(&member.stakes, &member.volumes));
        }
        Some(Kind::Backing) => text.push(of_backing(member)),
        None => {
            let why = member.device.no_bcache().unwrap_or(OpenError::NotBcache);
            text.push(format!(
                "It CANNOT BE TOLD whether there is dirty data on this device: {why}."
            ));
        }
    }
    text.extend(advice(&member.advice).into_iter().map(|it| it.sentence()));
    text
}

/// How much there is: "10.9 MiB", "at least 10.9 MiB", "an unknown amount".
pub fn amount(at_least: u64, at_most: Option<u64>) -> String {
    match (at_least, at_most) {
        (0, None) => "an unknown amount".to_owned(),
        (least, None) => format!("at least {}", size(least)),
        (least, Some(most)) if least < most => format!("{} to {}", size(least), size(most)),
        (least, Some(_)) => size(least),
    }
}

/// What is at stake on a cache, in all.
pub fn of_cache(stakes: &Stakes) -> String {
    match stakes.answer {
        Answer::None if stakes.doubts.iter().any(|doubt| *doubt != Doubt::CutOff) => {
            "There is no dirty data on this cache: each of its backing devices says that it is \
             complete."
                .to_owned()
        }
        Answer::None => "There is no dirty data on this cache.".to_owned(),
        Answer::Present => format!(
            "There IS dirty data on this cache: {} ({} sectors) that exists nowhere else.",
            amount(stakes.at_least_sectors, stakes.at_most_sectors),
            stakes.at_least_sectors
        ),
        Answer::Unknown => format!(
            "It CANNOT BE TOLD whether there is dirty data on this cache: {}.",
            doubts(&stakes.doubts)
        ),
    }
}

/// Why it is not certain.
fn doubts(doubts: &[Doubt]) -> String {
    let said: Vec<&str> = doubts.iter().map(|doubt| reason(*doubt)).collect();
    if said.is_empty() { "nothing of it was read".to_owned() } else { said.join("; ") }
}

const fn reason(doubt: Doubt) -> &'static str {
    match doubt {
        Doubt::Superblock => "its superblock has a bad checksum",
        Doubt::CutOff => "a part of the device is missing",
        Doubt::Journal => "its journal may hold a newer state",
        Doubt::JournalGap => "journal entries are missing",
        Doubt::TornEntry => "the newest journal entry was not written whole",
        Doubt::Gens => "its prio sets are damaged, so that valid keys cannot be told from old ones",
        Doubt::UuidTable => "its uuid table is damaged",
        Doubt::UuidSlot => "a slot of its uuid table is damaged",
        Doubt::Btree => "parts of its btree are damaged or cannot be read",
        Doubt::Keys => "keys contradict each other",
        Doubt::OldJournal => {
            "its superblock is that of a new cache, and an older cache set is there"
        }
        Doubt::OlderSet => "its superblock is not that of the cache set behind it",
        Doubt::NoJournal => "no journal was found",
        Doubt::Geometry => "the sizes in its superblock make no cache",
        Doubt::NoSuperblock => "it carries no bcache superblock",
        Doubt::OtherData => "what it holds clean is not what its backing device holds",
        Doubt::RegisteredSince => {
            "a backing device was registered after this cache was last there, so that the cache may be an \
             old copy"
        }
        Doubt::State => "only its cache can tell",
    }
}

/// What is at stake of each volume.
pub fn of_volumes(stakes: &Stakes, volumes: &Volumes) -> Vec<String> {
    let mut text = Vec::new();
    for stake in &stakes.volumes {
        let Some(volume) = volumes.get(stake.slot) else { continue };
        let name = VolumeReport::from(volume).name();
        let what = match (stake.at_least_sectors, stake.at_most_sectors) {
            (0, Some(0)) => "nothing written to it yet".to_owned(),
            (least, most) => format!("{} dirty", amount(least, most)),
        };
        text.push(format!("{name}: {what}."));
    }
    text
}

fn of_backing(member: &Member<'_>) -> String {
    let Some(sb) = member.device.superblock.as_ref().filter(|sb| sb.csum_ok()) else {
        return of_state(None).to_owned();
    };
    let stakes = &member.stakes;
    if stakes.doubts.contains(&Doubt::OlderSet) {
        return format!(
            "It CANNOT BE TOLD whether there is dirty data on this device: {}.",
            reason(Doubt::OlderSet)
        );
    }
    if let Some(relation) = member.relation.as_ref().filter(|it| it.slot.is_some()) {
        let cache = relation.cache.display();
        match (relation.standing, stakes.answer) {
            (_, Answer::None) if sb.state() == BackingState::Stale => {
                return format!(
                    "This backing device was run without its cache (state inconsistent), and may lack \
                     data: {cache} no longer holds dirty data of it."
                );
            }
            (_, Answer::None) => {
                return format!(
                    "This backing device is complete: {cache} holds no dirty data of it."
                );
            }
            (Standing::Attached, Answer::Present) if sb.state() == BackingState::Stale => {
                return format!(
                    "This backing device was run without its cache (state inconsistent): {cache} \
                     holds {} of dirty data of it that was given up.",
                    amount(stakes.at_least_sectors, stakes.at_most_sectors)
                );
            }
            (Standing::Attached, Answer::Present) => {
                return format!(
                    "This backing device is INCOMPLETE: {cache} holds {} of dirty data of it.",
                    amount(stakes.at_least_sectors, stakes.at_most_sectors)
                );
            }
            (_, Answer::Present) => {
                return format!(
                    "This backing device is the owner of {} of dirty data on {cache}, and is no \
                     longer attached to it: the kernel detaches a device when its cache fails.",
                    amount(stakes.at_least_sectors, stakes.at_most_sectors)
                );
            }
            (_, Answer::Unknown) => {
                return format!(
                    "It CANNOT BE TOLD whether {cache} holds dirty data of this backing device: {}.",
                    doubts(&stakes.doubts)
                );
            }
        }
    }
    if let (Some(relation), Answer::Unknown) = (&member.relation, stakes.answer) {
        if sb.state() != BackingState::Stale && sb.state() != BackingState::Dirty {
            return format!(
                "It CANNOT BE TOLD whether {} holds dirty data of this backing device: its uuid table \
                 does not name the owner.",
                relation.cache.display()
            );
        }
    }
    of_state(Some(sb.state())).to_owned()
}

/// What a backing device says of itself; `state` is `None` where its superblock cannot be trusted.
pub const fn of_state(state: Option<BackingState>) -> &'static str {
    match state {
        None => {
            "It CANNOT BE TOLD whether a cache holds dirty data of this device: its superblock has a \
             bad checksum."
        }
        Some(BackingState::None) => "This backing device is attached to no cache.",
        Some(BackingState::Clean) => {
            "This backing device is complete: no cache holds dirty data of it."
        }
        Some(BackingState::Dirty) => {
            "This backing device is INCOMPLETE: its cache may hold dirty data of it. `bcachectl show` \
             of the cache tells how much."
        }
        Some(BackingState::Stale) => {
            "This backing device was run without its cache while that held dirty data (state \
             inconsistent): it may lack data that only the cache has."
        }
    }
}
