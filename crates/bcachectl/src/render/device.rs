//! A bcache device, as `show` and `make` tell of it.

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::Result;
use bcache_cli::out::{Out, coloured};
use bcache_cli::table::{self, Cell, Color};
use bcache_cli::text;
use bcache_core::device::DeviceInfo;
use bcache_core::inspect::{Answer, Device, Identity, Member};
use bcache_core::layout::superblock::{
    FEATURE_INCOMPAT_LOG_LARGE_BUCKET_SIZE, FEATURE_INCOMPAT_OBSO_LARGE_BUCKET, Kind, Superblock,
    VERSION_BDEV, VERSION_BDEV_WITH_FEATURES, VERSION_BDEV_WITH_OFFSET, VERSION_CDEV,
    VERSION_CDEV_WITH_FEATURES, VERSION_CDEV_WITH_UUID,
};
use bcache_core::layout::verdict::{Verdict, kernel_verdict};
use bcache_core::units::format_bytes;
use serde::{Serialize, Serializer};

/// One device in the JSON output; the man pages document the keys.
#[derive(Clone, Debug, Serialize)]
pub struct DeviceReport {
    /// Path as it was given; JSON is UTF-8, so that other bytes are replaced there.
    #[serde(serialize_with = "lossy")]
    pub path: PathBuf,
    /// Cache or backing; null where there is no bcache superblock.
    pub kind: Option<Kind>,
    /// Size in sectors of 512 bytes.
    pub size_sectors: u64,
    /// The superblock, where there is one.
    pub superblock: Option<SuperblockReport>,
    /// What the kernel says of it.
    pub kernel: KernelReport,
    /// How a backing device's data is reached without bcache.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub data: Option<DataReport>,
    /// What else is on the device, in words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub found: Vec<String>,
    /// Who holds the device, in words.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub in_use: Vec<String>,
    /// What the running kernel says of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub running: Option<RunningReport>,
}

/// A path of any bytes as text. What cannot be told exactly is no reason to fail, least of all when
/// a device has been written.
fn lossy<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&path.to_string_lossy())
}

/// The kernel's verdict.
#[derive(Clone, Debug, Serialize)]
pub struct KernelReport {
    /// Whether it registers the device.
    pub accepts: bool,
    /// The first reason why not, in its words.
    pub error: Option<String>,
    /// What it does not say.
    pub warnings: Vec<String>,
}

impl From<&Verdict> for KernelReport {
    fn from(verdict: &Verdict) -> Self {
        Self {
            accepts: verdict.accepts(),
            error: verdict.refusal.map(|refusal| refusal.to_string()),
            warnings: verdict.warnings.iter().map(ToString::to_string).collect(),
        }
    }
}

/// Where the data of a backing device starts, and how to mount it without bcache.
#[derive(Clone, Debug, Serialize)]
pub struct DataReport {
    /// Bytes before the data.
    pub offset_bytes: u64,
    /// A command that makes it a device of its own, read-only.
    pub losetup: String,
    /// A command that mounts it, where it is a file system.
    pub mount: String,
    /// What it is, in words; null where that is not known.
    pub contents: Option<String>,
    /// The commands that reach it, read-only, one after the other.
    pub commands: Vec<String>,
    /// Whether the data is incomplete without the cache.
    pub needs_cache: bool,
}

/// What sysfs says of a device that the kernel has registered.
#[derive(Clone, Debug, Default, Serialize)]
pub struct RunningReport {
    /// What it is registered as.
    #[serde(skip)]
    pub kind: Option<Kind>,
    /// Name of the bcache device of a backing device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device: Option<String>,
    /// Uuid of the running set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub set_uuid: Option<String>,
    /// State of a backing device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub state: Option<String>,
    /// Cache mode of a backing device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_mode: Option<String>,
    /// Dirty data of a backing device, as the kernel rounds it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dirty_data: Option<String>,
    /// The kernel did not answer, and nothing but names is known.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub not_answering: bool,
}

impl RunningReport {
    /// That the kernel did not answer, as a sentence about `path`.
    pub fn silence(&self, path: &Path) -> Option<String> {
        let path = path.display();
        self.not_answering.then(|| {
            format!(
                "{path}: the kernel does not say how it runs: it holds bcache's lock, as it does \
                 while it registers a cache"
            )
        })
    }
}

/// A superblock.
#[derive(Clone, Debug, Serialize)]
pub struct SuperblockReport {
    /// "ok" or "bad"; "missing" where the superblock is gone, and this is what the rest tells of it.
    pub checksum: &'static str,
    /// Version.
    pub version: u64,
    /// Uuid of the device.
    pub uuid: String,
    /// Uuid of the set.
    pub set_uuid: String,
    /// Label.
    pub label: String,
    /// All flags.
    pub flags: u64,
    /// The flags that nobody knows.
    pub flags_unknown: u64,
    /// Sequence number.
    pub seq: u64,
    /// Block size.
    pub block_size_sectors: u64,
    /// When the kernel last registered the device, in seconds since 1970.
    pub last_mount: u32,
    /// Compatible features.
    pub feature_compat: u64,
    /// Incompatible features.
    pub feature_incompat: u64,
    /// Read-only compatible features.
    pub feature_ro_compat: u64,
    /// What only a cache device has.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub cache: Option<CacheFields>,
    /// What only a backing device has.
    #[serde(flatten, skip_serializing_if = "Option::is_none")]
    pub backing: Option<BackingFields>,
}

/// What only a cache device's superblock has.
#[derive(Clone, Debug, Serialize)]
pub struct CacheFields {
    /// Bucket size, decoded.
    pub bucket_size_sectors: u64,
    /// Number of buckets.
    pub nbuckets: u64,
    /// First bucket of journal and data.
    pub first_bucket: u16,
    /// Number of journal buckets.
    pub njournal_buckets: u16,
    /// Devices in the set.
    pub nr_in_set: u16,
    /// Number of this one.
    pub nr_this_dev: u16,
    /// Replacement policy.
    pub replacement: String,
    /// Whether there is data on the device.
    pub sync: bool,
    /// Whether the kernel discards buckets.
    pub discard: bool,
}

/// What only a backing device's superblock has.
#[derive(Clone, Debug, Serialize)]
pub struct BackingFields {
    /// Where the data starts.
    pub data_offset_sectors: u64,
    /// Cache mode.
    pub cache_mode: String,
    /// State.
    pub state: &'static str,
}

impl SuperblockReport {
    /// From a superblock with the right magic.
    pub fn new(sb: &Superblock) -> Self {
        let unknown = |name: Option<&'static str>, raw: u8| {
            name.map_or_else(|| format!("unknown ({raw})"), ToOwned::to_owned)
        };
        let cache = (sb.kind() == Some(Kind::Cache)).then(|| CacheFields {
            bucket_size_sectors: sb.bucket_size().0,
            nbuckets: sb.nbuckets(),
            first_bucket: sb.first_bucket(),
            njournal_buckets: sb.njournal_buckets(),
            nr_in_set: sb.nr_in_set(),
            nr_this_dev: sb.nr_this_dev(),
            replacement: unknown(
                sb.replacement().map(bcache_core::layout::superblock::Replacement::name),
                sb.replacement_raw(),
            ),
            sync: sb.sync(),
            discard: sb.discard(),
        });
        let backing = (sb.kind() == Some(Kind::Backing)).then(|| BackingFields {
            data_offset_sectors: sb.data_offset().0,
            cache_mode: unknown(
                sb.cache_mode().map(bcache_core::layout::superblock::CacheMode::name),
                sb.cache_mode_raw(),
            ),
            state: sb.state().name(),
        });
        Self {
            checksum: if sb.csum_ok() { "ok" } else { "bad" },
            version: sb.version(),
            uuid: sb.uuid().to_string(),
            set_uuid: sb.set_uuid().to_string(),
            label: sb.label().to_string(),
            flags: sb.flags(),
            flags_unknown: sb.flags_unknown(),
            seq: sb.seq(),
            block_size_sectors: sb.block_size().0,
            last_mount: sb.last_mount(),
            feature_compat: sb.feature_compat(),
            feature_incompat: sb.feature_incompat(),
            feature_ro_compat: sb.feature_ro_compat(),
            cache,
            backing,
        }
    }
}

impl DeviceReport {
    /// What the bytes on a device say, without what the machine says of it.
    pub fn new(device: &Device<'_>) -> Self {
        let mut report = Self::of_superblock(device.handle.info(), device.superblock.as_ref());
        if let Some(verdict) = &device.verdict {
            report.kernel = KernelReport::from(verdict);
        }
        let damage = match device.identity {
            Identity::MagicWiped(_) => {
                "a bcache superblock whose magic was wiped; all else is whole"
            }
            Identity::Damaged(_) => {
                report.superblock = device.as_found.as_ref().map(SuperblockReport::new);
                "a bcache superblock that was damaged in one place, which its checksum tells"
            }
            Identity::SuperblockGone => {
                if let Some(superblock) = &mut report.superblock {
                    superblock.checksum = "missing";
                }
                "a cache set whose superblock is gone; what it was, the rest tells in part"
            }
            Identity::NotBcache if device.remains_at.is_some() => {
                "the journal of a cache set whose superblock is gone"
            }
            Identity::Cache
            | Identity::Backing
            | Identity::UnknownVersion
            | Identity::NotBcache => return report,
        };
        report.found.push(damage.into());
        report
    }

    /// The same of a device with `superblock`, which is what stands where one would be, if the
    /// device is long enough.
    pub fn of_superblock(info: &DeviceInfo, superblock: Option<&Superblock>) -> Self {
        let target = info.target();
        let kernel = superblock.map_or_else(
            || KernelReport { accepts: false, error: Some("IO error".into()), warnings: vec![] },
            |sb| KernelReport::from(&kernel_verdict(sb, &target)),
        );
        let bcache = superblock.filter(|sb| sb.magic_ok());
        let data = bcache
            .filter(|sb| sb.kind() == Some(Kind::Backing))
            .map(|sb| DataReport::new(&info.path, sb));
        Self {
            path: info.path.clone(),
            kind: bcache.and_then(Superblock::kind),
            size_sectors: info.size().0,
            superblock: bcache.map(SuperblockReport::new),
            kernel,
            data,
            found: Vec::new(),
            in_use: Vec::new(),
            running: None,
        }
    }

    /// Takes over what a look at the whole group says of the data without the cache.
    pub fn note_stakes(&mut self, member: &Member<'_>) {
        if member.device.older_set.is_some() {
            // It is a cache.
            self.data = None;
        } else if let Some(data) = &mut self.data {
            data.needs_cache |= member.stakes.answer != Answer::None;
        }
    }

    /// Whether there is a bcache superblock with a good checksum.
    pub fn is_sound(&self) -> bool {
        self.superblock.as_ref().is_some_and(|sb| sb.checksum == "ok") && self.kind.is_some()
    }
}

impl DataReport {
    fn new(path: &Path, sb: &Superblock) -> Self {
        let offset_bytes = sb.data_offset().bytes();
        let losetup = format!(
            "losetup --find --show --read-only --offset {offset_bytes} {}",
            shell_quoted(path)
        );
        let mount = format!("mount -o ro,loop,offset={offset_bytes} {} /mnt", shell_quoted(path));
        let needs_cache = sb.state().lacks_data();
        let commands = vec![losetup.clone(), mount.clone()];
        Self { offset_bytes, losetup, mount, contents: None, commands, needs_cache }
    }
}

/// A path as a shell takes it.
pub fn shell_quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-+:@%,=".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text;
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

fn version_name(version: u64) -> &'static str {
    match version {
        VERSION_CDEV => "cache device",
        VERSION_BDEV => "backing device",
        VERSION_CDEV_WITH_UUID => "cache device with UUIDs",
        VERSION_BDEV_WITH_OFFSET => "backing device with data offset",
        VERSION_CDEV_WITH_FEATURES => "cache device with features",
        VERSION_BDEV_WITH_FEATURES => "backing device with features",
        _ => "unknown",
    }
}

fn flag_names(sb: &SuperblockReport) -> String {
    let mut names = Vec::new();
    if let Some(cache) = &sb.cache {
        if cache.sync {
            names.push("sync".to_owned());
        }
        if cache.discard {
            names.push("discard".to_owned());
        }
        names.push(format!("replacement={}", cache.replacement));
    }
    if let Some(backing) = &sb.backing {
        names.push(format!("cache_mode={}", backing.cache_mode));
        names.push(format!("state={}", backing.state));
    }
    if sb.flags_unknown != 0 {
        names.push(format!("unknown={:#x}", sb.flags_unknown));
    }
    format!("{:#x} ({})", sb.flags, names.join(", "))
}

fn feature_names(sb: &SuperblockReport) -> String {
    let mut names = Vec::new();
    let incompat = sb.feature_incompat;
    if incompat & FEATURE_INCOMPAT_OBSO_LARGE_BUCKET != 0 {
        names.push("obso_large_bucket".to_owned());
    }
    if incompat & FEATURE_INCOMPAT_LOG_LARGE_BUCKET_SIZE != 0 {
        names.push("large_bucket".to_owned());
    }
    let known = FEATURE_INCOMPAT_OBSO_LARGE_BUCKET | FEATURE_INCOMPAT_LOG_LARGE_BUCKET_SIZE;
    for (word, bits) in [
        ("incompat", incompat & !known),
        ("compat", sb.feature_compat),
        ("ro_compat", sb.feature_ro_compat),
    ] {
        if bits != 0 {
            names.push(format!("unknown {word} {bits:#x}"));
        }
    }
    names.join(", ")
}

fn sectors(count: u64) -> String {
    format!("{} ({})", text::plural(count, "sector"), format_bytes(count.saturating_mul(512)))
}

/// The label for a table.
pub fn label_or_dash(label: &str) -> &str {
    if label.is_empty() { "-" } else { label }
}

/// Tells of one device in full.
pub fn render(out: &mut Out, report: &DeviceReport) -> Result<()> {
    headline(out, report)?;
    fields(out, report, Verbosity::Full)
}

/// How much of a superblock is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verbosity {
    /// What a person asks for.
    Short,
    /// Every field.
    Full,
}

/// One line: what the device is, what the kernel says of it, and whether somebody holds it.
pub fn headline(out: &mut Out, report: &DeviceReport) -> Result<()> {
    let kind = match (&report.kind, &report.superblock) {
        (Some(kind), _) => format!("bcache {kind} device"),
        (None, Some(_)) => "bcache device of an unknown version".to_owned(),
        (None, None) => "no bcache device".to_owned(),
    };
    let style = out.style();
    let kernel = match &report.kernel.error {
        None => coloured(style, Color::Green, "the kernel accepts it"),
        Some(error) => coloured(style, Color::Red, &format!("the kernel refuses it: {error}")),
    };
    let held = if report.in_use.is_empty() { "" } else { "in use; " };
    writeln!(out, "{}: {kind}; {held}{kernel}", report.path.display())?;
    Ok(())
}

/// A table of what the superblock says and of what was found. A superblock whose checksum is bad is
/// told in full: any field of it may be what is wrong.
pub fn fields(out: &mut Out, report: &DeviceReport, verbosity: Verbosity) -> Result<()> {
    let style = out.style();
    let mut body = table::bare(style);
    let mut add = |name: &str, value: Cell| {
        body.add_row(vec![table::heading(style, name), value]);
    };
    if report.data.as_ref().is_some_and(|data| data.needs_cache) {
        let text = "INCOMPLETE: it may lack data that only its cache has";
        add("warning", table::state(style, text, Color::Yellow));
    }
    for warning in &report.kernel.warnings {
        add("warning", table::state(style, warning, Color::Yellow));
    }
    let prose = report.found.iter().map(|found| ("also found", found));
    for (name, value) in prose.chain(report.in_use.iter().map(|holder| ("in use", holder))) {
        add(name, Cell::prose(value));
    }
    if let Some(running) = &report.running {
        add("running", Cell::prose(running));
    }
    let bad = report.superblock.as_ref().is_some_and(|sb| sb.checksum != "ok");
    let rows = match (&report.superblock, verbosity) {
        (Some(sb), Verbosity::Short) if !bad => short_rows(report, sb),
        (Some(sb), _) => full_rows(report, sb),
        (None, _) => vec![("size", sectors(report.size_sectors))],
    };
    for (name, value) in rows {
        add(name, Cell::new(value));
    }
    if let Some(data) = &report.data {
        if let Some(contents) = &data.contents {
            add("data", Cell::prose(contents));
        }
        for (index, command) in data.commands.iter().enumerate() {
            add(if index == 0 { "data without bcache" } else { "" }, Cell::new(command));
        }
    }
    if bad {
        let gone = report.superblock.as_ref().is_some_and(|sb| sb.checksum == "missing");
        add("checksum", table::state(style, if gone { "missing" } else { "BAD" }, Color::Red));
    } else if report.superblock.is_some() && verbosity == Verbosity::Full {
        add("checksum", table::state(style, "ok", Color::Green));
    }
    writeln!(out, "{body}")?;
    Ok(())
}

type Row = (&'static str, String);

/// What a person asks for; the rest is as usual, or told in [`full_rows`].
fn short_rows(report: &DeviceReport, sb: &SuperblockReport) -> Vec<Row> {
    let size = |sectors: u64| format_bytes(sectors.saturating_mul(512));
    let mut rows = vec![
        ("set uuid", sb.set_uuid.clone()),
        ("uuid", sb.uuid.clone()),
        ("label", sb.label.clone()),
        ("size", size(report.size_sectors)),
    ];
    if let Some(cache) = &sb.cache {
        rows.push((
            "buckets",
            format!("{} of {}", cache.nbuckets, size(cache.bucket_size_sectors)),
        ));
        rows.push(("block size", size(sb.block_size_sectors)));
        rows.push(("replacement", cache.replacement.clone()));
        if cache.nr_in_set != 1 {
            rows.push(("device in set", format!("{} of {}", cache.nr_this_dev, cache.nr_in_set)));
        }
        if !cache.sync {
            rows.push(("holds", HOLDS_NOTHING.to_owned()));
        }
    }
    if let Some(backing) = &sb.backing {
        rows.push(("state", backing.state.to_owned()));
        rows.push(("cache mode", backing.cache_mode.clone()));
        rows.push(("block size", size(sb.block_size_sectors)));
        rows.push(("data offset", size(backing.data_offset_sectors)));
    }
    if sb.flags_unknown != 0 {
        rows.push(("flags", flag_names(sb)));
    }
    if sb.last_mount != 0 {
        rows.push(("last registered", text::date(sb.last_mount)));
    }
    rows.retain(|(name, value)| *name != "label" || !value.is_empty());
    rows
}

const HOLDS_NOTHING: &str = "nothing: the kernel starts it afresh";

/// Every field.
fn full_rows(report: &DeviceReport, sb: &SuperblockReport) -> Vec<Row> {
    let mut rows = vec![
        ("size", sectors(report.size_sectors)),
        ("version", format!("{} ({})", sb.version, version_name(sb.version))),
        ("uuid", sb.uuid.clone()),
        ("set uuid", sb.set_uuid.clone()),
        ("label", if sb.label.is_empty() { "(none)".into() } else { sb.label.clone() }),
        ("flags", flag_names(sb)),
    ];
    if sb.version >= VERSION_CDEV_WITH_FEATURES {
        rows.push(("features", feature_names(sb)));
    }
    rows.push(("seq", sb.seq.to_string()));
    if sb.last_mount != 0 {
        rows.push(("last registered", text::date(sb.last_mount)));
    }
    rows.push(("block size", sectors(sb.block_size_sectors)));
    if let Some(cache) = &sb.cache {
        let holds = if cache.sync { "data of earlier use (sync)" } else { HOLDS_NOTHING };
        rows.extend([
            ("bucket size", sectors(cache.bucket_size_sectors)),
            ("buckets", format!("{}, from bucket {}", cache.nbuckets, cache.first_bucket)),
            ("journal buckets", cache.njournal_buckets.to_string()),
            ("device in set", format!("{} of {}", cache.nr_this_dev, cache.nr_in_set)),
            ("replacement", cache.replacement.clone()),
            ("discard", if cache.discard { "yes".into() } else { "no".into() }),
            ("holds", holds.to_owned()),
        ]);
    }
    if let Some(backing) = &sb.backing {
        rows.extend([
            ("data offset", sectors(backing.data_offset_sectors)),
            ("cache mode", backing.cache_mode.clone()),
            ("state", backing.state.to_owned()),
        ]);
    }
    rows
}

impl std::fmt::Display for RunningReport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut parts = Vec::new();
        for (name, value) in [
            ("as", &self.device),
            ("set", &self.set_uuid),
            ("state", &self.state),
            ("mode", &self.cache_mode),
            ("dirty", &self.dirty_data),
        ] {
            if let Some(value) = value {
                parts.push(format!("{name} {value}"));
            }
        }
        f.write_str(&parts.join(", "))
    }
}
