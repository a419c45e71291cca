//! What tests do with cache devices on the host: run `bcachectl invalidate`, overwrite buckets, and
//! check what is left.

use crate::image::write_at;
use crate::tool::bcachectl;
use anyhow::{Context as _, ensure};
use bcache_core::cache_set::{CacheDevice, CacheSet, NoVisitor, ReadOptions};
use bcache_core::device::{FileReader, ReadDevice as _, open_read};
use bcache_core::layout::bkey::Bkey;
use bcache_core::layout::jset::{self, Jset, JsetParams};
use bcache_core::layout::prio_set::{self, BucketDisk, PrioSet};
use bcache_core::layout::uuid_entry::{self, UuidEntry};
use bcache_core::ops::check::{CheckOptions, check};
use bcache_core::units::{BucketIndex, Gen};
use serde::Deserialize;
use std::path::{Path, PathBuf};
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

/// Writes a journal entry with `keys` behind the newest one, and gives its byte on the device. It is
/// the newest then.
///
/// # Errors
/// When there is no set, or no room in the newest entry's bucket.
pub fn append_entry(image: &Path, keys: &[Bkey]) -> anyhow::Result<u64> {
    let (byte, bytes) = with_cache_set(image, |set| {
        let newest = set.journal.newest().context("no entry")?;
        let places = set.journal.append_places(&set.cache).context("no place")?;
        let (place, left) = places.after_newest.context("the bucket is full")?;
        let mut params = JsetParams::of(&newest.jset, keys);
        params.seq += 1;
        let entry = jset::encode(&params, set.cache.magic()).context("no entry of these")?;
        let mut bytes = entry.as_bytes().to_vec();
        let block = usize::try_from(set.geometry().block_bytes())?;
        bytes.resize(bytes.len().next_multiple_of(block), 0);
        ensure!(bytes.len() as u64 <= left, "no room");
        Ok((set.geometry().bucket_to_sector(place.bucket).bytes() + place.offset, bytes))
    })?;
    write_at(image, byte, &bytes)?;
    Ok(byte)
}

/// Writes the newest journal entry anew, with another `last_seq`.
///
/// # Errors
/// When there is no set.
pub fn set_last_seq(image: &Path, last_seq: impl FnOnce(&Jset) -> u64) -> anyhow::Result<()> {
    let (byte, bytes) = with_cache_set(image, |set| {
        let newest = set.journal.newest().context("no entry")?;
        let keys: Vec<Bkey> = newest.jset.keys().collect();
        let mut params = JsetParams::of(&newest.jset, &keys);
        params.last_seq = last_seq(&newest.jset);
        let entry = jset::encode(&params, set.cache.magic()).context("no entry of these")?;
        let start = set.geometry().bucket_to_sector(newest.place.bucket).bytes();
        Ok((start + newest.place.offset, entry.as_bytes().to_vec()))
    })?;
    write_at(image, byte, &bytes)
}

/// Raises the gen of a bucket in the prio chain.
///
/// # Errors
/// When there is no set, or no such bucket.
pub fn raise_gen(image: &Path, bucket: u64) -> anyhow::Result<()> {
    let (byte, bytes) = with_cache_set(image, |set| {
        let geometry = set.geometry();
        let per_set = geometry.prios_per_bucket();
        let nth = usize::try_from(bucket / per_set)?;
        let place = *set.prios.buckets.get(nth).context("no such set")?;
        let mut bytes = vec![0; usize::try_from(geometry.meta_bucket_bytes())?];
        set.cache.read_bucket(place, 0, &mut bytes)?;
        let old = PrioSet::parse(&bytes, set.cache.magic())?;
        let (seq, next) = (old.seq(), old.next_bucket());
        let mut entries: Vec<BucketDisk> = old.entries().collect();
        let entry = entries.get_mut(usize::try_from(bucket % per_set)?).context("no bucket")?;
        entry.bucket_gen = Gen(entry.bucket_gen.0.wrapping_add(1));
        prio_set::encode_into(&mut bytes, set.cache.magic(), seq, next, entries.into_iter());
        Ok((geometry.bucket_to_sector(place).bytes(), bytes))
    })?;
    write_at(image, byte, &bytes)
}

/// Puts a volume into the first free slot of the uuid table.
///
/// # Errors
/// When there is no set, or no slot is free.
pub fn add_volume(image: &Path, entry: &UuidEntry) -> anyhow::Result<()> {
    let byte = with_cache_set(image, |set| {
        let slot = set.uuids.slots.iter().position(UuidEntry::is_empty).context("no free slot")?;
        let bucket = set.uuids.bucket.context("no table")?;
        Ok(set.geometry().bucket_to_sector(bucket).bytes() + slot as u64 * 128)
    })?;
    write_at(image, byte, &uuid_entry::encode(entry))
}

/// Flips bits of one byte.
///
/// # Errors
/// When the image cannot be read or written.
pub fn flip(image: &Path, byte: u64, mask: u8) -> anyhow::Result<()> {
    let mut found = [0];
    open_read(image)?.read_at(byte, &mut found)?;
    write_at(image, byte, &[found[0] ^ mask])
}

/// Byte at which a bucket starts.
///
/// # Errors
/// When the image is no cache device.
pub fn bucket_byte(image: &Path, bucket: u64) -> anyhow::Result<u64> {
    let device = open_read(image)?;
    let cache = CacheDevice::open(&device)?;
    Ok(cache.geometry().bucket_to_sector(BucketIndex(bucket)).bytes())
}

/// Runs `bcachectl writeback` with these devices and arguments.
///
/// # Errors
/// When it cannot be started.
pub fn run_writeback(
    cache: &Path,
    backing: &[PathBuf],
    arguments: &[&str],
) -> anyhow::Result<Output> {
    let mut command = bcachectl()?;
    command.arg("writeback").arg(cache).args(backing).args(arguments).arg("--json");
    command.output().context("run bcachectl")
}

/// Runs `bcachectl writeback --yes --json` and reads what it prints.
///
/// # Errors
/// When it fails.
pub fn writeback(
    cache: &Path,
    backing: &[PathBuf],
    arguments: &[&str],
) -> anyhow::Result<serde_json::Value> {
    let output = run_writeback(cache, backing, &[arguments, &["--yes"]].concat())?;
    let message = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "writeback {arguments:?}: {message}");
    serde_json::from_slice(&output.stdout).with_context(|| format!("writeback {arguments:?}"))
}
