//! What has to be seen for something to be done.

use std::fs;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::claim::claimable;
use super::{ControlError, Done, Look, Waiting};
use crate::device::sysfs::{Root, node_of};
use crate::running::attributes::Attributes;

/// What has to be seen in sysfs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Proof {
    /// The device is registered: as the cache of a set, or as a backing device that runs or waits.
    Registered {
        /// The kernel's name of the device.
        device: String,
    },
    /// The backing device has a link to the set.
    Attached {
        /// The backing device.
        device: String,
        /// The set.
        set: Uuid,
    },
    /// The backing device has no link to a set, and its superblock says so.
    Detached {
        /// The backing device.
        device: String,
    },
    /// The backing device runs.
    Runs {
        /// The backing device.
        device: String,
    },
    /// The devices are free: bcache's directories and devices are gone, and each can be claimed.
    Free {
        /// The set that has to be gone, too.
        set: Option<Uuid>,
        /// The kernel's names of the devices that bcache held.
        devices: Vec<String>,
        /// The bcache devices that have to be gone.
        bcache: Vec<String>,
    },
    /// The bcache directory of the device is gone; the rest follows at the last close.
    Closing {
        /// The directories that have to be gone.
        dirs: Vec<PathBuf>,
    },
    /// The set is gone, and its backing devices run without it.
    Unregistered {
        /// The set.
        set: Uuid,
        /// Its cache device.
        cache: Option<String>,
        /// The backing devices that were attached.
        attached: Vec<String>,
    },
    /// A file reads what was written.
    Reads {
        /// The file.
        file: PathBuf,
        /// What it has to read, without the last newline.
        text: String,
    },
    /// The set has a volume that it did not have.
    NewVolume {
        /// The set's directory.
        set: PathBuf,
        /// Names of the volumes before.
        before: Vec<String>,
        /// Label to give it.
        label: Option<String>,
    },
    /// The write is all there is.
    Written,
}

fn class(root: &Root, name: &str) -> PathBuf {
    root.sys("class/block").join(name)
}

fn exists(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok()
}

fn volumes(root: &Root, set: &Path) -> Vec<String> {
    let mut names = Attributes::at(root, set).names();
    names.retain(|name| name.strip_prefix("volume").is_some_and(|it| it.parse::<u32>().is_ok()));
    names
}

impl Proof {
    /// What is waited for, in words.
    fn waiting_for(&self) -> String {
        match self {
            Self::Registered { device } => format!("{device} is not registered yet"),
            Self::Attached { device, set } => format!("{device} is not attached to {set} yet"),
            Self::Detached { device } => format!("{device} is still attached"),
            Self::Runs { device } => format!("{device} does not run yet"),
            Self::Free { set: Some(set), .. } | Self::Unregistered { set, .. } => {
                format!("the set {set} is not gone yet")
            }
            Self::Free { devices, .. } => format!("{} is not free yet", devices.join(", ")),
            Self::Closing { .. } => "bcache's directory is still there".to_owned(),
            Self::Reads { file, text } => format!("{} does not read {text:?}", file.display()),
            Self::NewVolume { .. } => "no new volume appeared".to_owned(),
            Self::Written => String::new(),
        }
    }

    /// One look.
    fn look(&self, root: &Root) -> Look<Done> {
        let bcache = |device: &str| Attributes::at(root, class(root, device).join("bcache"));
        let done = |done: bool| if done { Look::Done(Done::default()) } else { Look::NotYet };
        match self {
            Self::Registered { device } => {
                let at = bcache(device);
                let name = at.link_name("dev");
                let waits = at.flag("running") == Some(false);
                if at.has("set") || name.is_some() || waits {
                    Look::Done(Done { bcache: name, log: Vec::new() })
                } else {
                    Look::NotYet
                }
            }
            Self::Attached { device, set } => {
                let at = bcache(device);
                let linked = at.link_name("cache").and_then(|it| Uuid::try_parse(&it).ok());
                let state = at.text("state");
                done(linked == Some(*set) && matches!(state.as_deref(), Some("clean" | "dirty")))
            }
            Self::Detached { device } => {
                let at = bcache(device);
                if at.has("state") && !at.has("cache") {
                    return done(at.text("state").as_deref() == Some("no cache"));
                }
                at.rounded("dirty_data").map_or(Look::NotYet, Look::Dirty)
            }
            Self::Runs { device } => match bcache(device).link_name("dev") {
                Some(name) => Look::Done(Done { bcache: Some(name), log: Vec::new() }),
                None => Look::NotYet,
            },
            Self::Free { set, devices, bcache } => {
                let set_gone =
                    set.is_none_or(|set| !exists(&root.sys("fs/bcache").join(set.to_string())));
                let free = |device: &String| {
                    !exists(&class(root, device).join("bcache")) && claimable(&node_of(device))
                };
                // The claim comes last: the kernel lets go of the devices after all else is gone.
                done(
                    set_gone
                        && bcache.iter().all(|it| !exists(&class(root, it)))
                        && devices.iter().all(free),
                )
            }
            Self::Closing { dirs } => done(dirs.iter().all(|dir| !exists(dir))),
            Self::Unregistered { set, cache, attached } => {
                let set_gone = !exists(&root.sys("fs/bcache").join(set.to_string()));
                let detached = |device: &String| {
                    let at = bcache(device);
                    !at.has("cache") && at.text("state").as_deref() == Some("no cache")
                };
                let free = |device: &String| claimable(&node_of(device));
                if set_gone && attached.iter().all(detached) && cache.iter().all(free) {
                    return done(true);
                }
                let dirty = attached.iter().filter_map(|it| bcache(it).rounded("dirty_data"));
                let most = dirty.max_by_key(|it| it.high());
                most.map_or(Look::NotYet, Look::Dirty)
            }
            Self::Reads { file, text } => {
                let read = fs::read(file).map(|it| String::from_utf8_lossy(&it).into_owned());
                let read = read.map(|it| it.strip_suffix('\n').map(str::to_owned).unwrap_or(it));
                done(read.is_ok_and(|it| it == *text))
            }
            Self::NewVolume { set, before, .. } => {
                let new = volumes(root, set).into_iter().find(|name| !before.contains(name));
                let owner = new.and_then(|name| {
                    let dir = Attributes::at(root, set).target(&name)?;
                    Some(dir.parent()?.file_name()?.to_str()?.to_owned())
                });
                match owner {
                    Some(name) => Look::Done(Done { bcache: Some(name), log: Vec::new() }),
                    None => Look::NotYet,
                }
            }
            Self::Written => done(true),
        }
    }

    /// Looks until it is there.
    pub(super) fn wait(&self, waiting: &mut Waiting<'_>) -> Result<Done, ControlError> {
        let (proof, root) = (self.clone(), waiting.root.clone());
        let done = waiting.until(&self.waiting_for(), move || proof.look(&root))?;
        if let (Self::NewVolume { label: Some(label), .. }, Some(name)) = (self, &done.bcache) {
            // Without a newline: the kernel would keep it as part of the label.
            let file = class(waiting.root, name).join("bcache/label");
            waiting.write(&super::Write { file: file.clone(), value: label.clone() }).map_err(
                |error| ControlError::Otherwise {
                    what: format!("{name} was made and could not be labelled: {error}"),
                    reason: None,
                },
            )?;
        }
        Ok(done)
    }
}
