//! `bcache-super-show`: the superblock, one field a line.

use std::fmt::Write as _;
use std::fs::File;
use std::path::Path;
use std::process::ExitCode;

use bcache_core::device::{ReadDevice as _, open_read};
use bcache_core::layout::superblock::{
    BackingState, CacheMode, Kind, SB_BYTES, SB_OFFSET_BYTES, SB_SECTOR, Superblock,
    VERSION_BDEV_WITH_OFFSET,
};

use super::getopt::{Word, Words};
use super::{Call, definition, reason};

/// Bytes of a superblock with its whole journal list: a device that ends before them has none.
const SUPERBLOCK_BYTES_MIN: u64 = 208 + 8 * 256;

/// What was printed, on standard output and on standard error, and how it ended.
struct Shown {
    output: String,
    error: Option<&'static str>,
    status: u8,
}

pub(super) fn run(call: &Call) -> ExitCode {
    let mut force = false;
    let mut devices = Vec::new();
    for word in Words::new(&call.program, &definition("bcache-super-show"), false, &call.arguments)
    {
        match word {
            Word::Option(..) => force = true,
            Word::Operand(device) => devices.push(device),
            Word::Wrong(message) => {
                eprintln!("{message}");
                return usage();
            }
        }
    }
    let [device] = devices.as_slice() else { return usage() };
    let shown = show(Path::new(device), force);
    super::print(&shown.output);
    if let Some(error) = shown.error {
        eprintln!("{error}");
    }
    shown.status.into()
}

fn usage() -> ExitCode {
    eprintln!("Usage: bcache-super-show [-f] <device>");
    1.into()
}

/// Prints the superblock of one device, for `bcache show`; an error is the line for standard error.
pub(super) fn print(path: &Path) -> Result<(), String> {
    let shown = show(path, false);
    super::print(&shown.output);
    match (shown.error, shown.status) {
        (None, 0) => Ok(()),
        (error, _) => Err(error.unwrap_or("Failed to detail device").to_owned()),
    }
}

/// Shows the superblock of the device at `path`; with `force`, one whose checksum is wrong, too.
fn show(path: &Path, force: bool) -> Shown {
    if let Err(error) = File::open(path) {
        let output = format!("Can't open dev {}: {}\n", path.display(), reason(&error));
        return Shown { output, error: None, status: 2 };
    }
    match read(path) {
        None => Shown { output: String::new(), error: Some("Couldn't read"), status: 2 },
        Some(sb) => {
            let mut output = String::new();
            let end = fields(&sb, force, &mut output);
            let (error, status) =
                end.err().map_or((None, 0), |(error, status)| (Some(error), status));
            Shown { output, error, status }
        }
    }
}

fn read(path: &Path) -> Option<Superblock> {
    let device = open_read(path).ok()?;
    let bytes_there = device.info().size_bytes.checked_sub(SB_OFFSET_BYTES)?;
    if bytes_there < SUPERBLOCK_BYTES_MIN {
        return None;
    }
    let mut bytes = vec![0; SB_BYTES];
    let len = usize::try_from(bytes_there).map_or(SB_BYTES, |len| len.min(SB_BYTES));
    device.read_at(SB_OFFSET_BYTES, bytes.get_mut(..len)?).ok()?;
    Superblock::from_bytes(&bytes)
}

/// Prints the fields as far as the superblock makes sense; an error is the message and the status.
fn fields(sb: &Superblock, force: bool, out: &mut String) -> Result<(), (&'static str, u8)> {
    // Writing to a string does not fail.
    macro_rules! line {
        ($($argument:tt)*) => { let _ = writeln!(out, $($argument)*); };
    }
    if !sb.magic_ok() {
        line!("sb.magic\t\tbad magic");
        return Err(("Invalid superblock (bad magic)", 2));
    }
    line!("sb.magic\t\tok");
    if sb.offset() != SB_SECTOR {
        line!("sb.first_sector\t\t{} [expected {SB_SECTOR}s]", sb.offset());
        return Err(("Invalid superblock (bad sector)", 2));
    }
    line!("sb.first_sector\t\t{} [match]", sb.offset());
    let csum = sb.csum();
    if sb.csum_ok() {
        line!("sb.csum\t\t\t{csum:X} [match]");
    } else {
        match sb.csum_expected() {
            Some(expected) => {
                line!("sb.csum\t\t\t{csum:X} [expected {expected:X}]");
            }
            // So many journal buckets that the sum would reach past the superblock.
            None => {
                line!("sb.csum\t\t\t{csum:X} [expected none: {} keys]", sb.njournal_buckets());
            }
        }
        if !force {
            return Err(("Corrupt superblock (bad csum)", 2));
        }
    }
    let Some(kind) = sb.kind() else {
        line!("sb.version\t\t{} [unknown]", sb.version());
        return Ok(());
    };
    line!("sb.version\t\t{} [{kind} device]", sb.version());
    line!();
    line!("dev.label\t\t{}", label(sb));
    line!("dev.uuid\t\t{}", sb.uuid());
    line!("dev.sectors_per_block\t{}", sb.block_size().0);
    line!("dev.sectors_per_bucket\t{}", sb.bucket_size().0);
    match kind {
        Kind::Cache => cache(sb, out),
        Kind::Backing => backing(sb, out)?,
    }
    line!();
    line!("cset.uuid\t\t{}", sb.set_uuid());
    Ok(())
}

fn cache(sb: &Superblock, out: &mut String) {
    let yes = |it| if it { "yes" } else { "no" };
    let (bucket, first) = (sb.bucket_size().0, u64::from(sb.first_bucket()));
    let policy = sb.replacement().map_or_else(String::new, |policy| format!(" [{policy}]"));
    let _ = write!(
        out,
        "dev.cache.first_sector\t{}\ndev.cache.cache_sectors\t{}\ndev.cache.total_sectors\t{}\n\
         dev.cache.ordered\t{}\ndev.cache.discard\t{}\ndev.cache.pos\t\t{}\n\
         dev.cache.replacement\t{}{policy}\n",
        bucket.wrapping_mul(first),
        bucket.wrapping_mul(sb.nbuckets().wrapping_sub(first)),
        bucket.wrapping_mul(sb.nbuckets()),
        yes(sb.sync()),
        yes(sb.discard()),
        sb.nr_this_dev(),
        sb.replacement_raw(),
    );
}

fn backing(sb: &Superblock, out: &mut String) -> Result<(), (&'static str, u8)> {
    // Development versions of bcache kept something else here.
    let first_key = sb.as_bytes().get(208..216);
    if sb.version() == VERSION_BDEV_WITH_OFFSET
        && (sb.njournal_buckets() == 1 || first_key.is_some_and(|key| key != [0; 8]))
    {
        return Err(("Possible experimental format detected, bailing", 3));
    }
    let mode = match sb.cache_mode() {
        Some(CacheMode::None) => " [no caching]".to_owned(),
        Some(mode) => format!(" [{mode}]"),
        None => String::new(),
    };
    let state = match sb.state() {
        BackingState::None => "detached",
        BackingState::Clean => "clean",
        BackingState::Dirty => "dirty",
        BackingState::Stale => "inconsistent",
    };
    let _ = write!(
        out,
        "dev.data.first_sector\t{}\ndev.data.cache_mode\t{}{mode}\n\
         dev.data.cache_state\t{} [{state}]\n",
        sb.data_offset().0,
        sb.cache_mode_raw(),
        sb.state().to_raw(),
    );
    Ok(())
}

/// The label with every byte that a shell or a table could stumble over as `%` and its number.
fn label(sb: &Superblock) -> String {
    if sb.label().is_empty() {
        return "(empty)".to_owned();
    }
    let mut text = String::new();
    for &byte in sb.label().as_bytes() {
        if byte.is_ascii_alphanumeric() || b".-_".contains(&byte) {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:x}");
        }
    }
    text
}
