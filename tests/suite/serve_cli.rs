//! `bcachectl serve` with clients that we did not write, and one that looks at every sector: the volume is
//! what export gives, and what export leaves out is an error.

use anyhow::{Context as _, bail, ensure};
use bcache_tests::cache::with_cache_set;
use bcache_tests::image::write_at;
use bcache_tests::need::unmet;
use bcache_tests::tool::{bcachectl, run};
use bcache_tests::{Fixture, Need, Scratch};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsStr;
use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A server that runs, and its socket.
struct Server {
    child: Child,
    socket: PathBuf,
}

impl Server {
    fn start(scratch: &Scratch, arguments: &[&OsStr]) -> anyhow::Result<Self> {
        let socket = scratch.path("sock");
        let mut child = bcachectl()?
            .arg("serve")
            .args(arguments)
            .arg("--socket")
            .arg(&socket)
            .stderr(Stdio::piped())
            .spawn()?;
        for _ in 0..600 {
            if socket.exists() {
                return Ok(Self { child, socket });
            }
            if child.try_wait()?.is_some() {
                let mut message = String::new();
                child.stderr.take().context("no pipe")?.read_to_string(&mut message)?;
                bail!("serve: {message}");
            }
            std::thread::sleep(Duration::from_millis(50));
        }
        child.kill()?;
        bail!("there is no socket")
    }

    fn url(&self) -> String {
        format!("nbd+unix:///?socket={}", self.socket.display())
    }

    /// Ends it as Ctrl-C does.
    fn end(mut self) -> anyhow::Result<()> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGINT)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "serve ended with {status}");
        ensure!(!self.socket.exists(), "the socket is left");
        Ok(())
    }
}

fn export(arguments: &[&OsStr], target: &Path) -> anyhow::Result<Option<i32>> {
    let before = [OsStr::new("export")].into_iter().chain(arguments.iter().copied());
    let output = run(before.chain([OsStr::new("-o"), target.as_os_str()]))?;
    ensure!(output.status.code() != Some(1), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(output.status.code())
}

fn qemu(program: &str, arguments: &[&OsStr]) -> anyhow::Result<(bool, String)> {
    let output = Command::new(program).args(arguments).stdin(Stdio::null()).output()?;
    let text = [output.stdout, output.stderr].concat();
    Ok((output.status.success(), String::from_utf8_lossy(&text).into_owned()))
}

/// qemu-img reads each volume as export writes it, a flash-only one and one of another slot among them; it
/// cannot write.
#[test]
fn qemu_reads_what_export_writes() -> anyhow::Result<()> {
    if unmet(&[Need::Program("qemu-img", "qemu-utils")]).is_some() {
        return Ok(());
    }
    for (name, volume, backing) in [
        ("dirty-61", "0", Some(0)),
        ("crash-612", "0", Some(0)),
        ("multi-612", "1", Some(1)),
        ("multi-612", "2", None),
    ] {
        let (fixture, scratch) = (Fixture::unpack(name)?, Scratch::new()?);
        let mut arguments = vec![fixture.cache.as_os_str()];
        if let Some(index) = backing {
            arguments.push(fixture.backing.get(index).context("no such device")?.as_os_str());
        }
        arguments.extend([OsStr::new("--volume"), OsStr::new(volume)]);
        let (exported, copied) = (scratch.path("export.img"), scratch.path("copy.img"));
        assert_eq!(export(&arguments, &exported)?, Some(0), "{name}");
        let before = fs::read(&fixture.cache)?;
        let server = Server::start(&scratch, &arguments)?;
        let mode = fs::metadata(&server.socket)?.permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
        let url = server.url();
        // Twice: a client goes, the next one comes.
        for _ in 0..2 {
            let convert = ["convert", "-f", "raw", "-O", "raw", url.as_str()].map(OsStr::new);
            let convert: Vec<&OsStr> = convert.into_iter().chain([copied.as_os_str()]).collect();
            let (done, message) = qemu("qemu-img", &convert)?;
            ensure!(done, "{name}: {message}");
            ensure!(fs::read(&copied)? == fs::read(&exported)?, "{name} {volume}: other data");
        }
        let write = ["-f", "raw", "-c", "write 0 4096", url.as_str()].map(OsStr::new);
        let (done, message) = qemu("qemu-io", &write)?;
        ensure!(!done && message.contains("Permission denied"), "{name}: {message}");
        server.end()?;
        ensure!(fs::read(&fixture.cache)? == before, "{name}: the cache was written to");
    }
    Ok(())
}

impl Drop for Server {
    fn drop(&mut self) {
        // Where a test failed; else it has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client that speaks the bare protocol.
struct Client(UnixStream, u64);

impl Client {
    fn connect(socket: &Path) -> anyhow::Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let mut hello = [0; 18];
        stream.read_exact(&mut hello)?;
        ensure!(hello == *b"NBDMAGICIHAVEOPT\0\x03", "{hello:?}");
        stream.write_all(&3u32.to_be_bytes())?;
        stream.write_all(b"IHAVEOPT\0\0\0\x01\0\0\0\0")?;
        let mut export = [0; 10];
        stream.read_exact(&mut export)?;
        let (size, flags) = export.split_at(8);
        assert_eq!(flags, [0, 3]);
        Ok(Self(stream, u64::from_be_bytes(size.try_into()?)))
    }

    /// The error of a command and the data of a read.
    fn ask(&mut self, command: u16, offset: u64, len: u32) -> anyhow::Result<(u32, Vec<u8>)> {
        let mut request = 0x2560_9513u32.to_be_bytes().to_vec();
        request.extend([0, 0]);
        request.extend(command.to_be_bytes());
        request.extend((!offset).to_be_bytes());
        request.extend(offset.to_be_bytes());
        request.extend(len.to_be_bytes());
        self.0.write_all(&request)?;
        if command == 1 {
            self.0.write_all(&vec![0xaa; usize::try_from(len)?])?;
        }
        let mut reply = [0; 16];
        self.0.read_exact(&mut reply)?;
        assert_eq!(reply[..4], 0x6744_6698u32.to_be_bytes());
        assert_eq!(reply[8..], (!offset).to_be_bytes());
        let error = u32::from_be_bytes(reply[4..8].try_into()?);
        let mut data = vec![0; if error == 0 && command == 0 { usize::try_from(len)? } else { 0 }];
        self.0.read_exact(&mut data)?;
        Ok((error, data))
    }
}

/// The runs of ddrescue's map file: offset, length, status.
fn map(path: &Path) -> anyhow::Result<Vec<(u64, u64, char)>> {
    let number = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16);
    let mut runs = Vec::new();
    for line in fs::read_to_string(path)?.lines().filter(|line| !line.starts_with('#')).skip(1) {
        let mut words = line.split_whitespace();
        let mut next = || words.next().context("a short line");
        runs.push((number(next()?)?, number(next()?)?, next()?.chars().next().context("status")?));
    }
    Ok(runs)
}

/// The root is damaged, and only the journal tells of data that is certain. Block by block, what the map says is there reads as the export, and all else is an
/// error. Reads may begin and end anywhere. What is no read, or past the end, is refused, and the connection
/// goes on.
#[test]
fn what_export_leaves_out_is_an_error() -> anyhow::Result<()> {
    let (fixture, scratch) = (Fixture::unpack("crashhot-61")?, Scratch::new()?);
    let root = with_cache_set(&fixture.cache, |set| Ok(set.root.ptrs()[0].offset().bytes()))?;
    write_at(&fixture.cache, root, &[0x5a; 512])?;
    let arguments = [fixture.cache.as_os_str(), fixture.backing[0].as_os_str()];
    let exported = scratch.path("export.img");
    assert_eq!(export(&arguments, &exported)?, Some(4));
    let expected = fs::read(&exported)?;
    let runs = map(&scratch.path("export.img.map"))?;
    let there = |from: u64, to: u64| {
        runs.iter().all(|(at, len, status)| at + len <= from || *at >= to || *status == '+')
    };
    let server = Server::start(&scratch, &arguments)?;
    let mut client = Client::connect(&server.socket)?;
    let size = client.1;
    assert_eq!(size, expected.len() as u64);
    let (mut read, mut failed) = (0, 0);
    for at in (0..size).step_by(4096) {
        let len = 4096.min(size - at);
        let (error, data) = client.ask(0, at, u32::try_from(len)?)?;
        if there(at, at + len) {
            assert_eq!(error, 0, "byte {at}");
            ensure!(data == expected[usize::try_from(at)?..usize::try_from(at + len)?], "{at}");
            read += 1;
        } else {
            assert_eq!((error, data.len()), (5, 0), "byte {at}");
            failed += 1;
        }
    }
    ensure!(read > 0 && failed > 0, "{read} blocks were read, {failed} failed");
    let (start, len, _) = *runs.iter().find(|run| run.2 == '+' && run.1 >= 512).context("a run")?;
    let (error, data) = client.ask(0, start + 7, u32::try_from(len.min(3 << 20) - 9)?)?;
    assert_eq!(error, 0);
    let from = usize::try_from(start)? + 7;
    ensure!(data == expected[from..from + data.len()], "an odd range");
    for (command, offset, len, expected) in [
        (0, size, 1, 22),
        (0, size - 1, 2, 22),
        (0, 0, 33 << 20, 22),
        (1, 0, 5000, 1),
        (4, 0, 8, 1),
        (9, 0, 0, 22),
    ] {
        assert_eq!(client.ask(command, offset, len)?.0, expected, "command {command}");
    }
    assert_eq!(client.ask(0, start, 512)?.0, 0);
    server.end()
}

/// A client that does not keep to the protocol is let go, and the next one is served.
#[test]
fn a_bad_client_harms_nobody() -> anyhow::Result<()> {
    let (fixture, scratch) = (Fixture::unpack("dirty-61")?, Scratch::new()?);
    let arguments = [fixture.cache.as_os_str(), fixture.backing[0].as_os_str()];
    let server = Server::start(&scratch, &arguments)?;
    let long = [&3u32.to_be_bytes()[..], b"IHAVEOPT\0\0\0\x07\xff\xff\xff\xff"].concat();
    for bytes in [&[][..], &[0xff; 100], &long, b"\0\0\0\x03IHAVEOPT\0\0\0\x01\0\0\0\x03abc"] {
        let mut stream = UnixStream::connect(&server.socket)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let _ = stream.write_all(bytes);
        stream.shutdown(std::net::Shutdown::Write)?;
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
        ensure!(rest.len() <= 18, "{} bytes came", rest.len());
    }
    assert_eq!(Client::connect(&server.socket)?.ask(0, 0, 512)?.0, 0);
    // A place that is taken is left alone.
    let output = run([OsStr::new("serve")]
        .into_iter()
        .chain(arguments)
        .chain([OsStr::new("--socket"), server.socket.as_os_str()]))?;
    ensure!(output.status.code() == Some(1), "{output:?}");
    server.end()
}
