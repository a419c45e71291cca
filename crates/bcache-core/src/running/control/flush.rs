//! Writing dirty data back to the last sector, with the settings put back whatever happens.

use std::fs;
use std::path::Path;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::{ControlError, Look, Note, Plan, Proof, Refusal, Waiting, Write};
use crate::running::Rounded;
use crate::running::attributes::Attributes;
use crate::running::findings::DeviceState;
use crate::running::view::Backing;

/// How to flush.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FlushOptions {
    /// Turn the mode to writethrough for the time, so that new writes do not keep it dirty.
    pub writethrough: bool,
}

/// How it went.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Flushed {
    /// Dirty bytes at the beginning.
    pub before_bytes: Rounded,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
}

/// The settings that make writeback run to the end, in the order in which they are written: delay
/// before percent, for a change of percent wakes the thread.
const SETTINGS: [(&str, &str); 3] =
    [("writeback_delay", "0"), ("writeback_percent", "0"), ("writeback_running", "1")];

/// What is written to flush `backing`.
///
/// # Errors
/// When it is not attached.
pub fn plan_flush(backing: &Backing, options: FlushOptions) -> Result<Plan, Refusal> {
    let device = backing.name.clone();
    let mut plan = Plan {
        action: "flush",
        target: device.clone(),
        writes: Vec::new(),
        proof: Proof::Written,
        notes: Vec::new(),
    };
    match DeviceState::of(backing) {
        DeviceState::AttachedDirty => {}
        DeviceState::AttachedClean if backing.taken_for_clean() => {
            return Err(Refusal::TakenForClean { device });
        }
        DeviceState::AttachedClean | DeviceState::Detaching => {
            plan.notes.push(Note::AlreadySo);
            return Ok(plan);
        }
        state => return Err(Refusal::WrongState { device, state, set: backing.set }),
    }
    let write = |name: &str, value: &str| Write {
        file: backing.attributes.path(name),
        value: format!("{value}\n"),
    };
    if options.writethrough && backing.cache_mode.as_deref() == Some("writeback") {
        plan.writes.push(write("cache_mode", "writethrough"));
    }
    for (name, value) in SETTINGS {
        if backing.attributes.text(name).as_deref() != Some(value) {
            plan.writes.push(write(name, value));
        }
    }
    if let Some(dirty_bytes) = backing.dirty {
        plan.notes.push(Note::WritesBack { device, dirty_bytes });
    }
    Ok(plan)
}

/// A setting that a flush changes for the time.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    /// The name of its file.
    pub name: String,
    /// Its value before the flush, as it can be written.
    pub before: String,
    /// Its value during the flush.
    pub during: String,
}

impl Changed {
    /// Whether the device in `of` still has the value of the flush.
    pub fn is_in_force(&self, of: &Attributes) -> bool {
        current(of, &self.name).as_deref() == Some(&self.during)
    }
}

/// What the plan of [`plan_flush`] for `backing` changes, with the values of now. Whoever keeps this can put the
/// settings back with [`plan_put_back`] after a flush that was killed.
///
/// # Errors
/// When a setting cannot be read.
pub fn changes_of_flush(plan: &Plan, backing: &Backing) -> Result<Vec<Changed>, ControlError> {
    let of = |write: &Write| {
        let name = write.file.file_name()?.to_str()?.to_owned();
        let during = write.value.trim_end().to_owned();
        Some(Changed { before: current(&backing.attributes, &name)?, name, during })
    };
    plan.writes.iter().map(|write| of(write).ok_or_else(|| unreadable(&write.file))).collect()
}

/// Puts back what a killed flush has left changed on the device in `of`. A setting that somebody has
/// set to another value since stays as it is.
pub fn plan_put_back(device: &str, of: &Attributes, changed: &[Changed]) -> Plan {
    let write = |setting: &Changed| Write {
        file: of.path(&setting.name),
        value: format!("{}\n", setting.before),
    };
    let left = changed.iter().rev().filter(|setting| setting.is_in_force(of));
    let writes: Vec<Write> = left.map(write).collect();
    let notes = if writes.is_empty() { vec![Note::AlreadySo] } else { Vec::new() };
    let (action, target) = ("put-back", device.to_owned());
    Plan { action, target, writes, proof: Proof::Written, notes }
}

/// Settings as they were, put back when dropped.
struct Saved {
    /// In the order in which they were changed.
    writes: Vec<Write>,
}

impl Saved {
    /// Puts them back in reverse; what could not be is returned.
    fn restore(&mut self) -> Vec<String> {
        let mut failed = Vec::new();
        while let Some(write) = self.writes.pop() {
            let error = match fs::write(&write.file, &write.value) {
                Ok(()) => continue,
                Err(error) => error,
            };
            let value = write.value.trim_end();
            failed.push(format!("{} should be {value}: {error}", write.file.display()));
        }
        failed
    }
}

impl Drop for Saved {
    fn drop(&mut self) {
        // An error was returned already, or a panic is under way; nobody is left to be told.
        let _ = self.restore();
    }
}

/// What a setting is now, in the words in which it can be written back.
fn current(of: &Attributes, name: &str) -> Option<String> {
    let text = of.text(name)?;
    let text = text.trim_end();
    let word = text.split_once('[').and_then(|(_, rest)| rest.split_once(']')).map(|it| it.0);
    Some(word.unwrap_or(text).to_owned())
}

fn unreadable(file: &Path) -> ControlError {
    ControlError::Otherwise { what: format!("{} cannot be read", file.display()), reason: None }
}

/// Carries out the plan of [`plan_flush`] for `backing`, and waits until its superblock says clean.
/// The settings are put back when it is done, fails, or is interrupted.
///
/// # Errors
/// When a setting is not taken, or it is not clean in time.
pub fn flush(
    plan: &Plan,
    backing: &Backing,
    waiting: &mut Waiting<'_>,
) -> Result<Flushed, ControlError> {
    let started = Instant::now();
    let before_bytes = backing.dirty.unwrap_or(Rounded::exact(0));
    let mut saved = Saved { writes: Vec::new() };
    let result = change(plan, backing, waiting, &mut saved);
    let failed = saved.restore();
    result?;
    if !failed.is_empty() {
        return Err(ControlError::NotRestored { settings: failed });
    }
    let took = started.elapsed();
    Ok(Flushed { before_bytes, took_ms: u64::try_from(took.as_millis()).unwrap_or(u64::MAX) })
}

fn change(
    plan: &Plan,
    backing: &Backing,
    waiting: &mut Waiting<'_>,
    saved: &mut Saved,
) -> Result<(), ControlError> {
    let at = backing.attributes.of(waiting.root);
    for write in &plan.writes {
        let (of, name) = (at.clone(), write.file.file_name().and_then(|it| it.to_str()));
        let name = name.unwrap_or_default().to_owned();
        let now =
            waiting.until("the kernel does not answer", move || Look::Done(current(&of, &name)))?;
        let now = now.ok_or_else(|| unreadable(&write.file))?;
        waiting.write(write)?;
        saved.writes.push(Write { file: write.file.clone(), value: format!("{now}\n") });
    }
    if plan.writes.is_empty() && plan.notes.contains(&Note::AlreadySo) {
        return Ok(());
    }
    let words = format!("{} is still dirty", backing.name);
    let gone = waiting.until(&words, move || {
        if !at.has("state") || !at.has("cache") {
            return Look::Done(true);
        }
        match (at.rounded("dirty_data"), at.text("state").as_deref()) {
            (Some(dirty), Some("clean")) if dirty.is_zero() => Look::Done(false),
            (Some(dirty), _) => Look::Dirty(dirty),
            (None, _) => Look::NotYet,
        }
    })?;
    if gone {
        return Err(ControlError::Otherwise {
            what: format!("{} was detached or stopped meanwhile", backing.name),
            reason: None,
        });
    }
    Ok(())
}
