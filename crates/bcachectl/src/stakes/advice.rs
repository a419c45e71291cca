//! Advice in words, each with the command that carries it out.

use std::fs;
use std::iter;
use std::path::{Path, PathBuf};

use bcache_cli::exit::{REFUSED, device_error};
use bcache_core::device::{DeviceError, Operation};
use bcache_core::inspect::{Advice, Danger};
use serde::Serialize;

use super::size;
use crate::exit::{CheckStatus, ExitError};
use crate::render::device::shell_quoted;

/// One thing to do, or not to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct AdviceReport {
    /// Its code: stable, for scripts.
    pub code: &'static str,
    /// What to do, and why.
    pub text: String,
    /// The command that does it, where there is one.
    pub command: Option<String>,
}

impl AdviceReport {
    /// Text and command as one sentence.
    pub fn sentence(&self) -> String {
        match &self.command {
            Some(command) => format!("{}: {command}", self.text.trim_end_matches('.')),
            None => self.text.clone(),
        }
    }
}

/// What to do where a device does not give what is on it. Once something was written, what was there before
/// may be what was not wanted: the error says how the device stands, and there is nothing to add.
pub fn about_unread(error: &anyhow::Error) -> Vec<AdviceReport> {
    let status = error.downcast_ref::<ExitError>().map_or(REFUSED, |exit| exit.status);
    let is_untouched = [REFUSED, CheckStatus::Failed as u8].contains(&status);
    match device_error(error) {
        Some(DeviceError::Io { path, operation: Operation::Read, .. }) if is_untouched => {
            advice(&[Advice::DoNotWipe, Advice::CopyDevice { device: path.clone() }])
        }
        _ => Vec::new(),
    }
}

/// The same in sentences.
pub fn about_error(error: &anyhow::Error) -> Vec<String> {
    about_unread(error).iter().map(AdviceReport::sentence).collect()
}

/// Advice in words, in its order.
pub fn advice(advice: &[Advice]) -> Vec<AdviceReport> {
    advice.iter().map(report).collect()
}

/// Whether this program has a command of that name.
fn has_command(name: &str) -> bool {
    crate::cli::command().find_subcommand(name).is_some()
}

fn report(advice: &Advice) -> AdviceReport {
    let (text, command) = words(advice);
    AdviceReport { code: advice.code(), text, command }
}

fn words(advice: &Advice) -> (String, Option<String>) {
    let plain = |text: &str| (text.to_owned(), None);
    match advice {
        Advice::SafeToWipe => plain("It is safe to wipe this cache."),
        Advice::StopFirst => plain(
            "It is not safe to wipe now, because the device is in use and may become dirty at any \
             time: stop it first.",
        ),
        Advice::DoNotRegister { why } => plain(danger(*why)),
        Advice::DoNotWipe => {
            plain("Do NOT wipe or format this device: what exists only on it would be lost.")
        }
        Advice::KeepOldSet => plain(
            "Do NOT wipe or format this device, and do not register it: a backing device lacks data of \
             an older set, and what is left of that set on this device may be the only copy.",
        ),
        Advice::GrowBack { needed } => (
            format!(
                "The partition is smaller than the cache in it: make it {} sectors ({}) long again, \
                 at the same start. Nothing else needs to be changed.",
                needed.0,
                size(needed.0)
            ),
            None,
        ),
        Advice::GetWholeDevice { present, needed } => (
            format!(
                "Only {} of {} are here: look at the whole device.",
                size(present.0),
                size(needed.0)
            ),
            None,
        ),
        Advice::CopyDevice { device } => (
            "Before anything else, copy the whole device to another one or to a file (what cannot be read is \
             zeroes there; MAP lists it)"
                .to_owned(),
            Some(format!("ddrescue {} COPY MAP", shell_quoted(device))),
        ),
        Advice::TakeCopyAway { first, second } => (
            format!(
                "{} and {} have the same UUID: one is a copy of the other. Take the copy away before \
                 anything is registered or written; the kernel attaches the one that it meets first.",
                first.display(),
                second.display()
            ),
            None,
        ),
        Advice::UncoverOlderSet { device, at } => (
            format!(
                "Behind the superblock of {} is a cache set, with its journal at sector {}. Put zeroes over the \
                 superblock of the copy, and check the copy with the backing devices of that set",
                device.display(),
                at.0
            ),
            Some("dd if=/dev/zero of=COPY bs=4096 seek=1 count=1 conv=notrunc".to_owned()),
        ),
        Advice::RegisterAndDetach { cache, backing } => register_and_detach(cache, backing),
        Advice::WriteBackOffline { cache, backing } => offline(
            "writeback",
            "Or write the dirty data back without the kernel",
            &format!("{} {}", shell_quoted(cache), quoted(backing)),
        ),
        Advice::WriteBackRanAlone { cache, backing, slot } => (
            "Only if nothing was written to the backing device since it was used with this cache (it \
             was not mounted): write the dirty data back to it, and take it off the cache"
                .to_owned(),
            Some(format!(
                "bcachectl writeback --detach --ran-alone --volume {slot} {} {}",
                shell_quoted(cache),
                shell_quoted(backing)
            )),
        ),
        Advice::Export { cache, backing, slot, dirty_only, data_offset, likely } => {
            let backing = backing.as_ref().map(|path| format!("{} ", shell_quoted(path)));
            let save = "Save what is readable of the volume to a file";
            let (only, text) = match (dirty_only, &backing) {
                (false, _) => (String::new(), save.to_owned()),
                (true, Some(_)) => (" --dirty-only".to_owned(), save.to_owned()),
                (true, None) if data_offset.is_some() => {
                    let sectors = data_offset.map_or(0, |it| it.0);
                    (format!(" --dirty-only --data-offset {sectors}"), save.to_owned())
                }
                (true, None) => (
                    " --dirty-only --data-offset 16".to_owned(),
                    format!(
                        "{save} (16 is the data offset of its backing device, unless that was made \
                         with another)"
                    ),
                ),
            };
            let likely = if *likely { " --likely" } else { "" };
            offline(
                "export",
                &text,
                &format!(
                    "{} {}--volume {slot}{only}{likely} -o FILE",
                    shell_quoted(cache),
                    backing.unwrap_or_default()
                ),
            )
        }
        Advice::Repair { devices } => offline(
            "repair",
            "See what can be mended, and what that would lose",
            &format!("--dry-run {}", quoted(devices)),
        ),
        Advice::CopyFlashOnly { slot } => (
            format!(
                "Volume {slot} is flash-only: wiping the cache destroys it. Register the cache and \
                 copy the volume elsewhere first."
            ),
            None,
        ),
        Advice::BringBacking { slot, uuid } => (
            format!(
                "The dirty data of volume {slot} belongs to the backing device with UUID {uuid}: \
                 bring that device and name it here."
            ),
            None,
        ),
        Advice::BringCache { set_uuid } => (
            format!(
                "Look for the cache device of set {set_uuid}, and do not change it: it holds what \
                 this device lacks."
            ),
            None,
        ),
        Advice::ClearDirtyState { cache, backing } => {
            let (_, command) = register_and_detach(cache, std::slice::from_ref(backing));
            (
                format!(
                    "The superblock of {} still says dirty, so that the kernel waits for this \
                     cache; register both once, and detach",
                    backing.display()
                ),
                command,
            )
        }
        Advice::DoNotRunAlone { lacks_data } => (
            format!(
                "Do not run or mount this device without its cache: it {}, and what is written to it now is \
                 lost when the cache comes back.",
                if *lacks_data { "lacks data" } else { "may lack data" }
            ),
            None,
        ),
        Advice::CheckContents => plain(
            "Do not trust what is on this device before its file system was checked: it may lack \
             data that only its cache had.",
        ),
        Advice::BlockSize { set, backing } => (
            format!(
                "The kernel does not attach this device: its blocks are of {} bytes, those of the \
                 set of {}.",
                backing.bytes(),
                set.bytes()
            ),
            None,
        ),
        Advice::NameBacking => plain(
            "Name the backing devices too: they may settle what this cache alone cannot tell.",
        ),
    }
}

const fn danger(why: Danger) -> &'static str {
    match why {
        Danger::Initialises => {
            "Do NOT register this device: its superblock does not say that it is in use, so the \
             kernel would start it as an empty cache, and all data on it would be lost."
        }
        Danger::CoversSet => {
            "Do NOT register a device that has a cache set behind the superblock of another: the set would be \
             overwritten."
        }
        Danger::OlderState => {
            "Do NOT register this device: the kernel would go back to an older state, and lose what \
             was written after it."
        }
        Danger::NoTable => {
            "Do NOT register this device: without its uuid table the kernel does not find the owners \
             of the dirty data, and starts garbage as flash-only volumes."
        }
        Danger::LostKeys => {
            "Do NOT register this device: the kernel does not notice what is wrong with its btree, and \
             would return older data."
        }
        Danger::StaleKeys => {
            "Do NOT register this device: keys of dirty data do not fit the gens of their buckets, so the \
             kernel would drop them and return older data."
        }
        Danger::Hangs => {
            "Do NOT register this device: the kernel does not know its replacement policy, and its \
             allocator thread would spin for ever."
        }
        Danger::OtherData => {
            "Do NOT register the cache and the backing device together: what the cache holds clean is \
             not what the backing device holds. One of them is an old copy, or another device."
        }
        Danger::RegisteredSince => {
            "Do NOT register the cache and the backing device together: the backing device was registered \
             after the cache was last there. If the cache is an old copy, old data takes the place of newer \
             data."
        }
        Danger::DropsDirty => {
            "Do NOT register the cache and the backing device together: the backing device was run \
             alone (state inconsistent), so the kernel would drop the dirty data as it attaches."
        }
        Danger::NotReattached => {
            "Do NOT register or attach the backing device to this cache: its superblock no longer \
             says that it belongs there, so the kernel would give up the dirty data and keep the \
             older contents."
        }
        Danger::NoSlot => {
            "Do NOT register the cache and the backing device together: the uuid table does not have the \
             device, so the kernel may take what is cached of another volume for its data."
        }
        Danger::DataOffset => {
            "Do NOT register the backing device: the cache holds data of it from before the data offset \
             in its superblock, so the kernel would show all of its data in the wrong place."
        }
    }
}

/// A command of this program that works on devices that no kernel runs.
fn offline(command: &str, text: &str, arguments: &str) -> (String, Option<String>) {
    if has_command(command) {
        (text.to_owned(), Some(format!("bcachectl {command} {arguments}")))
    } else {
        ("Keep the device as it is: it holds the only copy.".to_owned(), None)
    }
}

fn quoted(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| shell_quoted(path)).collect::<Vec<_>>().join(" ")
}

/// Registers `cache` and `backing`, and detaches the latter, which writes everything back.
fn register_and_detach(cache: &Path, backing: &[PathBuf]) -> (String, Option<String>) {
    let is_file = |path: &Path| fs::metadata(path).is_ok_and(|it| it.is_file());
    if is_file(cache) || backing.iter().any(|path| is_file(path)) {
        return (
            "Write the dirty data back first: make loop devices of the images, register all of \
             them with `bcachectl register`, and detach each backing device with `bcachectl detach \
             --wait`."
                .to_owned(),
            None,
        );
    }
    let text = "Write the dirty data back first: register the cache and its backing devices, then \
                detach; the data is written back as the kernel detaches";
    let devices: Vec<String> =
        backing.iter().map(PathBuf::as_path).chain([cache]).map(shell_quoted).collect();
    let register = format!("bcachectl register {}", devices.join(" "));
    let detach =
        backing.iter().map(|path| format!("bcachectl detach --wait {}", shell_quoted(path)));
    (text.to_owned(), Some(iter::once(register).chain(detach).collect::<Vec<_>>().join(" && ")))
}

#[cfg(test)]
mod tests {
    use std::io;

    use bcache_core::inspect::InspectError;
    use bcache_core::ops::repair::RepairError;

    use super::*;
    use crate::exit::Failure;

    fn failed(operation: Operation) -> DeviceError {
        let source = io::Error::from_raw_os_error(nix::libc::EIO);
        DeviceError::Io { path: "/dev/a b".into(), operation, offset: 4096, len: 4096, source }
    }

    #[test]
    fn what_cannot_be_read_is_copied_before_anything_else() {
        let errors: [anyhow::Error; 3] = [
            InspectError::from(failed(Operation::Read)).into(),
            RepairError::from(failed(Operation::Read)).into(),
            ExitError::wrap(
                CheckStatus::Failed,
                anyhow::Error::from(InspectError::from(failed(Operation::Read)))
                    .context("/dev/a b"),
            ),
        ];
        for error in errors {
            let [keep, copy] = &about_error(&error)[..] else { panic!("{error:#}") };
            assert!(keep.starts_with("Do NOT wipe or format"), "{keep}");
            assert!(copy.ends_with(": ddrescue '/dev/a b' COPY MAP"), "{copy}");
        }
        assert!(about_error(&InspectError::from(failed(Operation::Write)).into()).is_empty());
        assert!(about_error(&anyhow::anyhow!("no such device")).is_empty());
        // As where what was formatted cannot be read back.
        for written in [Failure::Partial, Failure::Unproven, Failure::Undefined] {
            let error = ExitError::wrap(written, InspectError::from(failed(Operation::Read)));
            assert!(about_error(&error).is_empty());
        }
    }
}
