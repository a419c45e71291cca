//! `bcachectl export`: a volume, read through its cache, into a file or a stream.

use std::fs::{File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::ops::ControlFlow;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use bcache_cli::out::Out;
use bcache_cli::progress::Progress;
use bcache_core::ops::export::map::{Runs, write_head, write_run};
use bcache_core::ops::export::{ExportOptions, ExportReport, Sink, Status, export};
use bcache_core::units::{SECTOR_BYTES, Sectors, format_bytes};
use serde::Serialize;

use crate::cli::ExportArgs;
use crate::commands::source::{Lenience, Volume, with_volume};
use crate::exit::{ExitError, Failure};

/// Zeroes of this length that are not written to a file.
const SPARSE_BYTES: usize = 4096;

/// The output in JSON; the man page documents the keys.
#[derive(Serialize)]
struct Json<'a> {
    path: &'a Path,
    slot: u32,
    uuid: Option<uuid::Uuid>,
    label: &'a str,
    output: &'a Path,
    map: Option<&'a Path>,
    complete: bool,
    problems: &'a [String],
    #[serde(flatten)]
    report: &'a ExportReport,
}

/// Runs `bcachectl export`.
pub fn run(args: &ExportArgs) -> Result<ExitCode> {
    let stream = args.output == Path::new("-");
    if stream && args.json {
        let error = anyhow::anyhow!("--json and the volume cannot both go to standard output");
        return Err(ExitError::wrap(Failure::Usage, error));
    }
    let map_path = match (&args.map, stream) {
        (Some(map), _) => Some(map.clone()),
        (None, true) => None,
        (None, false) => {
            let mut name = args.output.clone().into_os_string();
            name.push(".map");
            Some(PathBuf::from(name))
        }
    };
    let lenience = Lenience { missing_backing: args.dirty_only, data_offset: args.data_offset };
    with_volume(&args.volume, lenience, |volume| {
        let targets = (!stream).then_some(&args.output).into_iter().chain(&map_path);
        for target in targets {
            check_target(target, args.force, &volume.sources)?;
        }
        copy(args, volume, stream, map_path.as_deref())
    })
}

/// Refuses what must not be overwritten: sources under any name, devices, and files without --force.
pub(super) fn check_target(target: &Path, force: bool, sources: &[PathBuf]) -> Result<()> {
    let metadata = match std::fs::metadata(target) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| target.display().to_string()),
    };
    for source in sources {
        let source = std::fs::metadata(source)?;
        if (source.dev(), source.ino()) == (metadata.dev(), metadata.ino()) {
            bail!("{} is a source", target.display());
        }
    }
    if metadata.file_type().is_block_device() {
        bail!("{} is a device: write to standard output, and pipe it there", target.display());
    }
    if metadata.is_file() && !force {
        bail!("{} exists already: --force replaces it", target.display());
    }
    Ok(())
}

pub(super) fn create(path: &Path, force: bool) -> Result<File> {
    let mut options = OpenOptions::new();
    options.write(true);
    if force {
        options.create(true).truncate(true)
    } else {
        options.create_new(true)
    };
    options.open(path).with_context(|| format!("cannot create {}", path.display()))
}

fn copy(
    args: &ExportArgs,
    mut volume: Volume<'_, '_>,
    stream: bool,
    map_path: Option<&Path>,
) -> Result<ExitCode> {
    let target = if stream {
        Target::Stream(BufWriter::with_capacity(1 << 20, io::stdout()))
    } else {
        let file = create(&args.output, args.force)?;
        file.set_len(volume.size.bytes())
            .with_context(|| format!("cannot size {}", args.output.display()))?;
        Target::File(file)
    };
    if map_path.is_some_and(Path::exists) && args.force {
        // A map of another export must not lie beside this one.
        map_path.map(std::fs::remove_file).transpose()?;
    }
    let mut output = Output {
        target,
        map: Map { path: map_path, force: args.force, runs: Runs::default(), file: None },
        progress: Progress::new(volume.report.name()),
        size: volume.size,
    };
    let options = ExportOptions { dirty_only: args.dirty_only, likely: args.likely };
    let report = export(&mut volume.reader, volume.size, &options, &mut output)
        .and_then(|report| output.finish().map(|map| (report, map)))
        .map_err(anyhow::Error::from);
    let (report, map) = match report {
        Ok(done) => done,
        Err(error) => {
            let output =
                if stream { "standard output".into() } else { args.output.display().to_string() };
            let what = format!("writing {output} failed; it is incomplete");
            return Err(ExitError::wrap(Failure::Partial, error.context(what)));
        }
    };
    let map = map_path.filter(|_| map);
    let is_complete = report.is_complete() && !volume.may_be_mixed;
    if args.json {
        let json = Json {
            path: &args.volume.cache,
            slot: volume.report.slot,
            uuid: volume.report.uuid,
            label: &volume.report.label,
            output: &args.output,
            map,
            complete: is_complete,
            problems: &volume.problems,
            report: &report,
        };
        Out::answer(|out| out.json(&json))?;
    } else {
        tell(&volume, &report, map)?;
    }
    if !is_complete {
        return Ok(Failure::LeftOut.into());
    }
    Ok(ExitCode::SUCCESS)
}

/// Says on standard error what there is and what is not: standard output may be the volume.
fn tell(volume: &Volume<'_, '_>, report: &ExportReport, map: Option<&Path>) -> Result<()> {
    let mut stderr = io::stderr();
    let size = |sectors: u64| format_bytes(Sectors(sectors).bytes());
    writeln!(
        stderr,
        "{}: {} in all: {} dirty data from the cache, {} clean data, {} from the backing device",
        volume.report.name(),
        size(report.size_sectors),
        size(report.dirty_sectors),
        size(report.clean_sectors),
        size(report.backing_sectors),
    )?;
    if report.likely_taken_sectors > 0 {
        let sectors = report.likely_taken_sectors;
        writeln!(stderr, "{} ({sectors} sectors) are likely right, not certain.", size(sectors))?;
    }
    if report.likely_left_sectors > 0 {
        let sectors = report.likely_left_sectors;
        writeln!(
            stderr,
            "{} ({sectors} sectors) are likely right and were left out; --likely takes them.",
            size(sectors)
        )?;
    }
    if report.lost_sectors > 0 {
        let sectors = report.lost_sectors;
        writeln!(stderr, "{} ({sectors} sectors) are lost or unreadable.", size(sectors))?;
    }
    if report.before_data_sectors > 0 {
        let sectors = report.before_data_sectors;
        writeln!(
            stderr,
            "{} ({sectors} sectors) of the cache lie before the volume, and are left out: the data \
             offset is wrong, and all data is in the wrong place.",
            size(sectors)
        )?;
    }
    for (reason, sectors) in &report.reasons {
        writeln!(stderr, "  {reason}: {sectors} sectors")?;
    }
    if let Some(map) = map {
        writeln!(stderr, "{} says which parts there are.", map.display())?;
    }
    Ok(())
}

enum Target {
    File(File),
    Stream(BufWriter<io::Stdout>),
}

/// The map file, made when there is more to say than that all is there.
struct Map<'p> {
    path: Option<&'p Path>,
    force: bool,
    runs: Runs,
    file: Option<BufWriter<File>>,
}

impl Map<'_> {
    fn add(&mut self, start: u64, end: u64, status: Status) -> io::Result<()> {
        let run = self.runs.add(start, end, status);
        if status != Status::Taken && self.file.is_none() {
            if let Some(path) = self.path {
                let file = create(path, self.force).map_err(io::Error::other)?;
                let mut file = BufWriter::new(file);
                write_head(&mut file, concat!("bcachectl ", env!("CARGO_PKG_VERSION")))?;
                self.file = Some(file);
            }
        }
        match (&mut self.file, run) {
            (Some(file), Some(run)) => write_run(file, run),
            _ => Ok(()),
        }
    }

    /// Whether there is one.
    fn finish(mut self) -> io::Result<bool> {
        let Some(mut file) = self.file.take() else { return Ok(false) };
        if let Some(run) = self.runs.finish() {
            write_run(&mut file, run)?;
        }
        file.flush()?;
        file.get_ref().sync_all()?;
        Ok(true)
    }
}

struct Output<'p> {
    target: Target,
    map: Map<'p>,
    progress: Progress,
    size: Sectors,
}

impl Output<'_> {
    /// Makes everything durable; whether there is a map file.
    fn finish(mut self) -> io::Result<bool> {
        self.progress.finish();
        match &mut self.target {
            Target::File(file) => file.sync_all()?,
            Target::Stream(stream) => stream.flush()?,
        }
        self.map.finish()
    }
}

impl Sink for Output<'_> {
    fn data(&mut self, offset: u64, data: &[u8]) -> io::Result<()> {
        match &mut self.target {
            Target::Stream(stream) => stream.write_all(data),
            Target::File(file) => {
                let mut at = offset;
                // The file is new: what is not written reads as zeroes.
                for block in data.chunks(SPARSE_BYTES) {
                    if block.iter().any(|&byte| byte != 0) {
                        file.write_all_at(block, at)?;
                    }
                    at += block.len() as u64;
                }
                Ok(())
            }
        }
    }

    fn skip(&mut self, _offset: u64, len: u64) -> io::Result<()> {
        if let Target::Stream(stream) = &mut self.target {
            io::copy(&mut io::Read::take(io::repeat(0), len), stream)?;
        }
        Ok(())
    }

    fn status(&mut self, start: u64, end: u64, status: Status) -> io::Result<()> {
        self.map.add(start, end, status)
    }

    fn progress(&mut self, done: Sectors) -> ControlFlow<()> {
        let mib = |sectors: Sectors| sectors.0 / ((1 << 20) / SECTOR_BYTES);
        self.progress.set("MiB", mib(done), mib(self.size));
        ControlFlow::Continue(())
    }
}
