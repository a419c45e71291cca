//! `bcache-bench size`.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, Result};
use bcache_cli::out::Out;
use bcache_cli::size::parse_bytes;
use bcache_cli::table::{number, table};
use bcache_core::device::{ReadDevice, open_read};
use bcache_core::units::format_bytes;

use crate::cli::SizeArgs;
use crate::num::{float, format_count};
use crate::replay::render::percent;
use crate::size::{Limit, SizeRow, row};

/// What registration is estimated with: bytes a second.
const READ_BYTES_PER_SECOND: u64 = 500_000_000;

/// Runs `bcache-bench size`.
pub fn run(args: &SizeArgs) -> Result<ExitCode> {
    let cache_bytes = size_of(&args.size)?;
    let rows: Vec<SizeRow> = args
        .bucket
        .iter()
        .map(|bucket| row(cache_bytes, *bucket, args.block, args.extent))
        .collect();
    let mut out = Out::stdout();
    if args.json {
        out.json(&serde_json::json!({
            "cache_bytes": cache_bytes,
            "extent_bytes": args.extent,
            "buckets": rows,
        }))?;
    } else {
        text(cache_bytes, args, &rows, &mut out)?;
    }
    out.finish()?;
    Ok(ExitCode::SUCCESS)
}

fn size_of(given: &str) -> Result<u64> {
    if Path::new(given).exists() {
        let device = open_read(given)?;
        return Ok(device.info().size_bytes);
    }
    parse_bytes(given).with_context(|| format!("{given} is neither a device nor a size"))
}

fn limit_text(limit: Limit) -> &'static str {
    match limit {
        Limit::TooFewBuckets => "refused: fewer than 513 buckets",
        Limit::TooManyBuckets => "refused: more buckets than can be numbered",
        Limit::Shape => "refused: not a shape that a cache can have",
        Limit::SectorsUsed => {
            "GC counts up to 8,191 sectors a bucket: LRU takes full ones for less full"
        }
        Limit::LargePages => "refused by kernels with pages of 64 KiB",
    }
}

fn text(cache_bytes: u64, args: &SizeArgs, rows: &[SizeRow], out: &mut Out) -> Result<()> {
    writeln!(
        out,
        "A cache of {}, full of extents of {}:\n",
        format_bytes(cache_bytes),
        format_bytes(args.extent)
    )?;
    let titles = [
        "bucket",
        "buckets",
        "memory",
        "btree memory",
        "metadata",
        "journal",
        "btree",
        "prio writes",
        "registration",
        "limits",
    ];
    let style = out.style();
    let mut cells = table(style, &titles);
    for row in rows {
        let limits: Vec<&str> = row.limits.iter().map(|limit| limit_text(*limit)).collect();
        let mut fields = vec![format_bytes(row.bucket_bytes), format_count(row.nbuckets)];
        match &row.costs {
            None => fields.extend(std::iter::repeat_n("-".to_owned(), 7)),
            Some(costs) => {
                let seconds = float(costs.registration_bytes) / float(READ_BYTES_PER_SECOND);
                fields.extend([
                    mib(costs.memory_bytes),
                    mib(costs.btree_memory_bytes),
                    mib(costs.fixed_metadata_bytes),
                    mib(costs.journal_bytes),
                    mib(costs.btree_bytes),
                    costs.prio_overhead.map_or("-".to_owned(), |it| format!("+{}", percent(it))),
                    format!("{seconds:.1} s"),
                ]);
            }
        }
        let mut line: Vec<_> = fields.into_iter().map(number).collect();
        line.push(limits.join("; ").into());
        cells.add_row(line);
    }
    writeln!(out, "{cells}\n")?;
    writeln!(
        out,
        "memory: what the kernel keeps of buckets and queues; btree memory: all nodes, of which it keeps\n\
         what there is room for; prio writes: bytes of prios for the data written to a full cache;\n\
         registration: reading journal, prios and btree at 500 MB/s."
    )?;
    Ok(())
}

fn mib(bytes: u64) -> String {
    format!("{:.1} MiB", float(bytes) / 1_048_576.0)
}
