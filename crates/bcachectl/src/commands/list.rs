//! `bcachectl list`: the bcache devices of the machine, set by set.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use bcache_cli::out::Out;
use bcache_cli::rows::Format;
use bcache_cli::table::{self, Cell};
use bcache_core::layout::superblock::{BackingState, Kind};
use bcache_core::layout::verdict::Warning;
use bcache_core::units::format_bytes;
use serde_json::{Map, Value};

use crate::cli::{ListArgs, ListColumn};
use crate::commands::show::overview::Machine;
use crate::render::device::DeviceReport;

/// Runs `bcachectl list`.
pub fn run(args: &ListArgs) -> Result<ExitCode> {
    let machine = Machine::look()?;
    Out::answer(|out| {
        let devices = ordered(machine.devices(), args);
        match args.format() {
            Format::Table => machine.table(out, args)?,
            Format::Json => {
                let rows: Vec<Value> = devices.iter().map(|device| object(device, args)).collect();
                out.json(&Map::from_iter([("devices".to_owned(), Value::Array(rows))]))?;
            }
            Format::Ndjson => {
                for device in &devices {
                    writeln!(out, "{}", object(device, args))?;
                }
            }
            Format::Csv => csv(out, &devices, args)?,
        }
        Ok(())
    })?;
    machine.complain()
}

/// For people: sets one after the other, each with its cache first.
pub(super) fn table(out: &mut Out, devices: &[DeviceReport], args: &ListArgs) -> Result<()> {
    let columns = args.columns();
    let header: Vec<String> = columns.iter().map(|column| column.name()).collect();
    let header: Vec<&str> = header.iter().map(String::as_str).collect();
    let mut rows = table::table(out.style(), &header).lose_first(&["label", "running", "size"]);
    if args.no_headings {
        rows = rows.without_header();
    }
    let titles = titles(devices);
    let mut last = None;
    for device in ordered(devices, args) {
        let set = set_of(device);
        let is_first = last.replace(set) != Some(set);
        rows.add_row(columns.iter().map(|column| match column {
            ListColumn::Set if args.sort.is_none() && !is_first => Cell::new(""),
            ListColumn::Set => Cell::new(titles.get(set).map_or(set, String::as_str)),
            ListColumn::Kernel => Cell::prose(field(device, *column).text(args.bytes)),
            ListColumn::Size | ListColumn::Bucket | ListColumn::Block => {
                table::number(field(device, *column).text(args.bytes))
            }
            _ => Cell::new(field(device, *column).text(args.bytes)),
        }));
    }
    writeln!(out, "{rows}")?;
    // Of every cache in use it is true; the device's own page goes on to read its journal.
    let usual = Warning::DependsOnJournal.to_string();
    for device in devices {
        for warning in device.kernel.warnings.iter().filter(|warning| **warning != usual) {
            writeln!(out, "warning: {}: {warning}", device.path.display())?;
        }
    }
    Ok(())
}

fn csv(out: &mut Out, devices: &[&DeviceReport], args: &ListArgs) -> Result<()> {
    let mut csv = csv::Writer::from_writer(out);
    let columns = args.columns();
    if !args.no_headings {
        csv.write_record(columns.iter().map(|column| column.name()))?;
    }
    for device in devices {
        let text = |column: &ListColumn| match field(device, *column) {
            Field::None => String::new(),
            field => field.text(true),
        };
        csv.write_record(columns.iter().map(text))?;
    }
    csv.flush()?;
    Ok(())
}

/// A device in JSON: its columns by name, sizes in bytes.
fn object(device: &DeviceReport, args: &ListArgs) -> Value {
    let value = |column: &ListColumn| match field(device, *column) {
        Field::None => Value::Null,
        Field::Text(text) => Value::from(text),
        Field::Bytes(bytes) => Value::from(bytes),
    };
    let fields = args.columns().iter().map(|column| (column.name(), value(column)));
    Value::Object(fields.collect())
}

/// The value of a column.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Field {
    None,
    Bytes(u64),
    Text(String),
}

impl Field {
    fn of_sectors(sectors: u64) -> Self {
        Self::Bytes(sectors.saturating_mul(512))
    }

    fn maybe(text: Option<impl ToString>) -> Self {
        let text = text.map(|text| text.to_string()).filter(|text| !text.is_empty());
        text.map_or(Self::None, Self::Text)
    }

    fn text(&self, in_bytes: bool) -> String {
        match self {
            Self::None => "-".to_owned(),
            Self::Bytes(bytes) if in_bytes => bytes.to_string(),
            Self::Bytes(bytes) => format_bytes(*bytes),
            Self::Text(text) => text.clone(),
        }
    }
}

fn field(device: &DeviceReport, column: ListColumn) -> Field {
    let sb = device.superblock.as_ref();
    let cache = sb.and_then(|sb| sb.cache.as_ref());
    let backing = sb.and_then(|sb| sb.backing.as_ref());
    // What the kernel knows is newer than what it last wrote.
    let running = device.running.as_ref();
    // Where the kernel does not answer, what is on the device may be old.
    let is_silent = running.is_some_and(|running| running.not_answering);
    match column {
        ListColumn::State | ListColumn::Mode | ListColumn::Dirty if is_silent => Field::None,
        ListColumn::Set => Field::maybe(Some(set_of(device)).filter(|set| *set != "-")),
        ListColumn::Device => Field::Text(device.path.display().to_string()),
        ListColumn::Kind => Field::maybe(kind_of(device)),
        ListColumn::Size => Field::of_sectors(device.size_sectors),
        ListColumn::Label => Field::maybe(sb.map(|sb| &sb.label)),
        ListColumn::State => {
            let state = running.and_then(|running| running.state.as_deref());
            let of_cache = cache.map(|cache| if cache.sync { "in use" } else { "new" });
            Field::maybe(state.or(of_cache).or(backing.map(|backing| backing.state)))
        }
        ListColumn::Running => {
            let name = running.map(|it| it.device.as_deref().unwrap_or("yes"));
            Field::maybe(name.or(Some("no")))
        }
        ListColumn::Kernel => Field::maybe(device.kernel.error.as_deref().or(Some("accepts"))),
        ListColumn::Uuid => Field::maybe(sb.map(|sb| &sb.uuid)),
        ListColumn::Mode => {
            let mode = running.and_then(|running| running.cache_mode.as_deref());
            Field::maybe(mode.or(backing.map(|backing| backing.cache_mode.as_str())))
        }
        ListColumn::Dirty => Field::maybe(running.and_then(|it| it.dirty_data.as_deref())),
        ListColumn::Bucket => {
            cache.map_or(Field::None, |cache| Field::of_sectors(cache.bucket_size_sectors))
        }
        ListColumn::Block => sb.map_or(Field::None, |sb| Field::of_sectors(sb.block_size_sectors)),
        ListColumn::Policy => Field::maybe(cache.map(|cache| &cache.replacement)),
    }
}

/// The devices in the order that was asked for: by a column, else by set, caches first.
fn ordered<'d>(devices: &'d [DeviceReport], args: &ListArgs) -> Vec<&'d DeviceReport> {
    let mut all: Vec<&DeviceReport> = devices.iter().collect();
    all.sort_by(|a, b| {
        let order = match args.sort {
            Some(column) => field(a, column).cmp(&field(b, column)),
            None => set_of(a).cmp(set_of(b)).then(is_no_cache(a).cmp(&is_no_cache(b))),
        };
        if args.reverse { order.reverse() } else { order }
    });
    all
}

fn is_no_cache(device: &DeviceReport) -> bool {
    kind_of(device) != Some(Kind::Cache)
}

/// What stands for each set: its UUID, and what is missing.
fn titles(devices: &[DeviceReport]) -> BTreeMap<&str, String> {
    // A set UUID that was made up for a device alone says nothing.
    let is_attached = |device: &&DeviceReport| {
        let backing = device.superblock.as_ref().and_then(|sb| sb.backing.as_ref());
        backing.is_none_or(|backing| backing.state != BackingState::None.name())
            || device.running.as_ref().is_some_and(|it| it.set_uuid.is_some())
    };
    let title = |set: &str, devices: &[&DeviceReport]| {
        if devices.iter().any(|device| !is_no_cache(device)) {
            set.to_owned()
        } else if devices.iter().any(is_attached) {
            format!("{set} (no cache present)")
        } else {
            "(not attached to a set)".to_owned()
        }
    };
    by_set(devices).into_iter().map(|(set, devices)| (set, title(set, &devices))).collect()
}

/// The set that a device belongs to: that of its superblock, or where it is gone, the one in which
/// the kernel runs the device.
pub(super) fn set_of(device: &DeviceReport) -> &str {
    let on_device = device.superblock.as_ref().map(|sb| sb.set_uuid.as_str());
    let running = || device.running.as_ref().and_then(|running| running.set_uuid.as_deref());
    on_device.or_else(running).unwrap_or("-")
}

/// What a device is, be it by its superblock or to the kernel.
fn kind_of(device: &DeviceReport) -> Option<Kind> {
    device.kind.or_else(|| device.running.as_ref().and_then(|running| running.kind))
}

pub(super) fn by_set(devices: &[DeviceReport]) -> BTreeMap<&str, Vec<&DeviceReport>> {
    let mut sets: BTreeMap<&str, Vec<&DeviceReport>> = BTreeMap::new();
    for device in devices {
        sets.entry(set_of(device)).or_default().push(device);
    }
    sets
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;
    use std::sync::{Arc, Mutex};

    use bcache_cli::out::Style;
    use bcache_core::device::{DeviceInfo, DeviceKind};
    use bcache_core::layout::superblock::{
        BackingParams, CacheMode, CacheParams, Label, Replacement, Superblock,
    };
    use bcache_core::units::Sectors;
    use clap::Parser as _;
    use uuid::Uuid;

    use super::*;
    use crate::cli::{Cli, Command};

    fn report(path: &str, gib: u64, superblock: &Superblock) -> DeviceReport {
        let info = DeviceInfo {
            path: PathBuf::from(path),
            kind: DeviceKind::Block,
            size_bytes: gib << 30,
            logical_block_bytes: 512,
            physical_block_bytes: 512,
            disk_size: Sectors(gib << 21),
            discard: false,
            zoned: false,
            read_only: false,
            is_bcache_volume: false,
        };
        DeviceReport::of_superblock(&info, Some(superblock))
    }

    fn devices() -> Vec<DeviceReport> {
        let set_uuid = Uuid::from_u128(5);
        let cache = Superblock::new_cache(&CacheParams {
            uuid: Uuid::from_u128(1),
            set_uuid,
            label: Label::default(),
            nbuckets: 4096,
            bucket_size: Sectors(1024),
            block_size: 8,
            replacement: Replacement::Fifo,
            discard: false,
        });
        let backing = Superblock::new_backing(&BackingParams {
            uuid: Uuid::from_u128(2),
            set_uuid,
            label: Label::default(),
            data_offset: Sectors(16),
            block_size: 8,
            cache_mode: CacheMode::Writeback,
        });
        // As udev might list them: the backing device first.
        vec![report("/dev/sdb", 100, &backing), report("/dev/nvme0n1", 4, &cache)]
    }

    fn args(arguments: &[&str]) -> ListArgs {
        let all = [&["bcachectl", "list"], arguments].concat();
        match Cli::try_parse_from(all).unwrap().command {
            Command::List(args) => args,
            other => panic!("{other:?}"),
        }
    }

    fn printed(write: impl FnOnce(&mut Out) -> Result<()>) -> String {
        #[derive(Clone, Default)]
        struct Printed(Arc<Mutex<Vec<u8>>>);
        impl Write for Printed {
            fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
                self.0.lock().unwrap().write(bytes)
            }
            fn flush(&mut self) -> std::io::Result<()> {
                Ok(())
            }
        }
        let printed = Printed::default();
        let mut out = Out::new(printed.clone(), Style::PLAIN);
        write(&mut out).unwrap();
        out.finish().unwrap();
        let bytes = printed.0.lock().unwrap().clone();
        String::from_utf8(bytes).unwrap()
    }

    fn listed(arguments: &[&str]) -> String {
        printed(|out| table(out, &devices(), &args(arguments)))
    }

    #[test]
    fn the_cache_leads_its_set_and_columns_can_be_chosen() {
        let expected = "\
device        kind     size
/dev/nvme0n1  cache      4 GiB
/dev/sdb      backing  100 GiB
";
        assert_eq!(listed(&["-o", "device,kind,size"]), expected);
        let expected = "4294967296  524288  fifo\n107374182400       -  -\n";
        let text = listed(&["-n", "-b", "-o", "size,bucket,policy"]);
        let words = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(words(&text), words(expected));
        // The set's UUID stands once.
        assert_eq!(listed(&[]).matches(&Uuid::from_u128(5).to_string()).count(), 1);
    }

    #[test]
    fn order_is_by_value_not_by_text() {
        let first = |arguments: &[&str]| listed(arguments).lines().next().unwrap().to_owned();
        assert_eq!(first(&["-n", "--sort", "size", "-o", "device"]), "/dev/nvme0n1");
        assert_eq!(first(&["-n", "--sort", "size", "--reverse", "-o", "device"]), "/dev/sdb");
        assert_eq!(first(&["-n", "--sort", "device", "-o", "device"]), "/dev/nvme0n1");
    }

    #[test]
    fn programs_get_bytes_and_nothing_for_unknown() {
        let devices = devices();
        let args = args(&["-o", "device,bucket,state"]);
        let rows = ordered(&devices, &args);
        let text = printed(|out| csv(out, &rows, &args));
        assert_eq!(text, "device,bucket,state\n/dev/nvme0n1,524288,new\n/dev/sdb,,none\n");
        let json = object(rows.first().unwrap(), &args);
        assert_eq!(json["bucket"], 524_288);
        assert_eq!(object(rows.get(1).unwrap(), &args)["bucket"], Value::Null);
    }
}
