//! All block devices of the machine at once, none of which can keep the others waiting.
//!
//! A device may not answer: a suspended device-mapper device, a disk behind a connection that
//! dropped. Whoever reads it, or opens it, sleeps in the kernel and cannot even be killed. So each
//! device is read in a thread of its own, and the threads belong to a [`Helper`] process: a process
//! with such a thread cannot end, and its parent could not either if the thread were its own.

mod helper;
pub(crate) mod threads;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::sysfs::{BlockDir, MachineDevice, Root, devices_of_the_machine};
use super::{AlignedBuf, DeviceError, ReadDevice, SuperblockArea, file};
use crate::layout::superblock::{SB_BYTES, SB_OFFSET_BYTES};

pub(crate) use helper::HelperProcess;
pub use helper::{Helper, serve};

/// How long to wait for the next answer before what is left counts as not answering.
pub const QUIET_DEFAULT: Duration = Duration::from_secs(3);

/// What was found out about the machine's block devices. Each is in one of the lists; those that went
/// away meanwhile are in none.
#[derive(Debug, Default)]
pub struct Scan {
    /// Those that were read, in order of name.
    pub devices: Vec<Scanned>,
    /// Those that could not be read.
    pub unreadable: Vec<Unreadable>,
    /// Those that did not answer.
    pub not_answering: Vec<NotAnswering>,
}

impl Scan {
    /// Whether devices could not be read for want of a right that root has.
    pub fn lacks_permission(&self) -> bool {
        self.unreadable.iter().any(Unreadable::is_permission)
    }

    /// Whether every device of the machine was read.
    pub fn is_complete(&self) -> bool {
        self.unreadable.is_empty() && self.not_answering.is_empty()
    }
}

/// A device that was read.
#[derive(Clone, Debug)]
pub struct Scanned {
    /// The device.
    pub device: MachineDevice,
    /// What lies where bcache's superblock goes.
    pub area: SuperblockArea,
}

/// A device that could not be read.
#[derive(Debug)]
pub struct Unreadable {
    /// The device.
    pub device: MachineDevice,
    /// Why.
    pub error: DeviceError,
}

impl Unreadable {
    /// Whether it could be read with the rights of root.
    pub fn is_permission(&self) -> bool {
        self.error.is_permission_denied()
    }
}

/// A device that did not answer in time. Opening it would block.
#[derive(Clone, Debug)]
pub struct NotAnswering {
    /// The device.
    pub device: MachineDevice,
    /// How long it was waited for.
    pub waited: Duration,
}

/// Reads the superblock of every block device of the machine that can hold anything.
///
/// Returns as soon as all have answered, or when none has for the time `quiet`. Without a helper, or
/// where it cannot be started, the threads are this process's own: it cannot end before a device
/// answers that was left waiting.
///
/// # Errors
///
/// When the kernel does not list its devices.
pub fn scan(root: &Root, helper: Option<&Helper>, quiet: Duration) -> io::Result<Scan> {
    let devices = devices_of_the_machine(root)?;
    let paths: Vec<_> = devices.iter().map(|device| device.path.clone()).collect();
    let with_helper = helper.and_then(|helper| {
        let mut running = helper.start(&paths).ok()?;
        let scan = collect(devices.clone(), running.answers(), quiet);
        // One that ended without all answers was no helper, or it was killed.
        (scan.not_answering.is_empty() || !running.has_ended()).then_some(scan)
    });
    let mut scan = with_helper.unwrap_or_else(|| collect(devices, &read_all(paths, read), quiet));
    scan.unreadable.retain(|it| !is_gone(root, &it.device));
    scan.not_answering.retain(|it| !is_gone(root, &it.device));
    Ok(scan)
}

/// Reads all of `paths` in the background.
fn read_all(
    paths: Vec<PathBuf>,
    read: impl Fn(&Path) -> Result<Bytes, DeviceError> + Send + Sync + 'static,
) -> std::sync::mpsc::Receiver<Answer> {
    threads::answer_all(paths, Arc::new(move |path: &PathBuf| read(path)))
}

/// Whether a device went away after it was listed: a loop device that was detached, a stick that was
/// pulled out.
fn is_gone(root: &Root, device: &MachineDevice) -> bool {
    let now = BlockDir::by_name(root, &device.name).and_then(|device| device.size());
    now.unwrap_or_default().0 == 0
}

/// The bytes where a superblock would be; `None` on a device that ends before.
type Bytes = Option<Vec<u8>>;

/// What became of the device with this index.
type Answer = (usize, Result<Bytes, DeviceError>);

fn read(path: &Path) -> Result<Bytes, DeviceError> {
    let device = file::open_read(path)?;
    if device.info().size_bytes < SB_OFFSET_BYTES + SB_BYTES as u64 {
        return Ok(None);
    }
    let mut bytes = AlignedBuf::zeroed(SB_BYTES);
    device.read_at(SB_OFFSET_BYTES, &mut bytes)?;
    Ok(Some(bytes.to_vec()))
}

fn collect(
    devices: Vec<MachineDevice>,
    answers: &std::sync::mpsc::Receiver<Answer>,
    quiet: Duration,
) -> Scan {
    let start = Instant::now();
    let mut answered: Vec<Option<Result<Bytes, DeviceError>>> =
        devices.iter().map(|_| None).collect();
    let mut left = devices.len();
    while left > 0 {
        let Ok((index, answer)) = answers.recv_timeout(quiet) else { break };
        if let Some(slot) = answered.get_mut(index).filter(|slot| slot.is_none()) {
            *slot = Some(answer);
            left -= 1;
        }
    }
    let mut scan = Scan::default();
    for (device, answer) in devices.into_iter().zip(answered) {
        match answer {
            Some(Ok(bytes)) => {
                let area = SuperblockArea::from_bytes(&bytes.unwrap_or_default());
                scan.devices.push(Scanned { device, area });
            }
            Some(Err(error)) => scan.unreadable.push(Unreadable { device, error }),
            None => scan.not_answering.push(NotAnswering { device, waited: start.elapsed() }),
        }
    }
    scan
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::super::sysfs::fake::Tree;
    use super::*;
    use crate::device::Operation;

    fn machine(count: u32) -> Vec<MachineDevice> {
        let tree = Tree::new();
        for index in 0..count {
            tree.block(&format!("sd{index}"), &format!("8:{index}"), 4096);
        }
        devices_of_the_machine(&tree.root()).unwrap()
    }

    fn names<'a>(devices: impl Iterator<Item = &'a MachineDevice>) -> Vec<&'a str> {
        devices.map(|device| device.name.as_str()).collect()
    }

    /// The slow device blocks until the test ends.
    #[test]
    fn a_device_that_does_not_answer_is_named_and_holds_up_no_other() {
        let devices = machine(200);
        let (release, blocked) = mpsc::channel::<()>();
        let blocked = std::sync::Mutex::new(blocked);
        let read = move |path: &Path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            match name {
                "sd7" => {
                    let _ = blocked.lock().unwrap().recv();
                    Ok(None)
                }
                "sd9" => Err(DeviceError::Open {
                    path: path.to_owned(),
                    source: io::Error::from_raw_os_error(nix::libc::EACCES),
                }),
                _ => Ok(Some(vec![0; SB_BYTES])),
            }
        };
        let paths: Vec<PathBuf> = devices.iter().map(|device| device.path.clone()).collect();
        let answers = read_all(paths, read);
        let scan = collect(devices, &answers, Duration::from_secs(2));
        assert_eq!(names(scan.not_answering.iter().map(|it| &it.device)), ["sd7"]);
        assert_eq!(names(scan.unreadable.iter().map(|it| &it.device)), ["sd9"]);
        assert_eq!(scan.devices.len(), 198);
        assert!(scan.devices.iter().all(|it| it.area == SuperblockArea::Blank));
        assert!(scan.lacks_permission() && !scan.is_complete());
        assert!(scan.not_answering[0].waited >= Duration::from_secs(2));
        drop(release);
    }

    /// As many as there are threads at a time, and more, do not answer.
    #[test]
    fn many_dead_devices_do_not_starve_the_others() {
        let devices = machine(300);
        let (release, blocked) = mpsc::channel::<()>();
        let blocked = std::sync::Mutex::new(blocked);
        let read = move |path: &Path| {
            let name = path.file_name().unwrap().to_str().unwrap();
            let number: u32 = name.trim_start_matches("sd").parse().unwrap();
            if number < 100 {
                let _ = blocked.lock().unwrap().recv();
            }
            Ok(None)
        };
        let paths: Vec<PathBuf> = devices.iter().map(|device| device.path.clone()).collect();
        let answers = read_all(paths, read);
        let scan = collect(devices, &answers, Duration::from_secs(2));
        assert_eq!((scan.devices.len(), scan.not_answering.len()), (200, 100));
        drop(release);
    }

    #[test]
    fn other_errors_are_no_lack_of_permission() {
        let device = machine(1).remove(0);
        let path = device.path.clone();
        for (errno, is_permission) in
            [(nix::libc::EIO, false), (nix::libc::EACCES, true), (nix::libc::EPERM, true)]
        {
            let source = io::Error::from_raw_os_error(errno);
            let error = DeviceError::Io {
                path: path.clone(),
                operation: Operation::Read,
                offset: 4096,
                len: 4096,
                source,
            };
            let unreadable = Unreadable { device: device.clone(), error };
            assert_eq!(unreadable.is_permission(), is_permission);
        }
    }

    /// A program that is no helper does not make devices look dead.
    #[test]
    fn without_a_working_helper_devices_are_read_all_the_same() {
        let tree = Tree::new();
        // No such node: reading fails, which is an answer.
        tree.block("bcachetest", "8:0", 4096);
        for program in ["/bin/false", "/nonexistent"] {
            let helper = Helper { program: PathBuf::from(program), arguments: Vec::new() };
            let scan = scan(&tree.root(), Some(&helper), Duration::from_secs(60)).unwrap();
            assert_eq!(names(scan.unreadable.iter().map(|it| &it.device)), ["bcachetest"]);
            assert!(scan.not_answering.is_empty() && !scan.lacks_permission());
        }
    }

    #[test]
    fn a_machine_without_sysfs_is_an_error_and_an_empty_one_is_none() {
        let empty = tempfile::tempdir().unwrap();
        assert!(scan(&Root::at(empty.path()), None, QUIET_DEFAULT).is_err());
        let none = scan(&Tree::new().root(), None, QUIET_DEFAULT).unwrap();
        assert!(none.is_complete() && none.devices.is_empty());
    }
}
