//! Volumes as sources: the devices, the set and the volume that a command reads from.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use bcache_cli::progress::Progress;
use bcache_core::cache_set::{
    self, Below, CacheSet, NewestEntry, Problem, ReadOptions, Visitor, VolumeReader,
};
use bcache_core::device::{FileReader, ReadDevice, open_unused};
use bcache_core::inspect::{Apart, BackingDevices, Contents, Device, Doubt, Identity, Volumes};
use bcache_core::layout::superblock::{BackingState, Kind, Superblock};
use bcache_core::layout::verdict::kernel_verdict;
use bcache_core::units::Sectors;

use super::{copies, holding};
use crate::cli::export::VolumeArgs;
use crate::scan;
use crate::stakes::{VolumeReport, find_volume};

/// Problems that are told one by one.
const PROBLEMS_TOLD: usize = 5;

/// What may be missing.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lenience {
    /// The backing device.
    pub missing_backing: bool,
    /// First sector of the data on it, whatever its superblock says.
    pub data_offset: Option<Sectors>,
}

/// A volume, ready to be read.
pub struct Volume<'s, 'd> {
    /// Reads it.
    pub reader: VolumeReader<'s, 'd>,
    /// How long it is.
    pub size: Sectors,
    /// Who it is.
    pub report: VolumeReport,
    /// The files it is read from.
    pub sources: Vec<PathBuf>,
    /// What is wrong with the set.
    pub problems: Vec<String>,
    /// Whether its two devices may be of different times, and the whole a mixture of old and newer data.
    pub may_be_mixed: bool,
}

#[derive(Default)]
struct Problems {
    progress: Option<Progress>,
    told: Vec<String>,
    more: usize,
}

impl Visitor for Problems {
    fn wants_keys(&self) -> bool {
        false
    }

    fn progress(&mut self, progress: cache_set::Progress) {
        if let Some(bar) = &mut self.progress {
            bar.reading(progress);
        }
    }

    fn problem(&mut self, problem: Problem) {
        if !problem.hides_keys() {
            return;
        }
        if self.told.len() < PROBLEMS_TOLD {
            self.told.push(problem.to_string());
        } else {
            self.more += 1;
        }
    }
}

fn open(path: &Path) -> Result<FileReader> {
    open_unused(path).map_err(|error| holding::in_use(error, |_| None))
}

/// A backing device that was named.
struct Named {
    device: FileReader,
    superblock: Superblock,
}

/// Opens the devices, reads the set, and calls `with` with the volume.
pub fn with_volume<T>(
    args: &VolumeArgs,
    lenience: Lenience,
    with: impl FnOnce(Volume<'_, '_>) -> Result<T>,
) -> Result<T> {
    let cache_path = &args.cache;
    let device = open(cache_path)?;
    if device.is_metadata_image() {
        bail!("{} is a metadata image: it holds no data of volumes", cache_path.display());
    }
    let named = args.backing.as_deref().map(open_backing).transpose()?;
    copies::warn(&device, "read")?;
    if let Some(named) = &named {
        copies::warn(&named.device, "read")?;
    }
    let context = || cache_path.display().to_string();
    let options = ReadOptions { newest: NewestEntry::Greatest, ..ReadOptions::default() };
    let mut problems = Problems { progress: Some(Progress::new(context())), ..Problems::default() };
    // Whatever the superblock lacks: where a set can be read, it is.
    let read = Device::read(&device, &options, &mut problems).with_context(context);
    if let Some(mut bar) = problems.progress.take() {
        bar.finish();
    }
    let mut read = read?;
    let mut backing = BackingDevices::with_machine(scan::backing_devices);
    if let Some(named) = &named {
        let verdict = kernel_verdict(&named.superblock, &named.device.info().target());
        backing.add(named.device.info(), &named.superblock, verdict.accepts());
    }
    read.complete_set_uuid(&mut backing);
    problems.told.splice(0..0, superblock_problems(&read));
    tell(cache_path, &problems)?;
    let kind = read.kind();
    let set = match read.contents {
        Contents::Set(found) => found.set,
        Contents::New => bail!(
            "{}: a new cache, which has no volumes yet; `bcachectl check` tells whether an older set is \
             behind its superblock",
            context()
        ),
        Contents::Unreadable(error) => return Err(error).with_context(context),
        Contents::None if kind == Some(Kind::Backing) => {
            bail!("{}: a backing device, not a cache", context())
        }
        Contents::None => bail!("{}: no cache device", context()),
    };
    let volumes = Volumes::new(&set, &mut backing);
    let report = choose(args, &set, &volumes, named.as_ref())?;
    let mut sources = vec![cache_path.clone()];
    let found = match named {
        Some(named) => {
            check_owner(args, &report, &named)?;
            sources.extend(args.backing.clone());
            Some(named)
        }
        None => match &report.backing {
            Some(path) => {
                sources.push(path.clone());
                Some(open_found(&report, path)?)
            }
            None => None,
        },
    };
    let usage = set.volumes.get(&report.slot).copied().unwrap_or_default();
    let end = Sectors(usage.end);
    let mut problems = problems.told;
    let mut may_be_mixed = false;
    let (below, size) = match &found {
        None if report.flash_only => {
            // A size that is lost does not hide what the keys hold.
            let size = set.uuids.get(report.slot).map_or(Sectors(0), |entry| entry.sectors);
            (Below::Nothing, size.max(end))
        }
        Some(found) => {
            if !lenience.missing_backing {
                check_state(&set, found)?;
                let apart = apart(&set, report.slot, found)?;
                may_be_mixed = apart.is_some();
                problems.extend(apart);
            }
            let data_offset = lenience.data_offset.unwrap_or(found.superblock.data_offset());
            let (device, size) = (&found.device, found.device.info().size());
            if end > size {
                problems.push(past_end(&device.info().path, size, end)?);
            }
            // What the cache has past the end of a device that became smaller is the volume's all the same.
            let size = size.max(end).0.saturating_sub(data_offset.0);
            (Below::Backing(device, data_offset), Sectors(size))
        }
        None if lenience.missing_backing => {
            let Some(data_offset) = lenience.data_offset else {
                bail!(
                    "{}: its data offset is not known: give --data-offset (16, unless the device was \
                     made with another)",
                    report.name()
                );
            };
            (Below::Missing(data_offset), Sectors(end.0.saturating_sub(data_offset.0)))
        }
        None => bail!(
            "{}: name its backing device after the cache device, or save what only the cache has \
             with `bcachectl export --dirty-only`",
            report.name()
        ),
    };
    let data_offset = below.data_offset();
    if let Some(start) = usage.start_before(data_offset) {
        let problem = format!(
            "the data offset {} is wrong: the cache holds data from sector {} on; `bcachectl export \
             --dirty-only --data-offset` takes the right one, 16 unless the device was made with another",
            data_offset.0, start
        );
        writeln!(io::stderr(), "bcachectl: warning: {}: {problem}", report.name())?;
        problems.push(problem);
    }
    let reader = VolumeReader::new(&set, report.slot, below);
    with(Volume { reader, size, report, sources, problems, may_be_mixed })
}

/// Says that the volume would be put together of old data and newer data.
fn apart(set: &CacheSet<'_>, slot: u32, found: &Named) -> Result<Option<String>> {
    let Apart { differing, since } = Apart::of(set, slot, &found.device, &found.superblock);
    let why = differing.map(|it| it.to_string()).or(since.map(|it| it.to_string()));
    let Some(why) = why else { return Ok(None) };
    let path = found.device.info().path.display();
    let problem = format!(
        "{path}: {why}: one of the two may be an old copy, and the volume a mixture of old and newer data"
    );
    writeln!(io::stderr(), "bcachectl: warning: {problem}")?;
    Ok(Some(problem))
}

/// Says that the cache holds data past the end of the backing device.
fn past_end(path: &Path, size: Sectors, end: Sectors) -> Result<String> {
    let problem = format!(
        "it ends at sector {}, and the cache holds data of it up to sector {}: it was larger, or is \
         the wrong device",
        size.0, end.0
    );
    writeln!(io::stderr(), "bcachectl: warning: {}: {problem}", path.display())?;
    Ok(format!("{}: {problem}", path.display()))
}

/// What is wrong with a superblock that was read all the same.
fn superblock_problems(device: &Device<'_>) -> Vec<String> {
    let mut problems = Vec::new();
    match device.identity {
        Identity::MagicWiped(_) => problems.push("the magic of the superblock is wiped".to_owned()),
        Identity::Damaged(_) => {
            problems.push("the superblock was damaged, and is read as it was before".to_owned());
        }
        Identity::SuperblockGone => {
            problems.push("the superblock is gone; the set is read as the rest tells".to_owned());
        }
        _ => {}
    }
    if device.doubts.contains(&Doubt::Superblock) {
        problems.push("the superblock has a bad checksum: its fields may be wrong".to_owned());
    }
    if device.set().is_some_and(|set| set.unsynced) {
        problems.push(
            "the superblock does not say that the cache is in use: the kernel would start it empty"
                .to_owned(),
        );
    }
    problems
}

fn open_backing(path: &Path) -> Result<Named> {
    let device = open(path)?;
    let found = Device::read_superblock(&device)?;
    let superblock = (found.kind() == Some(Kind::Backing)).then_some(found.superblock).flatten();
    let superblock = superblock
        .with_context(|| format!("{} has no superblock of a backing device", path.display()))?;
    Ok(Named { device, superblock })
}

/// Opens a backing device that was not named. Of several that may be it, none is picked.
fn open_found(report: &VolumeReport, path: &Path) -> Result<Named> {
    let found = open_backing(path)?;
    let mut copies = copies::in_machine(found.device.info(), &found.superblock);
    if !copies.is_empty() {
        copies.insert(0, path.to_owned());
        bail!(
            "{}: {} have the UUID of its backing device: one is a copy of the other. Name the one that is \
             meant after the cache device, or take the copy away",
            report.name(),
            copies::listed(&copies)
        );
    }
    Ok(found)
}

fn tell(path: &Path, problems: &Problems) -> Result<()> {
    let mut stderr = io::stderr();
    for problem in &problems.told {
        writeln!(stderr, "bcachectl: warning: {}: {problem}", path.display())?;
    }
    if problems.more > 0 {
        let (path, more) = (path.display(), problems.more);
        writeln!(stderr, "bcachectl: warning: {path}: {more} more problems; see bcachectl check")?;
    }
    Ok(())
}

fn choose(
    args: &VolumeArgs,
    set: &CacheSet<'_>,
    volumes: &Volumes,
    named: Option<&Named>,
) -> Result<VolumeReport> {
    let in_slot = |slot: u32| {
        let volume = volumes.get(slot).with_context(|| format!("no volume in slot {slot}"))?;
        Ok(VolumeReport::from(volume))
    };
    if let Some(name) = &args.volume {
        return in_slot(find_volume(set, name)?);
    }
    if let Some(named) = named {
        let uuid = named.superblock.uuid();
        if let Some((slot, _)) = set.uuids.find(uuid) {
            return in_slot(slot);
        }
        bail!("the cache has no volume of a backing device with UUID {uuid}");
    }
    let reports: Vec<VolumeReport> = volumes.0.iter().map(VolumeReport::from).collect();
    let mut present = reports.iter().filter(|volume| !volume.detached);
    match (present.next(), present.next()) {
        (Some(only), None) => Ok(only.clone()),
        (None, _) => bail!("the cache has no volume"),
        (Some(_), Some(_)) => {
            let known: Vec<String> = reports.iter().map(VolumeReport::name).collect();
            bail!("name the volume with --volume; there are: {}", known.join(", "))
        }
    }
}

/// A volume over another's backing device would be a mixture of both.
fn check_owner(args: &VolumeArgs, report: &VolumeReport, named: &Named) -> Result<()> {
    let uuid = named.superblock.uuid();
    if report.uuid == Some(uuid) && !report.flash_only {
        return Ok(());
    }
    let device = named.device.info().path.display();
    if !args.trust_backing {
        bail!(
            "{} is not that of {device}, whose UUID is {uuid}; --trust-backing takes it for that \
             where the uuid table is damaged",
            report.name()
        );
    }
    let slot = report.slot;
    writeln!(
        io::stderr(),
        "bcachectl: warning: that volume {slot} belongs to {device} is taken on trust"
    )?;
    Ok(())
}

/// The kernel drops what is cached of a device that ran without its cache, or is another set's.
fn check_state(set: &CacheSet<'_>, found: &Named) -> Result<()> {
    let path = found.device.info().path.display();
    let superblock = &found.superblock;
    let state = superblock.state();
    if matches!(state, BackingState::None | BackingState::Stale) {
        bail!(
            "{path} is in state \"{state}\": it ran without its cache, and its data may be newer; \
             `bcachectl export --dirty-only` saves what only the cache has"
        );
    }
    if superblock.set_uuid() != set.cache.superblock().set_uuid() {
        bail!(
            "{path} belongs to the cache set {}, this is {}",
            superblock.set_uuid(),
            set.cache.superblock().set_uuid()
        );
    }
    Ok(())
}
