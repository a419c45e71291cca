//! In which state a backing device is, and which states lose data.

use std::fmt;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::view::{Backing, View};
use crate::device::sysfs::BackingState;

/// The state of a registered backing device (docs/running.md §6).
///
/// One that is being detached cannot be told from an attached one until the last dirty sector is
/// written: the kernel keeps every file as it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum DeviceState {
    /// Registered, and waits for the set that its superblock names.
    Waiting,
    /// Runs without a cache, and needs none.
    Plain,
    /// Was started without the cache that its superblock names.
    Forced,
    /// Runs with its cache; all data is on the backing device, unless it is
    /// [taken for clean](Backing::taken_for_clean).
    AttachedClean,
    /// Runs with its cache, which holds data that is nowhere else.
    AttachedDirty,
    /// Is being detached: everything is written back, and the link to the set is still there.
    Detaching,
    /// Runs without the cache that its superblock still names: the cache failed, and nothing says so.
    CacheLost,
    /// The kernel's files do not fit together, or say what this version does not know.
    Unknown,
}

impl DeviceState {
    /// The state of `backing`.
    pub fn of(backing: &Backing) -> Self {
        let attached = backing.set.is_some();
        match (backing.running, attached, backing.superblock_state.as_ref()) {
            (Some(false), false, _) => Self::Waiting,
            (Some(true), true, Some(BackingState::Clean)) => Self::AttachedClean,
            (Some(true), true, Some(BackingState::Dirty)) => Self::AttachedDirty,
            (Some(true), true, Some(BackingState::NoCache)) => Self::Detaching,
            (Some(true), false, Some(BackingState::NoCache)) => Self::Plain,
            (Some(true), false, Some(BackingState::Inconsistent)) => Self::Forced,
            (Some(true), false, Some(BackingState::Clean | BackingState::Dirty)) => Self::CacheLost,
            _ => Self::Unknown,
        }
    }

    /// Its name, the same as in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Plain => "plain",
            Self::Forced => "forced",
            Self::AttachedClean => "attached-clean",
            Self::AttachedDirty => "attached-dirty",
            Self::Detaching => "detaching",
            Self::CacheLost => "cache-lost",
            Self::Unknown => "unknown",
        }
    }

    /// All states, in the order of their documentation.
    pub const ALL: [Self; 8] = [
        Self::Waiting,
        Self::Plain,
        Self::Forced,
        Self::AttachedClean,
        Self::AttachedDirty,
        Self::Detaching,
        Self::CacheLost,
        Self::Unknown,
    ];
}

impl fmt::Display for DeviceState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// How much a finding matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing.
    Note,
    /// Should not stay like this.
    Warning,
    /// Data is wrong already, or the next step loses it.
    Danger,
}

/// What a superblock on a registered device says, beside what sysfs tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OnDevice {
    /// The set that it names.
    pub set: Uuid,
    /// The state that it has.
    pub state: crate::layout::superblock::BackingState,
}

/// What dirty data the kernel counts of a device that is attached to another set than its superblock
/// names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum OtherDirty {
    /// None: all that was written since is on the backing device.
    None,
    /// All of it is from the earlier time: the superblock would say "dirty" had any been written since.
    Old,
    /// Some may be from the earlier time, and some was written since.
    Mixed,
}

/// Something about a running device or set that a person should know.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "code")]
pub enum Finding {
    /// It runs without the cache that its superblock names, which failed while it was clean. When
    /// that cache comes back, reads return its old contents.
    CacheLost {
        /// The backing device.
        device: String,
        /// The device it runs as.
        bcache: Option<String>,
        /// The set that the superblock names, where it could be read.
        set: Option<Uuid>,
    },
    /// It was started without its cache. When that cache is registered, its dirty data of this device
    /// is dropped without a word.
    Forced {
        /// The backing device.
        device: String,
        /// The device it runs as.
        bcache: Option<String>,
        /// The set that the superblock names, where it could be read.
        set: Option<Uuid>,
    },
    /// It is attached to another set than the one that its superblock names. If it was attached to
    /// that set before, the contents of that time were read.
    OtherSet {
        /// The backing device.
        device: String,
        /// The set it is attached to.
        attached: Uuid,
        /// The set that its superblock names.
        named: Uuid,
        /// The device it runs as.
        bcache: Option<String>,
        /// Whose dirty data there is.
        dirty: OtherDirty,
    },
    /// It waits for its set.
    Waiting {
        /// The backing device.
        device: String,
        /// Whether its cache holds data that is nowhere else.
        dirty: bool,
        /// The set that the superblock names, where it could be read.
        set: Option<Uuid>,
    },
    /// All I/O to the device or set fails, until it is stopped and registered again.
    IoDisabled {
        /// The device or set.
        what: String,
    },
    /// The next registration of the set throws away all that is on its cache.
    NotSynchronous {
        /// The set.
        set: Uuid,
    },
    /// The kernel panics at the first fatal error of the set.
    Panics {
        /// The set.
        set: Uuid,
    },
    /// A device had errors.
    IoErrors {
        /// The device.
        device: String,
        /// How many.
        errors: u64,
        /// At how many it is given up, where that is known.
        limit: Option<u64>,
    },
    /// More than 95 % of the cache is in use: nothing new is cached until garbage collection frees
    /// something.
    Full {
        /// The set.
        set: Uuid,
        /// Share that is available, in per cent.
        available_percent: u64,
    },
    /// Writeback is switched off while there is dirty data.
    WritebackStopped {
        /// The backing device.
        device: String,
    },
    /// It has dirty data that the kernel does not write back by itself ([`Backing::taken_for_clean`]).
    TakenForClean {
        /// The backing device.
        device: String,
    },
    /// It was stopped and is still open.
    Closing {
        /// The bcache device.
        bcache: String,
    },
    /// Its files do not fit together.
    Unknown {
        /// The backing device.
        device: String,
    },
}

impl Finding {
    /// How much it matters.
    pub const fn severity(&self) -> Severity {
        match self {
            Self::CacheLost { .. }
            | Self::Forced { .. }
            | Self::OtherSet { .. }
            | Self::NotSynchronous { .. } => Severity::Danger,
            Self::Waiting { .. }
            | Self::IoDisabled { .. }
            | Self::IoErrors { .. }
            | Self::Full { .. }
            | Self::WritebackStopped { .. }
            | Self::TakenForClean { .. }
            | Self::Unknown { .. } => Severity::Warning,
            Self::Panics { .. } | Self::Closing { .. } => Severity::Note,
        }
    }

    /// Its code, the same as in JSON.
    pub const fn code(&self) -> &'static str {
        match self {
            Self::CacheLost { .. } => "cache-lost",
            Self::Forced { .. } => "forced",
            Self::OtherSet { .. } => "other-set",
            Self::Waiting { .. } => "waiting",
            Self::IoDisabled { .. } => "io-disabled",
            Self::NotSynchronous { .. } => "not-synchronous",
            Self::Panics { .. } => "panics",
            Self::IoErrors { .. } => "io-errors",
            Self::Full { .. } => "full",
            Self::WritebackStopped { .. } => "writeback-stopped",
            Self::TakenForClean { .. } => "taken-for-clean",
            Self::Closing { .. } => "closing",
            Self::Unknown { .. } => "unknown",
        }
    }
}

/// Share of the cache in use above which the kernel caches nothing more, in per cent.
pub const IN_USE_MAX_PERCENT: u64 = 95;

/// Everything worth knowing about `view`. `on_device` reads the superblock of a device by its kernel
/// name. Where it cannot (no root, a recorded tree), findings that need it are left out, and others do
/// not name the set.
pub fn findings(view: &View, on_device: &dyn Fn(&str) -> Option<OnDevice>) -> Vec<Finding> {
    let mut found = Vec::new();
    for backing in &view.backing {
        of_backing(backing, on_device(&backing.name), &mut found);
    }
    for set in &view.sets {
        let uuid = set.uuid;
        if set.synchronous == Some(false) {
            found.push(Finding::NotSynchronous { set: uuid });
        }
        if set.panics == Some(true) {
            found.push(Finding::Panics { set: uuid });
        }
        if set.io_disabled == Some(true) {
            found.push(Finding::IoDisabled { what: uuid.to_string() });
        }
        match set.available_percent {
            Some(available_percent) if available_percent < 100 - IN_USE_MAX_PERCENT => {
                found.push(Finding::Full { set: uuid, available_percent });
            }
            _ => {}
        }
        if let Some(cache) = &set.cache {
            if let Some(errors) = cache.io_errors.filter(|errors| *errors > 0) {
                let limit = set.attributes.number("io_error_limit");
                found.push(Finding::IoErrors { device: cache.name.clone(), errors, limit });
            }
        }
    }
    found.extend(
        view.closing.iter().map(|closing| Finding::Closing { bcache: closing.bcache.clone() }),
    );
    found.sort_by_key(|finding| std::cmp::Reverse(finding.severity()));
    found
}

fn other_dirty(backing: &Backing) -> OtherDirty {
    match (backing.dirty, &backing.superblock_state) {
        (Some(dirty), Some(BackingState::Clean)) if dirty.is_zero() => OtherDirty::None,
        (Some(_), Some(BackingState::Clean)) => OtherDirty::Old,
        _ => OtherDirty::Mixed,
    }
}

fn of_backing(backing: &Backing, on_device: Option<OnDevice>, found: &mut Vec<Finding>) {
    let device = backing.name.clone();
    let bcache = backing.bcache.clone();
    let set = on_device.map(|it| it.set).filter(|set| !set.is_nil());
    match DeviceState::of(backing) {
        DeviceState::CacheLost => found.push(Finding::CacheLost { device, bcache, set }),
        DeviceState::Forced => found.push(Finding::Forced { device, bcache, set }),
        DeviceState::Waiting => {
            let dirty = backing.superblock_state == Some(BackingState::Dirty);
            found.push(Finding::Waiting { device, dirty, set });
        }
        DeviceState::Unknown => found.push(Finding::Unknown { device }),
        DeviceState::AttachedClean | DeviceState::AttachedDirty => match (backing.set, set) {
            (Some(attached), Some(named)) if attached != named => {
                let dirty = other_dirty(backing);
                found.push(Finding::OtherSet { device, attached, named, bcache, dirty });
            }
            _ => {}
        },
        DeviceState::Plain | DeviceState::Detaching => {}
    }
    if backing.io_disabled == Some(true) {
        found.push(Finding::IoDisabled { what: backing.name.clone() });
    }
    if let Some(errors) = backing.io_errors.filter(|errors| *errors > 0) {
        let limit = backing.io_error_limit;
        found.push(Finding::IoErrors { device: backing.name.clone(), errors, limit });
    }
    if backing.taken_for_clean() {
        found.push(Finding::TakenForClean { device: backing.name.clone() });
    }
    let dirty = backing.dirty.is_some_and(|dirty| !dirty.is_zero());
    if dirty && backing.writeback_running == Some(false) {
        found.push(Finding::WritebackStopped { device: backing.name.clone() });
    }
}
