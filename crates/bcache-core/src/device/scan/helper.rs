//! The process that reads devices for another one.
//!
//! It gets paths on standard input, each ended by a zero byte, and answers on standard output, in
//! whatever order the devices do. An answer is the index of the path (u32, little-endian), a tag, and
//! what belongs to the tag:
//!
//! | tag | meaning | then |
//! |---|---|---|
//! | 0 | the device is too short for a superblock | |
//! | 1 | zeroes | |
//! | 2 | the bytes where a superblock would be | 4096 bytes |
//! | 3 | opening failed | errno (i32) |
//! | 4 | reading failed | errno (i32) |
//! | 5 | something else failed | length (u32), text |

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::mpsc::{self, Receiver};
use std::thread;
use std::time::Duration;

use super::{Answer, Bytes, read, read_all};
use crate::device::{DeviceError, Operation};
use crate::layout::superblock::{SB_BYTES, SB_OFFSET_BYTES};

/// Longest text of an error.
const TEXT_BYTES_MAX: u32 = 1 << 16;

/// How often, and how long apart, it is looked whether the process is gone.
const GONE_TRIES: u32 = 10;
const GONE_PAUSE: Duration = Duration::from_millis(10);

/// How the helper process is started: a program that calls [`serve`].
#[derive(Clone, Debug)]
pub struct Helper {
    /// The program.
    pub program: PathBuf,
    /// What it is called with.
    pub arguments: Vec<OsString>,
}

impl Helper {
    /// The program that is running, called with `argument`, upon which it must call [`serve`].
    pub fn this_program(argument: &str) -> Self {
        Self { program: PathBuf::from("/proc/self/exe"), arguments: vec![argument.into()] }
    }

    /// Starts it: the process, its standard input and its standard output.
    pub(crate) fn spawn(&self) -> io::Result<(HelperProcess, ChildStdin, ChildStdout)> {
        // It may outlive this process: it must keep neither its terminal, its pipes nor its folder.
        let mut child = Command::new(&self.program)
            .args(&self.arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .current_dir("/")
            .spawn()?;
        let (stdin, stdout) = (child.stdin.take(), child.stdout.take());
        let process = HelperProcess { child };
        match (stdin, stdout) {
            (Some(stdin), Some(stdout)) => Ok((process, stdin, stdout)),
            _ => Err(io::ErrorKind::BrokenPipe.into()),
        }
    }

    /// Starts it on `paths`.
    pub(super) fn start(&self, paths: &[PathBuf]) -> io::Result<RunningHelper> {
        let (process, mut stdin, mut stdout) = self.spawn()?;
        let (answers, receiver) = mpsc::channel();
        let mut list = Vec::new();
        for path in paths {
            list.extend(std::path::absolute(path)?.as_os_str().as_bytes());
            list.push(0);
        }
        stdin.write_all(&list)?;
        drop(stdin);
        let paths = paths.to_vec();
        thread::Builder::new().spawn(move || {
            while let Ok(answer) = read_answer(&mut stdout, &paths) {
                if answers.send(answer).is_err() {
                    break;
                }
            }
        })?;
        Ok(RunningHelper { process, receiver })
    }
}

/// A helper's process. It is killed when this is dropped, and waits for its devices alone.
#[derive(Debug)]
pub(crate) struct HelperProcess {
    child: Child,
}

impl Drop for HelperProcess {
    fn drop(&mut self) {
        // One that has a thread in the kernel ends when the kernel lets go of it; init sees to it.
        let _ = self.child.kill();
        let _ = self.child.try_wait();
    }
}

/// A helper at work.
pub(super) struct RunningHelper {
    process: HelperProcess,
    receiver: Receiver<Answer>,
}

impl RunningHelper {
    pub(super) fn answers(&self) -> &Receiver<Answer> {
        &self.receiver
    }

    /// Whether the process is gone.
    pub(super) fn has_ended(&mut self) -> bool {
        // What it wrote last may be read before it can be waited for.
        (0..GONE_TRIES).any(|_| {
            let gone = matches!(self.process.child.try_wait(), Ok(Some(_)) | Err(_));
            if !gone {
                thread::sleep(GONE_PAUSE);
            }
            gone
        })
    }
}

/// What the helper process does: reads the superblocks of the devices that `input` names and answers
/// on `output`, until all have answered or nobody reads the answers.
pub fn serve(mut input: impl Read, mut output: impl Write) -> io::Result<()> {
    let mut list = Vec::new();
    input.read_to_end(&mut list)?;
    let list = list.strip_suffix(&[0]).unwrap_or(&list);
    if list.is_empty() {
        return Ok(());
    }
    let paths = list.split(|byte| *byte == 0).map(|path| PathBuf::from(OsStr::from_bytes(path)));
    for (index, answer) in read_all(paths.collect(), read) {
        let index = u32::try_from(index).map_err(io::Error::other)?;
        output.write_all(&encode(index, &answer))?;
        output.flush()?;
    }
    Ok(())
}

fn encode(index: u32, answer: &Result<Bytes, DeviceError>) -> Vec<u8> {
    let mut out = index.to_le_bytes().to_vec();
    match answer {
        Ok(None) => out.push(0),
        Ok(Some(bytes)) if bytes.iter().all(|byte| *byte == 0) => out.push(1),
        Ok(Some(bytes)) => {
            out.push(2);
            out.extend(bytes);
        }
        Err(error) => encode_error(error, &mut out),
    }
    out
}

fn encode_error(error: &DeviceError, out: &mut Vec<u8>) {
    let errno = match error {
        DeviceError::Open { source, .. } => Some((3, source.raw_os_error())),
        DeviceError::Io { source, .. } => Some((4, source.raw_os_error())),
        _ => None,
    };
    if let Some((tag, Some(errno))) = errno {
        out.push(tag);
        out.extend(errno.to_le_bytes());
        return;
    }
    let text = error.to_string();
    let text = text.as_bytes();
    let text = text.get(..TEXT_BYTES_MAX as usize).unwrap_or(text);
    out.push(5);
    out.extend(u32::try_from(text.len()).unwrap_or(0).to_le_bytes());
    out.extend(text);
}

fn read_answer(input: &mut impl Read, paths: &[PathBuf]) -> io::Result<Answer> {
    let index = u32::from_le_bytes(take(input)?) as usize;
    let path = || paths.get(index).map_or_else(PathBuf::new, |path| Path::to_owned(path));
    let [tag] = take(input)?;
    let answer = match tag {
        0 => Ok(None),
        1 => Ok(Some(vec![0; SB_BYTES])),
        2 => {
            let mut bytes = vec![0; SB_BYTES];
            input.read_exact(&mut bytes)?;
            Ok(Some(bytes))
        }
        3 => {
            let source = io::Error::from_raw_os_error(i32::from_le_bytes(take(input)?));
            Err(DeviceError::Open { path: path(), source })
        }
        4 => {
            let source = io::Error::from_raw_os_error(i32::from_le_bytes(take(input)?));
            let (offset, len) = (SB_OFFSET_BYTES, SB_BYTES as u64);
            Err(DeviceError::Io { path: path(), operation: Operation::Read, offset, len, source })
        }
        5 => {
            let len = u32::from_le_bytes(take(input)?).min(TEXT_BYTES_MAX);
            let mut text = vec![0; len as usize];
            input.read_exact(&mut text)?;
            let source = io::Error::other(String::from_utf8_lossy(&text).into_owned());
            Err(DeviceError::Open { path: path(), source })
        }
        _ => return Err(io::ErrorKind::InvalidData.into()),
    };
    Ok((index, answer))
}

fn take<const N: usize>(input: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    input.read_exact(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::super::collect;
    use super::*;
    use crate::device::SuperblockArea;
    use crate::device::sysfs::MachineDevice;
    use crate::units::Sectors;

    fn round_trip(answer: &Result<Bytes, DeviceError>) -> Result<Bytes, DeviceError> {
        let bytes = encode(1, answer);
        let mut input = bytes.as_slice();
        let paths = [PathBuf::from("/dev/a"), PathBuf::from("/dev/b")];
        let (index, answer) = read_answer(&mut input, &paths).unwrap();
        assert_eq!((index, input.len()), (1, 0));
        answer
    }

    #[test]
    fn answers_come_through_as_they_are() {
        let mut superblock = vec![0; SB_BYTES];
        superblock[4095] = 1;
        for bytes in [None, Some(vec![0; SB_BYTES]), Some(superblock)] {
            assert_eq!(round_trip(&Ok(bytes.clone())).unwrap(), bytes);
        }
        let path = PathBuf::from("/dev/b");
        let errno = || io::Error::from_raw_os_error(nix::libc::EACCES);
        for error in [
            DeviceError::Open { path: path.clone(), source: errno() },
            DeviceError::Io {
                path: path.clone(),
                operation: Operation::Read,
                offset: SB_OFFSET_BYTES,
                len: SB_BYTES as u64,
                source: errno(),
            },
        ] {
            let text = error.to_string();
            let back = round_trip(&Err(error)).unwrap_err();
            assert_eq!(back.to_string(), text);
            assert!(back.is_permission_denied());
        }
        let other = DeviceError::NotADevice { path };
        let back = round_trip(&Err(other)).unwrap_err();
        let DeviceError::Open { source, .. } = back else { panic!("{back:?}") };
        assert!(source.to_string().contains("neither a block device"), "{source}");
    }

    #[test]
    fn devices_are_served_in_any_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str, len: usize| {
            let path = dir.path().join(name);
            std::fs::write(&path, vec![7; len]).unwrap();
            path
        };
        let paths = [path("long", 1 << 20), path("short", 8191), dir.path().join("none")];
        let mut list = Vec::new();
        for path in &paths {
            list.extend(path.as_os_str().as_bytes());
            list.push(0);
        }
        let mut output = Vec::new();
        serve(list.as_slice(), &mut output).unwrap();
        let mut input = output.as_slice();
        let mut answers = [None, None, None];
        for _ in 0..3 {
            let (index, answer) = read_answer(&mut input, &paths).unwrap();
            answers[index] = Some(answer);
        }
        assert!(input.is_empty());
        let [Some(Ok(Some(bytes))), Some(Ok(None)), Some(Err(DeviceError::Open { .. }))] = answers
        else {
            panic!("{answers:?}")
        };
        assert_eq!(bytes, vec![7; SB_BYTES]);
        serve(&[][..], Vec::new()).unwrap();
    }

    fn device(name: &str) -> MachineDevice {
        MachineDevice {
            name: name.to_owned(),
            path: Path::new("/dev").join(name),
            number: None,
            size: Sectors(4096),
            partition_of: None,
            role: None,
        }
    }

    /// A helper that answers for the second device and then sleeps, as one does whose thread is in
    /// a dead device. It keeps nobody waiting.
    #[test]
    fn a_helper_that_hangs_is_left_behind() {
        let script = "cat >/dev/null; printf '\\001\\000\\000\\000\\001'; exec sleep 1000";
        let helper = Helper {
            program: PathBuf::from("/bin/sh"),
            arguments: vec!["-c".into(), script.into()],
        };
        let devices = vec![device("dead"), device("alive")];
        let paths: Vec<_> = devices.iter().map(|device| device.path.clone()).collect();
        let running = helper.start(&paths).unwrap();
        // The one answer is there before the time starts, however slow the machine is.
        let first = running.receiver.recv().unwrap();
        let (again, receiver) = mpsc::channel();
        again.send(first).unwrap();
        let scan = collect(devices, &receiver, Duration::from_millis(50));
        assert_eq!(scan.not_answering[0].device.name, "dead");
        assert_eq!(scan.devices[0].device.name, "alive");
        assert_eq!(scan.devices[0].area, SuperblockArea::Blank);
        drop(running);
    }

    #[test]
    fn a_helper_that_dies_leaves_devices_without_an_answer() {
        let helper = Helper { program: PathBuf::from("/bin/false"), arguments: Vec::new() };
        let devices = vec![device("a"), device("b")];
        let paths: Vec<_> = devices.iter().map(|device| device.path.clone()).collect();
        // It may be gone before the list is written.
        if let Ok(running) = helper.start(&paths) {
            let scan = collect(devices, running.answers(), Duration::from_secs(600));
            assert_eq!(scan.not_answering.len(), 2);
        }
        let missing = Helper { program: PathBuf::from("/nonexistent"), arguments: Vec::new() };
        assert!(missing.start(&paths).is_err());
    }
}
