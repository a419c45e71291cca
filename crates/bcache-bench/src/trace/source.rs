//! Where traces come from: files and standard input, compressed or not.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use flate2::bufread::MultiGzDecoder;

use super::blktrace;
use super::columns::Columns;
use super::detect::{self, Format};
use super::{Requests, TraceError};

/// What detection may look at.
const BEGINNING: usize = 64 << 10;

/// A buffered stream.
pub(super) type Input = Box<dyn BufRead + Send>;

/// Where a trace is and what it is.
#[derive(Clone, Debug, Default)]
pub struct Source {
    /// Its files; `-` is standard input. Several are per-CPU files or iologs of several devices.
    pub paths: Vec<PathBuf>,
    /// Its format; by content if not given.
    pub format: Option<Format>,
    /// The columns of a CSV, if they are not those of a known layout.
    pub columns: Option<Columns>,
}

/// A stream that has been looked at.
pub(super) struct Opened {
    /// What its first bytes are; less than 64 KiB only where it has no more.
    pub(super) beginning: Vec<u8>,
    pub(super) input: Input,
    /// Set when the end of a compressed stream is missing.
    pub(super) cut_off: Arc<AtomicBool>,
}

/// A decompressor, of which what came before a missing end is kept: a recording that was interrupted,
/// or a download.
struct UntilCutOff<R> {
    inner: R,
    has_begun: bool,
    cut_off: Arc<AtomicBool>,
}

impl<R: Read> Read for UntilCutOff<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.inner.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof && self.has_begun => {
                self.cut_off.store(true, Ordering::Relaxed);
                Ok(0)
            }
            Ok(count) => {
                self.has_begun |= count > 0;
                Ok(count)
            }
            error => error,
        }
    }
}

/// What some editors put before UTF-8 text.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// Opens a trace.
///
/// # Errors
/// [`TraceError`] when it cannot be read or its format is not known.
pub fn open(source: &Source) -> Result<Requests, TraceError> {
    let mut source = source.clone();
    source.paths = source.paths.iter().flat_map(|path| files_of(path)).collect();
    let opened = source.paths.iter().map(|path| open_path(path)).collect::<Result<Vec<_>, _>>()?;
    detect::requests(opened, &source)
}

/// A trace from any stream: what fuzzing and tests read.
///
/// # Errors
/// As [`open`].
pub fn from_reader(
    input: impl Read + Send + 'static,
    format: Option<Format>,
    columns: Option<Columns>,
) -> Result<Requests, TraceError> {
    let opened = opened(Box::new(BufReader::new(input)))?;
    detect::requests(vec![opened], &Source { paths: vec!["-".into()], format, columns })
}

/// The files that a name stands for.
fn files_of(path: &Path) -> Vec<PathBuf> {
    let whole = vec![path.to_owned()];
    if path.as_os_str() == "-" || path.exists() {
        return whole;
    }
    let per_cpu = blktrace::files_of(path);
    if per_cpu.is_empty() { whole } else { per_cpu }
}

fn open_path(path: &Path) -> Result<Opened, TraceError> {
    let error = |source| TraceError::Io { path: path.to_owned(), source };
    if path.as_os_str() == "-" {
        let input: Input = Box::new(BufReader::with_capacity(BEGINNING, io::stdin()));
        return opened(input);
    }
    let file = File::open(path).map_err(error)?;
    opened(Box::new(BufReader::with_capacity(BEGINNING, file))).map_err(|it| match it {
        TraceError::Read(source) => error(source),
        other => other,
    })
}

/// Looks through compression, which may be nested as little as people nest it: once.
fn opened(input: Input) -> Result<Opened, TraceError> {
    let (beginning, input) = peek(input)?;
    let cut_off = Arc::new(AtomicBool::new(false));
    let decoder: Box<dyn Read + Send> = if beginning.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        Box::new(zstd::Decoder::with_buffer(input)?)
    } else if beginning.starts_with(&[0x1f, 0x8b]) {
        Box::new(MultiGzDecoder::new(input))
    } else {
        return Ok(without_mark(Opened { beginning, input, cut_off }));
    };
    let decoder = UntilCutOff { inner: decoder, has_begun: false, cut_off: Arc::clone(&cut_off) };
    let (beginning, input) = peek(Box::new(BufReader::with_capacity(BEGINNING, decoder)))?;
    Ok(without_mark(Opened { beginning, input, cut_off }))
}

fn without_mark(mut opened: Opened) -> Opened {
    if let Some(rest) = opened.beginning.strip_prefix(BYTE_ORDER_MARK) {
        opened.beginning = rest.to_vec();
        opened.input.consume(BYTE_ORDER_MARK.len());
    }
    opened
}

/// The first bytes, and a stream that still has them.
fn peek(mut input: Input) -> io::Result<(Vec<u8>, Input)> {
    let mut beginning = Vec::new();
    input.by_ref().take(BEGINNING as u64).read_to_end(&mut beginning)?;
    let again = io::Cursor::new(beginning.clone()).chain(input);
    Ok((beginning, Box::new(again)))
}
