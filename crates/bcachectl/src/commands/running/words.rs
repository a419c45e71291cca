//! The words for actions, notes and refusals, and what a person can do about the latter.

use bcache_core::running::control::{Note, Refusal};
use bcache_core::running::{DeviceState, Rounded};
use bcache_core::units::format_bytes;

/// A size that the kernel rounded.
pub(super) fn size(value: Rounded) -> String {
    if value.is_zero() {
        "0 B".to_owned()
    } else {
        format!("about {}", format_bytes(value.at_least()))
    }
}

/// An action as something that is planned.
pub(super) fn would(action: &str) -> String {
    let verb = match action {
        "register" => "be registered",
        "attach" => "be attached",
        "detach" => "be detached",
        "flush" => "be flushed",
        "put-back" => "get back the settings that a killed flush has changed",
        "make" => "be formatted as a cache device",
        "stop" => "be stopped",
        "unregister" => "be unregistered",
        "run" => "be started without its cache",
        "label" => "be labelled",
        "volume-create" => "get a volume",
        "volume-remove" => "be removed",
        "set" => "be set",
        other => other,
    };
    format!("would {verb}")
}

/// An action that was done.
pub(super) fn done(action: &str) -> String {
    match action {
        "register" => "registered",
        "attach" => "attached",
        "detach" => "detached",
        "flush" => "clean",
        "put-back" => "got back the settings that a killed flush had changed",
        "make" => "formatted as a cache device",
        "stop" => "stopped",
        "unregister" => "unregistered",
        "run" => "started without its cache",
        "label" => "labelled",
        "volume-create" => "volume made",
        "volume-remove" => "volume removed",
        "set" => "set",
        other => other,
    }
    .to_owned()
}

/// An action that the kernel was told of, and that it may still be at.
pub(super) fn begun(action: &str) -> String {
    match action {
        "detach" => "is being detached, once everything is written back".to_owned(),
        other => done(other),
    }
}

/// An action that was not needed.
pub(super) fn already(action: &str) -> String {
    match action {
        "register" => "registered already",
        "attach" => "attached already",
        "detach" => "not attached, nothing to do",
        "flush" => "clean already",
        "label" => "has this label already",
        "set" => "set already",
        other => other,
    }
    .to_owned()
}

/// A note in a sentence.
pub(super) fn note(note: &Note) -> String {
    match note {
        Note::AlreadySo => "nothing to do".to_owned(),
        Note::WritesBack { device, dirty_bytes } => {
            format!("{device}: {} of dirty data is written back first", size(*dirty_bytes))
        }
        Note::StaysDirty { device, dirty_bytes } => format!(
            "{device}: {} of dirty data stays on the cache, which the device needs from now on",
            size(*dirty_bytes)
        ),
        Note::NamesLostCache { device } => format!(
            "it ran without its cache, which its superblock still takes for current: start it with \
             `bcachectl run {device}` before that cache is seen again, also at the next boot; else \
             reads return old contents"
        ),
        Note::TurnsInconsistent => {
            "its state becomes \"inconsistent\": what its cache holds of it is no longer used"
                .to_owned()
        }
        Note::LosesDirtyData => {
            "the latest writes, which are only on its cache, are lost. Keep that \
                                 cache away from now on: wipe it (wipefs -a) before it is seen \
                                 again"
                .to_owned()
        }
        Note::DropsOldContents => {
            "it was started without its cache before; what that cache held of it is lost".to_owned()
        }
        Note::EndsAtLastClose { bcache, users } => format!(
            "{bcache} is in use ({}) and goes on until the last user closes it",
            users.join("; ")
        ),
        Note::VolumesStop { volumes } => format!(
            "flash-only volumes stop, and their data stays on the cache: {}",
            volumes.join(", ")
        ),
        Note::KeepsSuperblock { device } => format!(
            "/dev/{device} keeps its superblock, and is registered again when udev sees it; \
             `wipefs -a /dev/{device}` wipes it"
        ),
        Note::LosesVolume { bytes } => {
            format!("all data of the volume ({}) is lost", format_bytes(*bytes))
        }
    }
}

/// A refusal, and what to do.
pub(super) fn refusal(refusal: &Refusal) -> String {
    let advice = match refusal {
        Refusal::NoModule => Some("`modprobe bcache` loads it".to_owned()),
        Refusal::InUse { .. } => Some(
            "unmount it, or stop what uses it; `bcachectl stop --lazy` stops it nevertheless, at the \
             last close"
                .to_owned(),
        ),
        Refusal::CacheIsStale { backing, bcache } => Some(format!(
            "unmount {bcache}, then: bcachectl run {backing}. After that the cache may return: the \
             kernel drops its old contents"
        )),
        Refusal::DropsDirtyData { backing, .. } => Some(format!(
            "if what {backing} holds now is what counts, `bcachectl register` with \
             --lose-dirty-data; if not, keep the cache as it is: with {backing} stopped, `bcachectl \
             check` of both says how to get at its data"
        )),
        Refusal::WaitsForItsSet { set, .. } => Some(match set {
            Some(set) => format!(
                "register the cache of {set}, and it attaches by itself; to use another set, start \
                 it with `bcachectl run` first"
            ),
            None => "register its cache, and it attaches by itself".to_owned(),
        }),
        Refusal::WrongState { state: DeviceState::CacheLost, device, .. } => Some(format!(
            "its cache failed, and it went on: unmount it, then: bcachectl run {device}; then attach it"
        )),
        Refusal::WrongState {
            state: DeviceState::AttachedClean | DeviceState::AttachedDirty,
            ..
        } => Some("`bcachectl detach --wait` detaches it".to_owned()),
        Refusal::WrongState { state: DeviceState::Waiting, .. } => Some(
            "it waits for its cache: register the cache, or start it without one with `bcachectl run`"
                .to_owned(),
        ),
        Refusal::NotRegistered { device } => {
            Some(format!("`bcachectl register /dev/{device}` registers it"))
        }
        Refusal::BlockSize { device_bytes, .. } => Some(format!(
            "make the cache with --block {device_bytes}, or the backing device with larger blocks"
        )),
        Refusal::TakenForClean { device } => Some(format!(
            "`bcachectl detach --wait {device}` writes it back; attach it again after that"
        )),
        Refusal::Dirty { .. } => Some(
            "register its cache instead; to give up what is only there, add --lose-dirty-data"
                .to_owned(),
        ),
        Refusal::ReadOnly { .. } => {
            Some("`blockdev --setrw` makes it writable, where the disk allows it".to_owned())
        }
        Refusal::HasVolumes { .. } => Some(
            "copy them elsewhere and remove them with `bcachectl volume remove` first".to_owned(),
        ),
        _ => None,
    };
    match advice {
        Some(advice) => format!("{refusal}. {advice}"),
        None => refusal.to_string(),
    }
}
