//! The kernel's block trace of a device (`linux/blktrace_api.h`): set up by ioctls, read from relay
//! files in debugfs, one for each CPU.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use super::ioctl;

/// Size of one of the kernel's buffers.
const BUFFER_BYTES: u32 = 512 << 10;
/// Buffers for each CPU.
const BUFFERS: u32 = 8;
/// Events of requests as they are queued (`BLK_TC_QUEUE`).
const QUEUE: u16 = 1 << 4;

/// Why a device cannot be traced.
#[derive(Debug, thiserror::Error)]
pub enum BlockTraceError {
    /// It cannot be opened.
    #[error("cannot open {}", path.display())]
    Open {
        /// The device.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// debugfs is not mounted, or locked down.
    #[error("debugfs is not there ({}): it is not mounted, or locked down", path.display())]
    NoDebugfs {
        /// Where it was looked for.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// The kernel takes no trace of the device.
    #[error("the kernel does not trace {}", path.display())]
    Setup {
        /// The device.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Somebody else traces it.
    #[error("{} is being traced already", path.display())]
    Busy {
        /// The device.
        path: PathBuf,
    },
    /// The relay files cannot be read.
    #[error("cannot read the trace of {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// A trace that is being taken. It ends when this is dropped.
#[derive(Debug)]
pub struct BlockTrace {
    device: File,
    relays: Vec<(PathBuf, File)>,
    dropped: PathBuf,
    started: bool,
}

impl BlockTrace {
    /// Begins a trace of the requests that are queued on a device. `debugfs` is `/sys/kernel/debug`.
    ///
    /// # Errors
    /// [`BlockTraceError`]; nothing is left set up then.
    pub fn start(path: &Path, debugfs: &Path) -> Result<Self, BlockTraceError> {
        let blocks = debugfs.join("block");
        // With lockdown, files cannot be opened; without the mount, the folder is not there.
        std::fs::read_dir(&blocks)
            .map_err(|source| BlockTraceError::NoDebugfs { path: blocks.clone(), source })?;
        let device = std::fs::OpenOptions::new()
            .read(true)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open(path)
            .map_err(|source| BlockTraceError::Open { path: path.to_owned(), source })?;
        let name =
            ioctl::blktrace_setup(&device, QUEUE, BUFFER_BYTES, BUFFERS).map_err(|source| {
                match source.raw_os_error() {
                    Some(nix::libc::EBUSY) => BlockTraceError::Busy { path: path.to_owned() },
                    _ => BlockTraceError::Setup { path: path.to_owned(), source },
                }
            })?;
        let folder = blocks.join(name);
        let mut trace =
            Self { device, relays: Vec::new(), dropped: folder.join("dropped"), started: false };
        for cpu in 0.. {
            let relay = folder.join(format!("trace{cpu}"));
            if cpu > 0 && !relay.exists() {
                break;
            }
            let file = std::fs::OpenOptions::new()
                .read(true)
                .custom_flags(nix::libc::O_NONBLOCK)
                .open(&relay)
                .map_err(|source| BlockTraceError::NoDebugfs { path: relay.clone(), source })?;
            trace.relays.push((relay, file));
        }
        ioctl::blktrace_start(&trace.device)
            .map_err(|source| BlockTraceError::Setup { path: path.to_owned(), source })?;
        trace.started = true;
        Ok(trace)
    }

    /// CPUs that have a file of their own.
    pub fn cpus(&self) -> usize {
        self.relays.len()
    }

    /// What a CPU has recorded since the last call, whole sub-buffers or, after
    /// [`stop`](Self::stop), all the rest; nothing is waited for.
    ///
    /// # Errors
    /// [`BlockTraceError::Read`].
    pub fn read(&mut self, cpu: usize, into: &mut Vec<u8>) -> Result<(), BlockTraceError> {
        let Some((path, file)) = self.relays.get_mut(cpu) else { return Ok(()) };
        let mut buffer = vec![0; 64 << 10];
        loop {
            match file.read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(read) => into.extend_from_slice(buffer.get(..read).unwrap_or_default()),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(BlockTraceError::Read { path: path.clone(), source }),
            }
        }
    }

    /// Ends recording; what is left can still be read.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn stop(&mut self) -> io::Result<()> {
        if self.started {
            self.started = false;
            ioctl::blktrace_stop(&self.device)?;
        }
        Ok(())
    }

    /// Events that the kernel dropped because they were not read in time.
    pub fn dropped(&self) -> u64 {
        std::fs::read_to_string(&self.dropped)
            .ok()
            .and_then(|text| text.trim().parse().ok())
            .unwrap_or(0)
    }
}

impl Drop for BlockTrace {
    fn drop(&mut self) {
        let _ = self.stop();
        let _ = ioctl::blktrace_teardown(&self.device);
    }
}
