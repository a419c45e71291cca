//! Changing settings: everything is checked before the first write, each is read back.

use super::{ControlError, Look, Note, Plan, Proof, Waiting, Write};
use crate::running::attributes::Attributes;
use crate::running::tunables::{FP_TERMS, Scope, Tunable, ValueError};

/// A setting and the value that it gets, as the kernel takes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// The setting.
    pub tunable: &'static Tunable,
    /// The value as it is written.
    pub value: String,
}

/// Why settings are not changed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingError {
    /// A value is not for its setting.
    #[error(transparent)]
    Value(#[from] ValueError),
    /// This kernel, or this device, has no such file.
    #[error("this kernel has no {name} here")]
    Missing {
        /// The setting.
        name: &'static str,
    },
    /// The same setting twice.
    #[error("{name} is given twice")]
    Twice {
        /// The setting.
        name: &'static str,
    },
    /// The three terms are out of order, and the kernel would change them without a word.
    #[error(
        "writeback_rate_fp_term_low, _mid and _high have to ascend, and would be {low}, {mid}, \
         {high}"
    )]
    TermsOutOfOrder {
        /// What low would be.
        low: u64,
        /// What mid would be.
        mid: u64,
        /// What high would be.
        high: u64,
    },
    /// The kernel takes it and does nothing.
    #[error("{name} cannot be switched on without a cache")]
    NeedsCache {
        /// The setting.
        name: &'static str,
    },
}

/// The top of the range that depends on the set that the device in `of` is attached to.
pub fn most_of(tunable: &Tunable, of: &Attributes) -> Option<u64> {
    if tunable.name != "writeback_percent" || tunable.scope != Scope::Backing {
        return None;
    }
    of.below("cache/internal").number("cutoff_writeback")
}

/// The order in which the changes are written so that the kernel changes none of them, and the plan.
/// `target` names the device or set whose directory is `of`.
///
/// # Errors
/// When a value, or what they would be together, is not possible.
pub fn plan_settings(
    target: &str,
    of: &Attributes,
    changes: Vec<Change>,
) -> Result<(Plan, Vec<Change>), SettingError> {
    let mut pending: Vec<Change> = Vec::new();
    for change in changes {
        let name = change.tunable.name;
        if pending.iter().any(|it| it.tunable == change.tunable) {
            return Err(SettingError::Twice { name });
        }
        let Some(now) = change.tunable.read(of) else {
            return Err(SettingError::Missing { name });
        };
        if name == "writeback_running" && change.value == "1" && !of.has("cache") {
            return Err(SettingError::NeedsCache { name });
        }
        if !change.tunable.is(&now, &change.value) || is_rounded(change.tunable) {
            pending.push(change);
        }
    }
    let ordered = in_order(of, pending)?;
    let writes = ordered
        .iter()
        .map(|change| Write {
            file: change.tunable.directory(of).path(change.tunable.name),
            value: format!("{}\n", change.value),
        })
        .collect::<Vec<_>>();
    let notes = if writes.is_empty() { vec![Note::AlreadySo] } else { Vec::new() };
    let plan =
        Plan { action: "set", target: target.to_owned(), writes, proof: Proof::Written, notes };
    Ok((plan, ordered))
}

/// Whether what the kernel prints is not exact, so that an equal text may hide another value.
fn is_rounded(tunable: &Tunable) -> bool {
    tunable.unit == crate::running::tunables::Unit::Bytes
}

/// Puts the three terms into an order in which each is possible when it is written.
fn in_order(of: &Attributes, changes: Vec<Change>) -> Result<Vec<Change>, SettingError> {
    let (mut terms, mut ordered): (Vec<Change>, Vec<Change>) =
        changes.into_iter().partition(|it| FP_TERMS.contains(&it.tunable.name));
    if terms.is_empty() {
        return Ok(ordered);
    }
    let mut now = FP_TERMS.map(|name| of.number(name).unwrap_or(0));
    let place = |change: &Change| FP_TERMS.iter().position(|name| *name == change.tunable.name);
    let mut wanted = now;
    for change in &terms {
        if let (Some(slot), Ok(value)) =
            (place(change).and_then(|it| wanted.get_mut(it)), change.value.parse())
        {
            *slot = value;
        }
    }
    let ascends = |[low, mid, high]: [u64; 3]| low < mid && mid < high;
    if !ascends(wanted) {
        let [low, mid, high] = wanted;
        return Err(SettingError::TermsOutOfOrder { low, mid, high });
    }
    while !terms.is_empty() {
        let possible = terms.iter().position(|change| {
            let mut then = now;
            if let (Some(slot), Ok(value)) =
                (place(change).and_then(|it| then.get_mut(it)), change.value.parse())
            {
                *slot = value;
            }
            ascends(then)
        });
        // Between two ascending triples there is always a next step: when all rise the highest can
        // go first, else the lowest that falls.
        let change = terms.remove(possible.unwrap_or(0));
        if let (Some(slot), Ok(value)) =
            (place(&change).and_then(|it| now.get_mut(it)), change.value.parse())
        {
            *slot = value;
        }
        ordered.push(change);
    }
    Ok(ordered)
}

/// Writes the changes one after the other and reads each back. What the kernel changed or ignored is
/// an error. `of` names the directory below the root that is waited at.
///
/// # Errors
/// When a write fails or reads back as something else.
pub fn apply_settings(
    plan: &Plan,
    changes: &[Change],
    of: &Attributes,
    waiting: &mut Waiting<'_>,
) -> Result<(), ControlError> {
    for (index, (write, change)) in plan.writes.iter().zip(changes).enumerate() {
        waiting.write(write).map_err(|error| match error {
            ControlError::Write { source, reason, .. } if index > 0 => ControlError::Otherwise {
                what: format!("{} was not taken after others were: {source}", change.tunable.name),
                reason,
            },
            error => error,
        })?;
        let (of, tunable) = (of.of(waiting.root), change.tunable);
        let read = waiting.until("the kernel does not answer", move || {
            Look::Done(tunable.read(&of).unwrap_or_default())
        })?;
        if !tunable.is(&read, &change.value) {
            return Err(ControlError::Otherwise {
                what: format!("the kernel made {read} of {}={}", change.tunable.name, change.value),
                reason: None,
            });
        }
    }
    Ok(())
}
