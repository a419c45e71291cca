//! `make-bcache`: formats cache and backing devices.
//!
//! The work is [`bcache_core::ops::make`]'s: nothing is written before everything is planned, and
//! what the kernel would refuse is refused here.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use bcache_cli::size::{SizeError, parse_bytes};
use bcache_core::device::{DeviceError, DeviceKind, holders};
use bcache_core::layout::superblock::{
    BDEV_DATA_START_DEFAULT, CacheMode, Kind, Label, Replacement, SB_LABEL_BYTES, Superblock,
};
use bcache_core::layout::verdict::NBUCKETS_MIN;
use bcache_core::ops::make::{
    self, BUCKET_SIZE_DEFAULT, DevicePlan, MakeError, Options, Override, RunError, check_distinct,
    facts_of, open_for_real,
};
use bcache_core::units::{SECTOR_BYTES, Sectors};
use uuid::Uuid;

use super::getopt::{Word, Words};
use super::{Call, definition, reason};

/// Most sectors of a bucket or a block.
const SIZE_MAX_SECTORS: u64 = 65535;

const USAGE: &str = "\
Usage: make-bcache [options] device
\t-C, --cache\t\tFormat a cache device
\t-B, --bdev\t\tFormat a backing device
\t-b, --bucket\t\tbucket size
\t-w, --block\t\tblock size (hard sector size of SSD, often 2k)
\t-o, --data-offset\tdata offset in sectors
\t    --cset-uuid\t\tUUID for the cache set
\t    --writeback\t\tenable writeback
\t    --discard\t\tenable discards
\t    --cache_replacement_policy=(lru|fifo)
\t-h, --help\t\tdisplay this help and exit
";

/// Why nothing, or not everything, was formatted: the lines to print.
struct Refused(String);

impl<E: std::error::Error> From<E> for Refused {
    fn from(error: E) -> Self {
        let chain = std::iter::successors(Some(&error as &dyn std::error::Error), |it| it.source());
        Self(format!(
            "make-bcache: {}",
            chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
        ))
    }
}

fn refused<T>(message: impl Into<String>) -> Result<T, Refused> {
    Err(Refused(message.into()))
}

/// Whose habits to follow.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Style {
    /// `make-bcache` of 1.0.8.
    #[default]
    MakeBcache,
    /// `bcache make` of 1.1.
    BcacheMake,
}

/// What the command line asks for.
#[derive(Default)]
struct Request {
    style: Style,
    options: Options,
    /// Whether bcache superblocks may go where no dirty data goes with them.
    force: bool,
    caches: Vec<PathBuf>,
    backings: Vec<PathBuf>,
}

pub(super) fn run(call: &Call) -> ExitCode {
    run_as(call, Style::MakeBcache)
}

/// Runs `bcache make` with these arguments.
pub(super) fn run_subcommand(arguments: &[OsString]) -> ExitCode {
    let call = Call { program: "make".to_owned(), arguments: arguments.to_vec() };
    run_as(&call, Style::BcacheMake)
}

fn run_as(call: &Call, style: Style) -> ExitCode {
    match parse(call, style).and_then(|request| format(&request)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(Refused(lines)) => {
            eprintln!("{}", lines.trim_end());
            1.into()
        }
    }
}

fn parse(call: &Call, style: Style) -> Result<Request, Refused> {
    let mut request = Request {
        style,
        // What a device too small for 513 of them gets is for the user to say.
        options: Options { bucket_bytes: Some(BUCKET_SIZE_DEFAULT.bytes()), ..Options::default() },
        ..Request::default()
    };
    let mut kind = None;
    let mut wrong = String::new();
    for word in Words::new(&call.program, &definition("make-bcache"), true, &call.arguments) {
        match word {
            Word::Operand(device) => match kind {
                Some(Kind::Cache) => request.caches.push(device.into()),
                Some(Kind::Backing) => request.backings.push(device.into()),
                None => return refused(format!("{wrong}Please specify -C or -B")),
            },
            Word::Option(name, value) => match name.as_str() {
                "cache" => kind = Some(Kind::Cache),
                "bdev" => kind = Some(Kind::Backing),
                "help" => return refused(format!("{wrong}{USAGE}")),
                _ => option(&mut request, &name, value)
                    .map_err(|Refused(lines)| Refused(format!("{wrong}{lines}")))?,
            },
            Word::Wrong(message) => {
                wrong.push_str(&message);
                wrong.push('\n');
            }
        }
    }
    if request.caches.is_empty() && request.backings.is_empty() {
        return refused(format!("{wrong}Please supply a device\n{USAGE}"));
    }
    // An option that is not understood may be the one that would have kept a device.
    if !wrong.is_empty() {
        return refused(format!("{wrong}make-bcache: nothing was formatted"));
    }
    let Options { bucket_bytes, block_bytes, .. } = request.options;
    if bucket_bytes < block_bytes {
        return refused("Bucket size cannot be smaller than block size");
    }
    Ok(request)
}

fn option(request: &mut Request, name: &str, value: Option<OsString>) -> Result<(), Refused> {
    let value = value.unwrap_or_default();
    let text = value.to_string_lossy();
    let options = &mut request.options;
    match name {
        "bucket" => {
            let most = match request.style {
                Style::MakeBcache => SIZE_MAX_SECTORS,
                // A superblock of version 5 tells larger ones; what the kernel takes is known later.
                Style::BcacheMake => u64::MAX,
            };
            options.bucket_bytes = Some(size(&text, "bucket size", most)?);
        }
        "block" => options.block_bytes = Some(size(&text, "block size", SIZE_MAX_SECTORS)?),
        "data_offset" => options.data_offset = Some(data_offset(&text)?),
        "cset-uuid" => options.set_uuid = Some(set_uuid(&text)?),
        "label" => options.label = label(&value)?,
        "cache_replacement_policy" => options.replacement = policy(&text)?,
        "writeback" => options.cache_mode = CacheMode::Writeback,
        "wipe-bcache" => options.wipe_bcache = true,
        "discard" => options.discard = true,
        "force" => request.force = true,
        // -U was never given a meaning.
        _ => {}
    }
    Ok(())
}

fn size(text: &str, what: &str, sectors_max: u64) -> Result<u64, Refused> {
    let bytes = match parse_bytes(text) {
        Ok(bytes) => bytes,
        Err(SizeError::Zero) => return refused(format!("{what} too small")),
        Err(SizeError::TooLarge { .. }) => return refused(format!("{what} too large")),
        Err(error) => return refused(format!("{what}: {error}")),
    };
    if !bytes.is_power_of_two() {
        return refused(format!("{what} must be a power of two"));
    }
    match bytes / SECTOR_BYTES {
        0 => refused(format!("{what} too small")),
        sectors if sectors > sectors_max => refused(format!("{what} too large")),
        _ => Ok(bytes),
    }
}

/// A number of sectors, whatever follows it: `161280k` is 161280 sectors, and a warning.
fn data_offset(text: &str) -> Result<Sectors, Refused> {
    let text = text.trim_start();
    let end = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, rest) = text.split_at(end);
    let sectors = number.parse().map_or(Sectors(0), Sectors);
    if sectors < BDEV_DATA_START_DEFAULT {
        return refused(format!("Bad data offset; minimum {} sectors", BDEV_DATA_START_DEFAULT.0));
    }
    if !rest.is_empty() {
        eprintln!(
            "make-bcache: the data offset is a number of sectors: {text} is taken for {} sectors \
             ({sectors})",
            sectors.0
        );
    }
    Ok(sectors)
}

fn set_uuid(text: &str) -> Result<Uuid, Refused> {
    match Uuid::try_parse(text) {
        Ok(uuid) if text.len() == uuid::fmt::Hyphenated::LENGTH => Ok(uuid),
        _ => refused("Bad uuid"),
    }
}

fn label(value: &OsStr) -> Result<Label, Refused> {
    match value.to_str().and_then(Label::new) {
        Some(label) => Ok(label),
        None => refused(format!("Label is too long; at most {} bytes", SB_LABEL_BYTES - 1)),
    }
}

fn policy(text: &str) -> Result<Replacement, Refused> {
    match Replacement::from_name(text) {
        Some(policy) => Ok(policy),
        None => refused(format!("Unknown replacement policy {text}; lru, fifo or random")),
    }
}

/// Formats what is asked for, cache devices first, and prints what was made.
fn format(request: &Request) -> Result<(), Refused> {
    let caches = request.caches.iter().map(|path| (Kind::Cache, path));
    let devices: Vec<_> =
        caches.chain(request.backings.iter().map(|path| (Kind::Backing, path))).collect();
    if request.options.block_bytes.is_none() {
        for (_, path) in &devices {
            if let Err(error) = fs::metadata(path) {
                return refused(format!("Error statting {}: {}", path.display(), reason(&error)));
            }
        }
    }
    let paths: Vec<PathBuf> = devices.iter().map(|(_, path)| PathBuf::from(path)).collect();
    let mut facts = Vec::new();
    for (kind, path) in devices {
        facts.push(facts_of(kind, path, Some(crate::scan::backing_devices)).map_err(cannot_open)?);
    }
    check_distinct(&paths)?;
    let mut options = request.options.clone();
    // Neither loses data that exists nowhere else: what is planned from reads the cache first.
    options.wipe_bcache |= request.force;
    let plans = make::plan(&options, facts, &mut Uuid::new_v4).map_err(|error| no_plan(&error))?;
    let outcome = make::run(&plans, &mut open_for_real, &mut |_, _| {});
    let formatted: Vec<&DevicePlan> =
        plans.iter().filter(|it| outcome.formatted.contains(&it.facts.info.path)).collect();
    for plan in &formatted {
        let made = match request.style {
            Style::MakeBcache => made(&plan.superblock),
            Style::BcacheMake => made_by_1_1(&plan.facts.info.path, &plan.superblock),
        };
        super::print(&made);
    }
    if formatted.iter().any(|plan| plan.facts.info.kind == DeviceKind::Block) {
        crate::udev::settle();
    }
    match outcome.failed {
        None => Ok(()),
        Some((_, error)) => Err(cannot_open(error)),
    }
}

fn cannot_open(error: RunError) -> Refused {
    let text = |path: &Path, reason: &str| format!("Can't open dev {}: {reason}", path.display());
    match &error {
        RunError::Device(DeviceError::Open { path, source }) => {
            Refused(text(path, &reason(source)))
        }
        RunError::Device(DeviceError::Busy { path, holders }) => {
            let holders = holders::describe(holders);
            let busy = text(path, nix::errno::Errno::EBUSY.desc());
            Refused(format!("{busy}\nmake-bcache: {} is in use{holders}", path.display()))
        }
        RunError::Device(DeviceError::NotADevice { path }) if path.is_dir() => {
            Refused(text(path, nix::errno::Errno::EISDIR.desc()))
        }
        _ => error.into(),
    }
}

fn no_plan(error: &MakeError) -> Refused {
    match error {
        MakeError::WouldDestroy { path, missing, .. } => {
            let path = path.display();
            let words = crate::render::make_words::refusal(error);
            Refused(if missing.contains(&Override::LoseDirtyData) {
                format!(
                    "Already a bcache device on {path}, overwrite with --wipe-bcache\n\
                     make-bcache: {words} (options of bcachectl make)"
                )
            } else if missing.contains(&Override::Force) {
                format!(
                    "Device {path} already has a non-bcache superblock, remove it using wipefs \
                     and wipefs -a"
                )
            } else {
                format!("Already a bcache device on {path}, overwrite with --wipe-bcache")
            })
        }
        MakeError::TooFewBuckets { nbuckets, .. } => {
            Refused(format!("Not enough buckets: {nbuckets}, need {NBUCKETS_MIN}"))
        }
        _ => Refused(format!("make-bcache: {}", crate::render::make_words::refusal(error))),
    }
}

/// What is printed of a device that was formatted.
fn made(sb: &Superblock) -> String {
    let uuids = format!(
        "UUID:\t\t\t{}\nSet UUID:\t\t{}\nversion:\t\t{}\n",
        sb.uuid(),
        sb.set_uuid(),
        sb.version()
    );
    let block_size = sb.block_size().0;
    match sb.kind() {
        Some(Kind::Cache) => format!(
            "{uuids}nbuckets:\t\t{}\nblock_size:\t\t{block_size}\nbucket_size:\t\t{}\n\
             nr_in_set:\t\t{}\nnr_this_dev:\t\t{}\nfirst_bucket:\t\t{}\n",
            sb.nbuckets(),
            sb.bucket_size().0,
            sb.nr_in_set(),
            sb.nr_this_dev(),
            sb.first_bucket()
        ),
        _ => {
            format!("{uuids}block_size:\t\t{block_size}\ndata_offset:\t\t{}\n", sb.data_offset().0)
        }
    }
}

/// The same as `bcache make` of 1.1 prints it.
fn made_by_1_1(path: &Path, sb: &Superblock) -> String {
    let kind = match sb.kind() {
        Some(Kind::Cache) => "cache",
        _ => "data",
    };
    let lines = made(sb)
        .replace("block_size:\t\t", "block_size_in_sectors:\t")
        .replace("bucket_size:\t\t", "bucket_size_in_sectors:\t")
        .replace("data_offset:\t\t", "data_offset_in_sectors:\t");
    format!("Name\t\t\t{}\nLabel\t\t\t{}\nType\t\t\t{kind}\n{lines}\n", path.display(), sb.label())
}
