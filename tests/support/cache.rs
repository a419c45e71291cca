//! What tests do with cache devices on the host: run `bcachectl invalidate`, overwrite buckets, and
//! check what is left.

use crate::image::write_at;
use crate::tool::bcachectl;
use anyhow::{Context as _, ensure};
use bcache_core::cache_set::{CacheDevice, CacheSet, NoVisitor, ReadOptions};
use bcache_core::device::{FileReader, open_read};
use bcache_core::ops::check::{CheckOptions, check};
use serde::Deserialize;
use std::path::Path;
use std::process::Output;

/// What `bcachectl invalidate --json` prints: these keys and no others.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Invalidated {
    /// How it ended.
    pub state: String,
    /// What went.
    pub invalidated: Vec<InvalidatedBucket>,
    /// What did not.
    pub refused: Vec<RefusedBucket>,
    /// What to do about what did not.
    pub advice: Vec<Advice>,
    /// Where a policy found too few.
    pub gave_up: Option<GaveUp>,
    /// The new prio chain.
    pub prio_chain: Vec<u64>,
    /// The new journal entry.
    pub journal_seq: Option<u64>,
}

/// A bucket that was invalidated.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InvalidatedBucket {
    /// Its number.
    pub bucket: u64,
    /// Its prio before.
    pub prio: u16,
    /// Its gen before.
    pub gen_before: u8,
    /// Its gen now.
    pub gen_after: u8,
    /// Sectors of data that were in it.
    pub sectors: u64,
}

/// A bucket that was refused.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RefusedBucket {
    /// Its number.
    pub bucket: u64,
    /// Why.
    pub reason: String,
    /// The kind of reason.
    pub kind: String,
}

/// What to do about refused buckets of one kind.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Advice {
    /// The kind.
    pub kind: String,
    /// How many there are.
    pub buckets: u64,
    /// What to do.
    pub instead: String,
}

/// A policy that found too few buckets.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GaveUp {
    /// How many it found.
    pub found: u64,
    /// How many it was to find.
    pub wanted: u64,
}

/// Runs `bcachectl invalidate` with these arguments.
///
/// # Errors
/// When it cannot be started.
pub fn run_invalidate(image: &Path, arguments: &[&str]) -> anyhow::Result<Output> {
    bcachectl()?.arg("invalidate").arg(image).args(arguments).output().context("run bcachectl")
}

/// Runs `bcachectl invalidate --json` and reads what it prints.
///
/// # Errors
/// When it fails, or prints anything else.
pub fn invalidate(image: &Path, arguments: &[&str]) -> anyhow::Result<Invalidated> {
    let output = run_invalidate(image, &[arguments, &["--json", "--yes"]].concat())?;
    let message = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "invalidate {arguments:?}: {message}");
    serde_json::from_slice(&output.stdout).with_context(|| format!("invalidate {arguments:?}"))
}

/// What buckets are overwritten with: nothing that a volume holds, zeroes among it.
const OVERWRITTEN: u8 = 0xe5;

/// Overwrites whole buckets.
///
/// # Errors
/// When the image is no cache device, or cannot be written.
pub fn overwrite_buckets(image: &Path, buckets: impl Iterator<Item = u64>) -> anyhow::Result<()> {
    let bytes = {
        let device = open_read(image)?;
        CacheDevice::open(&device)?.geometry().bucket_bytes()
    };
    let contents = vec![OVERWRITTEN; usize::try_from(bytes)?];
    for bucket in buckets {
        write_at(image, bucket * bytes, &contents)?;
    }
    Ok(())
}

/// Calls `look` with the cache set on an image.
///
/// # Errors
/// When there is none, and what `look` returns.
pub fn with_cache_set<T>(
    image: &Path,
    look: impl FnOnce(&CacheSet<'_>) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let device: FileReader = open_read(image)?;
    let cache = CacheDevice::open(&device)?;
    look(&CacheSet::read(cache, &ReadOptions::default(), &mut NoVisitor)?)
}

/// Checks a cache device.
///
/// # Errors
/// When anything is found.
pub fn check_clean(image: &Path) -> anyhow::Result<()> {
    let device = open_read(image)?;
    let report = check(&device, &CheckOptions::default(), &mut |_| {})?;
    ensure!(report.is_clean(), "{}: {:#?}", image.display(), report.findings);
    Ok(())
}
