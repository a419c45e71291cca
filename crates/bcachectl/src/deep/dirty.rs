//! The question that loses people their data: is anything on this cache that is nowhere else, whose
//! is it, and may the cache be wiped?

use bcache_core::layout::superblock::BackingState;
use bcache_core::units::format_bytes;
use serde::Serialize;

use crate::deep::{Reading, VolumeReport, Volumes};

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

/// The answer, for programs and in words.
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

fn size(sectors: u64) -> String {
    format_bytes(sectors.saturating_mul(512))
}

impl DirtyAnswer {
    /// Of a set that was read. `in_use` says that somebody holds the device.
    pub fn of_set(reading: &Reading<'_>, volumes: &Volumes, in_use: bool) -> Self {
        let at_stake: Vec<&VolumeReport> =
            volumes.0.iter().filter(|it| it.dirty_sectors > 0 || it.flash_only).collect();
        let sectors = at_stake.iter().fold(0u64, |sum, it| sum.saturating_add(it.dirty_sectors));
        let mut text = Vec::new();
        let answer = if sectors > 0 {
            let least = if reading.incomplete { "at least " } else { "" };
            text.push(format!(
                "There IS dirty data on this cache: {least}{} ({sectors} sectors) that exists \
                 nowhere else.",
                size(sectors)
            ));
            Answer::Present
        } else if reading.incomplete {
            text.push(
                "It CANNOT BE TOLD whether there is dirty data on this cache: parts of it are \
                 damaged, cannot be read, or were not written whole. None was found in the rest."
                    .to_owned(),
            );
            Answer::Unknown
        } else {
            text.push("There is no dirty data on this cache.".to_owned());
            Answer::None
        };
        for volume in &at_stake {
            let what = if volume.dirty_sectors > 0 {
                format!("{} dirty", size(volume.dirty_sectors))
            } else {
                "nothing written to it yet".to_owned()
            };
            text.push(format!("{}: {what}.", volume.name()));
        }
        let safe_to_wipe = answer == Answer::None && at_stake.is_empty() && !in_use;
        text.push(wipe_text(answer, &at_stake, in_use));
        if answer == Answer::None {
            for volume in volumes.0.iter().filter(|it| it.backing_says_dirty()) {
                text.push(format!(
                    "The superblock of {} still says dirty, so that the kernel waits for this \
                     cache; register both once, and detach.",
                    volume.name()
                ));
            }
        }
        let volumes = at_stake.iter().map(|volume| volume.slot).collect();
        Self { answer, sectors: Some(sectors), safe_to_wipe, volumes, text }
    }

    /// Of a cache device that the kernel would start afresh.
    pub fn of_unsynced(in_use: bool) -> Self {
        let mut text = vec![
            "There is no dirty data on this cache: it is not in use yet, and the kernel starts it \
             afresh when it registers it."
                .to_owned(),
        ];
        text.push(wipe_text(Answer::None, &[], in_use));
        Self {
            answer: Answer::None,
            sectors: Some(0),
            safe_to_wipe: !in_use,
            volumes: Vec::new(),
            text,
        }
    }

    /// Of a cache device that could not be read.
    pub fn unknown(why: &str) -> Self {
        let text = vec![
            format!("It CANNOT BE TOLD whether there is dirty data on this device: {why}."),
            wipe_text(Answer::Unknown, &[], false),
        ];
        Self {
            answer: Answer::Unknown,
            sectors: None,
            safe_to_wipe: false,
            volumes: Vec::new(),
            text,
        }
    }

    /// Of a backing device, as far as its superblock tells.
    pub fn of_backing(state: BackingState) -> Self {
        let (answer, sectors, text) = match state {
            BackingState::None => {
                (Answer::None, Some(0), "This backing device is attached to no cache.")
            }
            BackingState::Clean => (
                Answer::None,
                Some(0),
                "This backing device is complete: no cache holds dirty data of it.",
            ),
            BackingState::Dirty => (
                Answer::Present,
                None,
                "This backing device is INCOMPLETE: its cache may hold dirty data of it; how much, \
                 show says of the cache.",
            ),
            BackingState::Stale => (
                Answer::Unknown,
                None,
                "This backing device was run without its cache while that held dirty data: what \
                 it holds is stale, and what the cache holds no longer belongs to it.",
            ),
        };
        Self {
            answer,
            sectors,
            // The data itself is here.
            safe_to_wipe: false,
            volumes: Vec::new(),
            text: vec![text.to_owned()],
        }
    }
}

fn wipe_text(answer: Answer, at_stake: &[&VolumeReport], in_use: bool) -> String {
    match answer {
        Answer::Present => "Wiping this cache LOSES that data. Write it back first: register the \
                            cache and the backing devices, and detach each backing device \
                            (echo 1 > /sys/block/bcacheN/bcache/detach); copy flash-only volumes \
                            elsewhere."
            .to_owned(),
        Answer::Unknown => "Do NOT wipe it as long as the data of its backing devices matters; \
                            bcachectl check says what is wrong."
            .to_owned(),
        Answer::None if !at_stake.is_empty() => {
            "Wiping this cache destroys the flash-only volumes named above.".to_owned()
        }
        Answer::None if in_use => "It is not safe to wipe now, because the device is in use and \
                                   may become dirty at any time: stop it first."
            .to_owned(),
        Answer::None => "It is safe to wipe this cache.".to_owned(),
    }
}
