//! `bcachectl serve`: a volume, read through its cache, for NBD clients on a Unix socket.

use std::io::{self, Read, Write};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use bcache_core::ops::export::read_range;
use nix::sys::stat::{Mode, umask};

use crate::cli::ServeArgs;
use crate::commands::source::{Lenience, Volume, with_volume};
use crate::{interrupt, nbd};

/// How often it is looked whether to stop.
const TICK: Duration = Duration::from_millis(100);

/// Runs `bcachectl serve`.
pub fn run(args: &ServeArgs) -> Result<ExitCode> {
    if std::fs::symlink_metadata(&args.socket).is_ok() {
        bail!("{} exists already", args.socket.display());
    }
    let stop = interrupt::install()?;
    with_volume(&args.volume, Lenience::default(), |volume| serve(args, volume, &stop))
}

/// The socket, which goes when the serving ends.
struct Socket(PathBuf);

impl Drop for Socket {
    fn drop(&mut self) {
        // Not what somebody else has put in its place.
        if std::fs::symlink_metadata(&self.0).is_ok_and(|it| it.file_type().is_socket()) {
            let _ = std::fs::remove_file(&self.0);
        }
    }
}

fn listen(path: &Path) -> Result<(UnixListener, Socket)> {
    // Whoever can connect can read all of the volume.
    let before = umask(Mode::from_bits_truncate(0o177));
    let listener = UnixListener::bind(path);
    umask(before);
    let listener = listener.with_context(|| format!("cannot listen on {}", path.display()))?;
    Ok((listener, Socket(path.to_owned())))
}

fn serve(args: &ServeArgs, mut volume: Volume<'_, '_>, stop: &AtomicBool) -> Result<ExitCode> {
    let (listener, _socket) = listen(&args.socket)?;
    listener.set_nonblocking(true)?;
    let name = volume.report.name();
    let mut stderr = io::stderr();
    writeln!(
        stderr,
        "{name} is served read-only at nbd+unix:///?socket={}; Ctrl-C ends it",
        args.socket.display()
    )?;
    while !stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false)?;
                stream.set_read_timeout(Some(TICK))?;
                stream.set_write_timeout(Some(TICK))?;
                let mut client = Client { stream, stop };
                let mut export = Served { volume: &mut volume, likely: args.likely };
                if let Err(error) = nbd::serve(&mut client, &mut export) {
                    let is_told = error.kind() != io::ErrorKind::UnexpectedEof
                        && !stop.load(Ordering::Relaxed);
                    if is_told {
                        writeln!(stderr, "bcachectl: warning: a client was let go: {error}")?;
                    }
                }
                if args.once {
                    break;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => std::thread::sleep(TICK),
            Err(error) => return Err(error).context("no client can be accepted"),
        }
    }
    Ok(ExitCode::SUCCESS)
}

struct Served<'v, 's, 'd> {
    volume: &'v mut Volume<'s, 'd>,
    likely: bool,
}

impl nbd::Export for Served<'_, '_, '_> {
    fn size_bytes(&self) -> u64 {
        self.volume.size.bytes()
    }

    fn read(&mut self, offset: u64, buf: &mut [u8]) -> bool {
        read_range(&mut self.volume.reader, offset, buf, self.likely)
    }
}

/// A connection that ends when the program is to.
struct Client<'a> {
    stream: UnixStream,
    stop: &'a AtomicBool,
}

impl Client<'_> {
    fn wait<T>(&self, mut once: impl FnMut(&UnixStream) -> io::Result<T>) -> io::Result<T> {
        loop {
            match once(&self.stream) {
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock
                            | io::ErrorKind::TimedOut
                            | io::ErrorKind::Interrupted
                    ) =>
                {
                    if self.stop.load(Ordering::Relaxed) {
                        return Err(io::Error::other("the serving ends"));
                    }
                }
                result => return result,
            }
        }
    }
}

impl Read for Client<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.wait(|mut stream| stream.read(buf))
    }
}

impl Write for Client<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.wait(|mut stream| stream.write(buf))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
