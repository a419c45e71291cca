//! `bcachectl image`: the metadata of a cache device in a small file, and back.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result, bail};
use bcache_cli::is_broken_pipe;
use bcache_cli::out::Out;
use bcache_cli::progress::Progress;
use bcache_cli::text::plural;
use bcache_core::cache_set;
use bcache_core::device::file::open_packed;
use bcache_core::device::packed::PackedError;
use bcache_core::device::{FileDevice, create_image, open_read, open_unused, open_write};
use bcache_core::ops::image::{self, ImageProgress, ImageReport};
use bcache_core::ops::make::AtStake;
use bcache_core::units::format_bytes;
use serde::Serialize;

use super::{holding, undo};
use crate::cli::image::{ImageArgs, ImageCommand, ImageCreateArgs, ImageRestoreArgs};
use crate::commands::export::{check_target, create as create_file};
use crate::exit::{ExitError, Failure};
use crate::scan;

/// What `image create --json` prints; the man page documents the keys.
#[derive(Serialize)]
struct Created<'a> {
    path: &'a Path,
    output: &'a Path,
    anonymized: bool,
    #[serde(flatten)]
    report: &'a ImageReport,
}

/// What `image restore --json` prints.
#[derive(Serialize)]
struct Restored<'a> {
    image: &'a Path,
    path: &'a Path,
    created: bool,
    device_bytes: u64,
    metadata_bytes: u64,
}

/// Runs `bcachectl image`.
pub fn run(args: &ImageArgs) -> Result<ExitCode> {
    match &args.command {
        ImageCommand::Create(args) => create(args),
        ImageCommand::Restore(args) => restore(args),
    }
}

fn create(args: &ImageCreateArgs) -> Result<ExitCode> {
    let stream = args.output == Path::new("-");
    if stream && args.json {
        let error = anyhow::anyhow!("--json and the image cannot both go to standard output");
        return Err(ExitError::wrap(Failure::Usage, error));
    }
    let device = open_unused(&args.cache).map_err(|error| holding::in_use(error, |_| None))?;
    let mut bar = Progress::new(args.cache.display().to_string());
    let mut progress = |progress| match progress {
        ImageProgress::Reading(progress) => bar.reading(progress),
        ImageProgress::Writing { done, total } => bar.set("bytes", done, total),
    };
    let context = || args.cache.display().to_string();
    let report = if stream {
        let out = BufWriter::new(io::stdout());
        let made = image::create(&device, args.anonymize, out, &mut progress)
            .map_err(anyhow::Error::from)
            .and_then(|(report, mut out)| Ok(out.flush().map(|()| report)?));
        match made.with_context(context) {
            Ok(report) => report,
            // Of a stream nobody else tells that it is no image.
            Err(error) if is_broken_pipe(&error) => {
                return Err(ExitError::wrap(Failure::Partial, error));
            }
            Err(error) => return Err(error),
        }
    } else {
        check_target(&args.output, args.force, std::slice::from_ref(&args.cache))?;
        // Nothing is left behind that is no image.
        cache_set::CacheDevice::open(&device).with_context(context)?;
        let out = BufWriter::new(create_file(&args.output, args.force)?);
        let made = image::create(&device, args.anonymize, out, &mut progress)
            .map_err(anyhow::Error::from)
            .and_then(|(report, out)| sync(out).map(|()| report));
        match made {
            Ok(report) => report,
            Err(error) => {
                let what = format!("{} is incomplete", args.output.display());
                return Err(ExitError::wrap(Failure::Partial, error.context(what)));
            }
        }
    };
    bar.finish();
    if args.json {
        let mut out = Out::stdout();
        out.json(&Created {
            path: &args.cache,
            output: &args.output,
            anonymized: args.anonymize,
            report: &report,
        })?;
        out.finish()?;
    } else {
        writeln!(
            io::stderr(),
            "{}: {} of metadata: {}, {}, {}",
            args.cache.display(),
            format_bytes(report.metadata_bytes),
            plural(report.journal_buckets, "journal bucket"),
            plural(report.prio_sets, "prio set"),
            plural(report.btree_nodes, "btree node")
        )?;
    }
    if report.unreadable > 0 {
        writeln!(
            io::stderr(),
            "bcachectl: {}: {} structures cannot be read and are not in the image",
            args.cache.display(),
            report.unreadable
        )?;
        return Ok(Failure::LeftOut.into());
    }
    Ok(ExitCode::SUCCESS)
}

fn sync(out: BufWriter<File>) -> Result<()> {
    out.into_inner().map_err(io::IntoInnerError::into_error)?.sync_all()?;
    Ok(())
}

fn restore(args: &ImageRestoreArgs) -> Result<ExitCode> {
    let context = || args.image.display().to_string();
    let image = open_packed(&args.image).map_err(anyhow::Error::from).with_context(context)?;
    let undo = undo::log(args.undo.as_deref(), "image restore")?;
    let (device, created) = target(args, image.header().device_bytes)?;
    let saved = undo.as_ref().filter(|_| !created);
    let mut bar = Progress::new(args.target.display().to_string());
    let mut progress = |done, total| bar.set("bytes", done, total);
    let done = image::restore_with_undo(&image, saved, &device, &mut progress);
    bar.finish();
    undo::tell(saved);
    if let Err(error) = done {
        let written = error.may_have_written();
        let error = anyhow::Error::from(error).context(context());
        if created {
            drop(device);
            std::fs::remove_file(&args.target)?;
            return Err(error.context(format!("{} was removed", args.target.display())));
        }
        let failure = if written { Failure::Partial } else { Failure::Refused };
        return Err(ExitError::wrap(failure, error));
    }
    let metadata_bytes = image.chunks().iter().map(|chunk| u64::from(chunk.len)).sum();
    if args.json {
        let mut out = Out::stdout();
        out.json(&Restored {
            image: &args.image,
            path: &args.target,
            created,
            device_bytes: image.header().device_bytes,
            metadata_bytes,
        })?;
        out.finish()?;
    } else {
        let (target, size) = (args.target.display(), format_bytes(metadata_bytes));
        writeln!(io::stderr(), "{target}: {size} of metadata written and read back")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The device to write to, and whether it was made for that.
fn target(args: &ImageRestoreArgs, size: u64) -> Result<(FileDevice, bool)> {
    if !args.target.try_exists()? {
        return Ok((create_image(&args.target, size)?, true));
    }
    if !args.force {
        bail!(
            "{} exists: --force writes the image over it, and what a bcache device on it holds is \
             lost",
            args.target.display()
        );
    }
    match open_packed(&args.target) {
        Err(PackedError::NotPacked) => {}
        _ => bail!("{} is an image itself", args.target.display()),
    }
    let at_stake = AtStake::of_device(&open_read(&args.target)?, Some(scan::backing_devices));
    if !at_stake.is_nothing() && !args.lose_dirty_data {
        bail!(
            "{}: {at_stake}; --lose-dirty-data writes the image over it all the same",
            args.target.display()
        );
    }
    Ok((open_write(&args.target)?, false))
}
