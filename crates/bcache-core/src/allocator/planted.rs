//! Bugs that can be switched on, to show that the harnesses find them.
//!
//! They exist only with the feature `model`; otherwise [`is`] is always false and costs nothing.

/// A bug.
#[allow(unreachable_pub)] // shown with the feature only
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bug {
    /// `free_inc` is handed out before its gens are durable.
    EarlyHandOut,
    /// The same, but only where it is filled before it is empty.
    EarlyHandOutOfMore,
    /// The thread announces that it sleeps only after it looked at what it waits for.
    LateAnnouncement,
    /// A push does not wake who waits for it.
    NoWakeUp,
    /// The prio sets are not flushed before the journal entry names them.
    SkippedFlush,
    /// A victim is invalidated without looking at its pins again.
    UncheckedVictim,
}

#[cfg(feature = "model")]
mod switch {
    use super::Bug;
    use std::cell::Cell;

    thread_local! {
        // The model checker runs all its threads on one of the system's.
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Plants a bug, or removes the one that is.
    pub fn plant(bug: Option<Bug>) {
        PLANTED.set(bug);
    }

    pub(crate) fn is(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }
}

#[cfg(feature = "model")]
pub use switch::plant;

#[cfg(feature = "model")]
pub(crate) use switch::is;

/// Whether a bug is planted.
#[cfg(not(feature = "model"))]
pub(crate) const fn is(bug: Bug) -> bool {
    let _ = bug;
    false
}
