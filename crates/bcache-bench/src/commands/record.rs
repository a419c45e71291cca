//! `bcache-bench record`.

use std::fs::OpenOptions;
use std::io::{BufWriter, Write};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use bcache_cli::progress::Progress;
use bcache_cli::text::with_causes;
use bcache_core::device::blktrace::{BlockTrace, BlockTraceError};

use crate::cli::RecordArgs;
use crate::interrupt;
use crate::num::format_count;

/// How often the kernel's buffers are emptied: they hold 4 MiB a CPU.
const PERIOD: Duration = Duration::from_millis(100);
/// Bytes of a record before what hangs on it.
const RECORD: usize = 48;

/// Runs `bcache-bench record`.
pub fn run(args: &RecordArgs) -> Result<ExitCode> {
    let file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .open(&args.output)
        .with_context(|| format!("cannot make {}", args.output.display()))?;
    let recorded = record(args, file);
    if recorded.is_err() {
        // Nothing of worth is in it.
        let _ = std::fs::remove_file(&args.output);
    }
    recorded
}

fn record(args: &RecordArgs, file: std::fs::File) -> Result<ExitCode> {
    let stop = interrupt::install().context("cannot catch signals")?;
    let mut trace = BlockTrace::start(&args.device, &args.debugfs).map_err(explained)?;
    let mut out = zstd::Encoder::new(BufWriter::new(file), 3)?;
    let mut rests = vec![Vec::new(); trace.cpus()];
    let mut records = 0;
    let mut progress = Progress::new("record");
    let started = Instant::now();
    while started.elapsed() < args.length && !stop.load(Ordering::Relaxed) {
        std::thread::sleep(PERIOD.min(args.length.saturating_sub(started.elapsed())));
        records += drain(&mut trace, &mut rests, &mut out)?;
        progress.set("seconds", started.elapsed().as_secs(), args.length.as_secs());
    }
    progress.finish();
    trace.stop().context("cannot stop the trace")?;
    records += drain(&mut trace, &mut rests, &mut out)?;
    let dropped = trace.dropped();
    out.finish()?.flush()?;
    if records == 0 {
        bail!("no request was made on {} meanwhile", args.device.display());
    }
    println!("{} records in {}", format_count(records), args.output.display());
    if dropped > 0 {
        bail!("the kernel dropped {} records: the trace has gaps", format_count(dropped));
    }
    Ok(ExitCode::SUCCESS)
}

/// What a user can do where the kernel gives no trace.
fn explained(error: BlockTraceError) -> anyhow::Error {
    let way_out = match &error {
        BlockTraceError::NoDebugfs { .. } => {
            "mount -t debugfs none /sys/kernel/debug; where it is locked down, record with \
             \"biosnoop -Q\" of bcc or \"perf record -e block:block_bio_queue\" and replay that"
        }
        BlockTraceError::Busy { .. } => "end the other blktrace first (blktrace -k)",
        _ => return error.into(),
    };
    anyhow::anyhow!("{}; {way_out}", with_causes(&error))
}

/// Writes what the CPUs have recorded, record by record: their order is found again when it is read.
fn drain(trace: &mut BlockTrace, rests: &mut [Vec<u8>], out: &mut impl Write) -> Result<u64> {
    let mut records = 0;
    for (cpu, rest) in rests.iter_mut().enumerate() {
        trace.read(cpu, rest)?;
        let mut whole = 0;
        while let Some(header) = rest.get(whole..whole + RECORD) {
            let extra = usize::from(u16::from_ne_bytes([header[46], header[47]]));
            if whole + RECORD + extra > rest.len() {
                break;
            }
            whole += RECORD + extra;
            records += 1;
        }
        out.write_all(&rest[..whole])?;
        rest.drain(..whole);
    }
    Ok(records)
}
