//! Telling the kernel what to do: check, write once, see that it happened.
//!
//! A [`Plan`] comes from one of the functions in `plans`. They refuse ([`Refusal`]) what the kernel would
//! refuse, what cannot be taken back, and what loses data. [`run`] carries a plan out. Nothing is written twice: most of bcache's files act on any text, and a second
//! write may find another device in the same place.

mod claim;
mod flush;
mod on_device;
mod plans;
mod proof;
mod refusal;
mod replace;
mod returning;
mod settings;
mod wipe;

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::deadline::Late;
use super::kmsg::{Mark, reason};
use super::rounded::Rounded;
use crate::device::sysfs::Root;

pub use flush::{
    Changed, FlushOptions, Flushed, changes_of_flush, flush, plan_flush, plan_put_back,
};
pub use on_device::read_on_device;
pub use plans::{
    plan_attach, plan_detach, plan_label, plan_register, plan_run, plan_run_again, plan_stop,
    plan_stop_set, plan_unregister, plan_volume_create, plan_volume_remove,
};
pub use proof::Proof;
pub use refusal::Refusal;
pub use replace::{Move, plan_replace, settings_to_carry};
pub use returning::{joins, returns_to};
pub use settings::{Change, SettingError, apply_settings, most_of, plan_settings};
pub use wipe::{WipeError, wipe};

/// One write to a file of the kernel.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Write {
    /// The file.
    pub file: PathBuf,
    /// What is written, as it is.
    pub value: String,
}

/// What is to be done to one device or set, after all checks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Plan {
    /// What it is called, such as `attach`.
    pub action: &'static str,
    /// The device or set.
    pub target: String,
    /// What is written; nothing where it is so already.
    pub writes: Vec<Write>,
    /// What has to be seen for it to be done.
    #[serde(skip)]
    pub proof: Proof,
    /// What a person should know before it is done.
    pub notes: Vec<Note>,
}

/// A fact that goes with a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "code")]
pub enum Note {
    /// It is so already; nothing is written.
    AlreadySo,
    /// So many bytes of dirty data are written back first.
    WritesBack {
        /// The device.
        device: String,
        /// Its dirty data in bytes.
        dirty_bytes: Rounded,
    },
    /// So many bytes of dirty data stay on the cache.
    StaysDirty {
        /// The device.
        device: String,
        /// Its dirty data in bytes.
        dirty_bytes: Rounded,
    },
    /// It ran without the cache that its superblock still takes for current.
    NamesLostCache {
        /// The device.
        device: String,
    },
    /// The device's superblock will say "inconsistent".
    TurnsInconsistent,
    /// Dirty data on the absent cache is given up.
    LosesDirtyData,
    /// The old contents of the cache are dropped; nothing is lost, unless it was dirty.
    DropsOldContents,
    /// Something has the device open; it ends at the last close.
    EndsAtLastClose {
        /// The bcache device.
        bcache: String,
        /// Who uses it, in words.
        users: Vec<String>,
    },
    /// The flash-only volumes of the set are stopped; their data stays on the cache.
    VolumesStop {
        /// The bcache devices.
        volumes: Vec<String>,
    },
    /// The cache device keeps its superblock, and may be registered again.
    KeepsSuperblock {
        /// The cache device.
        device: String,
    },
    /// All data of the volume is gone.
    LosesVolume {
        /// Its size in bytes.
        bytes: u64,
    },
}

/// Why a write failed.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The kernel did not take it.
    #[error("{} did not take {value:?}: {}", file.display(), why(source, reason.as_deref()))]
    Write {
        /// The file.
        file: PathBuf,
        /// What was to be written.
        value: String,
        /// The system's answer.
        source: io::Error,
        /// The kernel's own words, from its log.
        reason: Option<String>,
    },
    /// It was written, and what proves it was not seen in time. The kernel may still be at it.
    #[error("written, but not done after {} s: {waiting_for}", after.as_secs())]
    NotDone {
        /// How long was waited.
        after: Duration,
        /// What was not seen.
        waiting_for: String,
    },
    /// It was written, and then the user wanted no more waiting. The kernel goes on.
    #[error("interrupted while the kernel is at it: {waiting_for}")]
    Interrupted {
        /// What was not seen yet.
        waiting_for: String,
    },
    /// It was written, and something else came of it.
    #[error("written, but {what}{}", reason.as_ref().map(|it| format!(" ({it})")).unwrap_or_default())]
    Otherwise {
        /// What came of it.
        what: String,
        /// The kernel's own words, from its log.
        reason: Option<String>,
    },
    /// Settings that were changed for the time could not be put back.
    #[error("not put back: {}", settings.join(", "))]
    NotRestored {
        /// Files and the values they should have.
        settings: Vec<String>,
    },
}

fn why(source: &io::Error, reason: Option<&str>) -> String {
    match reason {
        Some(reason) => format!("{reason} ({source})"),
        None => source.to_string(),
    }
}

/// What to wait for, how long, and whom to tell.
pub struct Waiting<'a> {
    /// Where sysfs is.
    pub root: &'a Root,
    /// Longest time; none for as long as it takes.
    pub limit: Option<Duration>,
    /// Set when the user wants no more waiting.
    pub stop: &'a AtomicBool,
    /// Is told how it goes.
    pub progress: &'a mut dyn FnMut(Progress),
}

/// How it goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The kernel does not answer: somebody holds bcache's lock.
    Blocked,
    /// So many bytes are dirty still.
    Dirty(Rounded),
}

/// Pause between two looks.
const PAUSE: Duration = Duration::from_millis(20);

/// How long one look may take before it counts as blocked.
const LOOK: Duration = Duration::from_secs(1);

impl Waiting<'_> {
    /// Looks until `look` gives something.
    ///
    /// # Errors
    /// When time is over, or the user has enough.
    pub fn until<T: Send + 'static>(
        &mut self,
        waiting_for: &str,
        look: impl Fn() -> Look<T> + Send + Clone + 'static,
    ) -> Result<T, ControlError> {
        let started = Instant::now();
        let mut late = Late::default();
        loop {
            let waiting_for = || waiting_for.to_owned();
            match late.ask(LOOK, look.clone()) {
                Some(Look::Done(done)) => return Ok(done),
                Some(Look::Dirty(dirty)) => (self.progress)(Progress::Dirty(dirty)),
                Some(Look::NotYet) => {}
                None => (self.progress)(Progress::Blocked),
            }
            if self.stop.load(Ordering::Relaxed) {
                return Err(ControlError::Interrupted { waiting_for: waiting_for() });
            }
            let after = started.elapsed();
            if self.limit.is_some_and(|limit| after >= limit) {
                return Err(ControlError::NotDone { after, waiting_for: waiting_for() });
            }
            sleep(PAUSE);
        }
    }

    /// Writes `value` to `file` in one write(2).
    ///
    /// # Errors
    /// What the kernel answers, with the reason from its log.
    pub fn write(&mut self, write: &Write) -> Result<(), ControlError> {
        let mut log = Mark::now();
        let mut late = Late::default();
        let (file, value) = (write.file.clone(), write.value.clone());
        let mut answer = late.ask(LOOK, move || write_once(&file, &value));
        while answer.is_none() {
            // A write that has begun cannot be called off; the limit is for what comes after it.
            (self.progress)(Progress::Blocked);
            answer = late.wait(LOOK);
        }
        match answer {
            Some(Err(source)) => Err(ControlError::Write {
                file: write.file.clone(),
                value: write.value.trim_end().to_owned(),
                source,
                reason: reason(&log.bcache_lines()),
            }),
            _ => Ok(()),
        }
    }
}

/// What one look has found.
#[derive(Clone, Debug)]
pub enum Look<T> {
    /// It is done.
    Done(T),
    /// So many bytes are dirty still.
    Dirty(Rounded),
    /// It is not done.
    NotYet,
}

/// Writes the whole of `value` at once: each write(2) is a command to the kernel.
fn write_once(file: &Path, value: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().write(true).open(file)?;
    let written = file.write(value.as_bytes())?;
    if written == value.len() {
        Ok(())
    } else {
        Err(io::Error::other(format!("only {written} of {} bytes were taken", value.len())))
    }
}

/// Carries out `plan`: its writes one after the other, then looks until the proof is there.
///
/// # Errors
/// A write that the kernel refuses, and a proof that is not seen in time.
pub fn run(plan: &Plan, waiting: &mut Waiting<'_>) -> Result<Done, ControlError> {
    let mut log = Mark::now();
    for (index, write) in plan.writes.iter().enumerate() {
        waiting.write(write).map_err(|error| match error {
            ControlError::Write { file, source, reason, .. } if index > 0 => {
                ControlError::Otherwise {
                    what: format!("{} failed after that: {source}", file.display()),
                    reason,
                }
            }
            error => error,
        })?;
    }
    if plan.writes.is_empty() {
        return Ok(Done::default());
    }
    let done = plan.proof.wait(waiting)?;
    Ok(Done { log: log.bcache_lines(), ..done })
}

/// What was seen.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Done {
    /// The bcache device that it led to, where there is one.
    pub bcache: Option<String>,
    /// What bcache logged meanwhile.
    pub log: Vec<String>,
}
