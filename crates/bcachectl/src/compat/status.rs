//! `bcache-status`: sets, their devices and their statistics, as bcache-tools 1.1 prints them.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::ExitCode;
use std::sync::atomic::AtomicBool;

use bcache_core::device::sysfs::Root;
use bcache_core::running::{Attributes, Files, Question};

use super::{Call, LIMIT, definition, reason};
use crate::ask::{asker, whole};

/// Characters before a value.
const KEY_WIDTH: usize = 28;

const SECTOR_BYTES: f64 = 512.0;

const USAGE: &str = "usage: bcache-status [--help] [-f] [-h] [-d] [-t] [-a] [-r] [-s] [-g]";

/// The periods of statistics: option, name in sysfs, name for people.
const PERIODS: [(&str, &str, &str); 4] = [
    ("five-minute", "five_minute", "Last 5min"),
    ("hour", "hour", "Last Hour"),
    ("day", "day", "Last Day"),
    ("total", "total", "Total"),
];

pub(super) fn run(call: &Call) -> ExitCode {
    let options = match parse(call) {
        Ok(options) => options,
        Err(unknown) => {
            eprintln!("{USAGE}\nbcache-status: error: unrecognized arguments: {unknown}");
            return 2.into();
        }
    };
    if options.contains("help") {
        super::print(&help());
        return ExitCode::SUCCESS;
    }
    let root = Root::system();
    let sets = root.sys("fs/bcache");
    if !sets.is_dir() {
        super::print("bcache is not loaded.\n");
        return ExitCode::SUCCESS;
    }
    match all_sets(&root, &options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("bcache-status: {message}");
            1.into()
        }
    }
}

/// Prints all sets, and does what was asked for to each of them.
fn all_sets(root: &Root, options: &BTreeSet<String>) -> Result<(), String> {
    let question = Question { files: Files::Priorities, ..Question::default() };
    let mut asker = asker(root.clone(), question);
    let mut look = || {
        let snapshot = whole(&mut asker, LIMIT, &AtomicBool::new(false), "bcache-status");
        snapshot.map(|it| set_folders(&it.root)).map_err(|error| format!("{error:#}"))
    };
    let mut sets = look()?;
    let act = |set: &Attributes, name: &str| {
        let file = set.path(name);
        fs::write(&file, "1\n").map_err(|error| format!("{}: {}", file.display(), reason(&error)))
    };
    if options.contains("gc") {
        for set in &sets {
            act(set, "internal/trigger_gc")?;
        }
        sets = look()?;
    }
    for set in &sets {
        super::print(&report(set, Path::new("/dev/block"), options));
        if options.contains("reset-stats") {
            act(set, "clear_stats")?;
        }
    }
    Ok(())
}

/// The directories of the sets, by UUID.
fn set_folders(root: &Root) -> Vec<Attributes> {
    let top = Attributes::at(root, root.sys("fs/bcache"));
    let names = top.names();
    let sets = names.iter().filter(|name| uuid::Uuid::try_parse(name).is_ok());
    sets.map(|name| Attributes::at(root, top.path(name))).collect()
}

/// The options that are given, by their long names, as Python's argparse reads them; or what it does
/// not know.
fn parse(call: &Call) -> Result<BTreeSet<String>, String> {
    let definition = definition("bcache-status");
    let known: Vec<_> = definition.get_arguments().collect();
    let long = |text: &str| -> Option<String> {
        let matching: Vec<&str> =
            known.iter().filter_map(|it| it.get_long()).filter(|it| it.starts_with(text)).collect();
        match matching.as_slice() {
            [one] => Some((*one).to_owned()),
            several => several.iter().find(|it| **it == text).map(|it| (*it).to_owned()),
        }
    };
    let short = |letter: char| {
        let option = known.iter().find(|it| it.get_short() == Some(letter))?;
        option.get_long().map(str::to_owned)
    };
    let (mut given, mut unknown) = (BTreeSet::new(), Vec::new());
    for argument in &call.arguments {
        let text = argument.to_string_lossy();
        let options = match (text.strip_prefix("--"), text.strip_prefix('-')) {
            (Some(name), _) => long(name).filter(|_| !name.is_empty()).map(|it| vec![it]),
            (None, Some(letters)) if !letters.is_empty() => letters.chars().map(short).collect(),
            _ => None,
        };
        match options {
            Some(options) => given.extend(options),
            None => unknown.push(text.into_owned()),
        }
    }
    if unknown.is_empty() { Ok(given) } else { Err(unknown.join(" ")) }
}

fn help() -> String {
    let mut text = format!("{USAGE}\n\noptions:\n");
    for option in definition("bcache-status").get_arguments() {
        let long = option.get_long().unwrap_or_default();
        let names = match option.get_short() {
            Some(short) => format!("-{short}, --{long}"),
            None => format!("--{long}"),
        };
        let help = option.get_help().map(ToString::to_string).unwrap_or_default();
        // Writing to a string does not fail.
        let _ = writeln!(text, "  {names:<19}{help}");
    }
    text
}

/// A number of sectors as people read it.
fn sectors(count: f64) -> String {
    match count.abs() {
        it if it < 2.0 => format!("{:.0} B", (count * SECTOR_BYTES).trunc()),
        it if it < 2048.0 => format!("{:.2} KiB", count / 2.0),
        it if it < 2_097_152.0 => format!("{:.1} MiB", count / 2048.0),
        it if it < 2_147_483_648.0 => format!("{:.0} GiB", count / 2_097_152.0),
        _ => format!("{:.0} TiB", count / 2_147_483_648.0),
    }
}

/// A number that the kernel rounded, in whole sectors; none where there is no number.
fn kernel_sectors(text: &str) -> Option<f64> {
    let units = ["k", "M", "G", "T", "P", "E", "Z", "Y"];
    let unit = units.iter().position(|unit| text.ends_with(unit));
    let number: f64 = text.trim_end_matches(|it: char| it.is_ascii_alphabetic()).parse().ok()?;
    let power = unit.map_or(0, |it| i32::try_from(it).unwrap_or(0) + 1);
    Some((number * 1024f64.powi(power) / SECTOR_BYTES).trunc())
}

fn size(text: &str) -> String {
    kernel_sectors(text).map(sectors).unwrap_or_default()
}

fn flag(text: &str) -> String {
    if text == "1" { "True" } else { "False" }.to_owned()
}

/// The first line of a file; empty where it cannot be read.
fn line(of: &Attributes, name: &str) -> String {
    let text = of.text(name).unwrap_or_default();
    text.lines().next().unwrap_or_default().trim().to_owned()
}

/// A directory of bcache that belongs to a device, and that of the device.
struct Folder {
    own: Attributes,
    device: Attributes,
}

fn number(text: &str) -> f64 {
    text.parse().unwrap_or(0.0)
}

/// A device by the path that udev's link from its number leads to, and its number.
fn device(links: &Path, number: &str) -> String {
    let path = fs::canonicalize(links.join(number)).ok().filter(|_| !number.is_empty());
    let path = path.map_or_else(|| "?".to_owned(), |it| it.display().to_string());
    format!("{path} ({number})")
}

/// A cache device's sectors and how many of them are in buckets that nothing uses.
fn cache_sectors(cache: &Folder) -> (f64, f64) {
    let all = number(&line(&cache.device, "size"));
    let unused = cache.own.line("priority_stats", "Unused").unwrap_or_default();
    (all, number(unused.trim_end_matches('%')) * all / 100.0)
}

/// A share of a cache in sectors and per cent.
fn share(part: f64, all: f64) -> String {
    let percent = if all > 0.0 { part / all * 100.0 } else { 0.0 };
    format!("{}\t({percent:.0}%)", sectors(part))
}

/// The only one, or that there are several.
fn common(values: &BTreeSet<String>) -> String {
    match values.iter().collect::<Vec<_>>().as_slice() {
        [one] => (*one).clone(),
        _ => "(Various)".to_owned(),
    }
}

fn add(text: &mut String, indent: &str, name: &str, value: &str) {
    let name = format!("{indent}{name}");
    // Writing to a string does not fail.
    let _ = writeln!(text, "{name:<KEY_WIDTH$}{value}");
}

/// What there is to say of the set at `set`.
fn report(set: &Attributes, links: &Path, options: &BTreeSet<String>) -> String {
    let names = set.names();
    let folder = |name: &String| {
        let own = set.target(name)?;
        let device = set.at_path(own.parent()?);
        Some(Folder { own: set.at_path(&own), device })
    };
    let folders = |prefix: &str| -> Vec<Folder> {
        let is_one = |name: &&String| {
            name.strip_prefix(prefix).is_some_and(|number| number.parse::<u32>().is_ok())
        };
        names.iter().filter(is_one).filter_map(folder).collect()
    };
    let (caches, backing) = (folders("cache"), folders("bdev"));
    let (mut all, mut unused) = (0.0, 0.0);
    for cache in &caches {
        let of_cache = cache_sectors(cache);
        (all, unused) = (all + of_cache.0, unused + of_cache.1);
    }
    let policies = caches.iter().map(|it| line(&it.own, "cache_replacement_policy")).collect();
    let modes = backing.iter().map(|it| line(&it.own, "cache_mode")).collect();
    let of = |name: &str| line(set, name);
    let milliseconds = |name: &str| format!("{:.1}ms", number(&of(name)) / 1000.0);
    let evictable = of("cache_available_percent");
    let uuid = set.dir().file_name().unwrap_or_default().to_string_lossy();
    let mut text = "--- bcache ---\n".to_owned();
    for (name, value) in [
        ("UUID", uuid.into_owned()),
        ("Block Size", size(&of("block_size"))),
        ("Bucket Size", size(&of("bucket_size"))),
        ("Congested?", flag(&of("congested"))),
        ("Read Congestion", milliseconds("congested_read_threshold_us")),
        ("Write Congestion", milliseconds("congested_write_threshold_us")),
        ("Total Cache Size", sectors(all)),
        ("Total Cache Used", share(all - unused, all)),
        ("Total Cache Unused", share(unused, all)),
        (
            "Evictable Cache",
            format!("{}\t({evictable}%)", sectors(number(&evictable) * all / 100.0)),
        ),
        ("Replacement Policy", common(&policies)),
        ("Cache Mode", common(&modes)),
    ] {
        add(&mut text, "", name, &value);
    }
    add_stats(&mut text, set, "", options);
    if options.contains("sub-status") {
        for backing in &backing {
            add_backing(&mut text, backing, links);
            add_stats(&mut text, &backing.own, "  ", options);
        }
        for cache in &caches {
            add_cache(&mut text, cache, links);
        }
    }
    text
}

fn add_backing(text: &mut String, backing: &Folder, links: &Path) {
    let of = |name: &str| line(&backing.own, name);
    let of_device = |name: &str| line(&backing.device, name);
    text.push_str("--- Backing Device ---\n");
    for (name, value) in [
        ("Device File", device(links, &of_device("dev"))),
        ("bcache Device File", device(links, &of("dev/dev"))),
        ("Size", sectors(number(&of_device("size")))),
        ("Cache Mode", of("cache_mode")),
        ("Readahead", of("readahead")),
        ("Sequential Cutoff", size(&of("sequential_cutoff"))),
        ("Merge sequential?", flag(&of("sequential_merge"))),
        ("State", of("state")),
        ("Writeback?", flag(&of("writeback_running"))),
        ("Dirty Data", size(&of("dirty_data"))),
        ("Writeback Rate", format!("{}/s", of("writeback_rate"))),
        ("Dirty Target", format!("{}%", of("writeback_percent"))),
    ] {
        add(text, "  ", name, &value);
    }
}

fn add_cache(text: &mut String, cache: &Folder, links: &Path) {
    let of = |name: &str| line(&cache.own, name);
    let (all, unused) = cache_sectors(cache);
    text.push_str("--- Cache Device ---\n");
    for (name, value) in [
        ("Device File", device(links, &line(&cache.device, "dev"))),
        ("Size", sectors(all)),
        ("Block Size", size(&of("block_size"))),
        ("Bucket Size", size(&of("bucket_size"))),
        ("Replacement Policy", of("cache_replacement_policy")),
        ("Discard?", flag(&of("discard"))),
        ("I/O Errors", of("io_errors")),
        ("Metadata Written", size(&of("metadata_written"))),
        ("Data Written", size(&of("written"))),
        ("Buckets", of("nbuckets")),
        ("Cache Used", share(all - unused, all)),
        ("Cache Unused", share(unused, all)),
    ] {
        add(text, "  ", name, &value);
    }
}

/// Hits, with their share of all where there were any.
fn hits(hits: &str, misses: &str) -> String {
    let (hits, misses) = (number(hits), number(misses));
    let all = hits + misses;
    if all > 0.0 {
        format!("{hits:.0}\t({:.0}%)", (100.0 * hits / all).trunc())
    } else {
        format!("{hits:.0}")
    }
}

/// The statistics of the periods that were asked for; of all time where none was.
fn add_stats(text: &mut String, of: &Attributes, indent: &str, options: &BTreeSet<String>) {
    let wants = |option: &str| options.contains(option) || options.contains("all");
    let any = PERIODS.iter().any(|(option, ..)| wants(option));
    for (option, name, words) in PERIODS {
        if !wants(option) && (any || option != "total") {
            continue;
        }
        let of = |file: &str| line(of, &format!("stats_{name}/{file}"));
        let (found, missed) = (of("cache_hits"), of("cache_misses"));
        let (passed, missed_past) = (of("cache_bypass_hits"), of("cache_bypass_misses"));
        for (what, value) in [
            ("Hits", hits(&found, &missed)),
            ("Misses", missed),
            ("Bypass Hits", hits(&passed, &missed_past)),
            ("Bypass Misses", missed_past),
            ("Bypassed", size(&of("bypassed"))),
        ] {
            add(text, indent, &format!("{words} {what}"), &value);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;
    use std::os::unix::fs::symlink;

    use bcache_core::running::recorded;

    use super::*;

    fn options(words: &[&str]) -> Result<BTreeSet<String>, String> {
        let arguments = words.iter().map(OsString::from).collect();
        parse(&Call { program: "bcache-status".to_owned(), arguments })
    }

    #[test]
    fn options_are_read_as_argparse_does() {
        let all = |words: &[&str]| options(words).unwrap().into_iter().collect::<Vec<_>>();
        assert_eq!(all(&["-fs", "--five", "--total"]), ["five-minute", "sub-status", "total"]);
        assert_eq!(all(&["-h", "--he"]), ["help", "hour"]);
        assert_eq!(options(&["-x", "-f", "word"]).unwrap_err(), "-x word");
    }

    #[test]
    fn sizes_are_those_of_bcache_status() {
        for (text, printed) in [
            ("0.0k", "0 B"),
            ("0.5k", "512 B"),
            ("4.0k", "4.00 KiB"),
            ("1.9k", "1.50 KiB"),
            ("512.0k", "512.00 KiB"),
            ("4.0M", "4.0 MiB"),
            ("1.0T", "1 TiB"),
            ("", ""),
        ] {
            assert_eq!(size(text), printed, "{text}");
        }
    }

    #[test]
    fn help_is_argparses() {
        let help = help();
        assert!(help.starts_with("usage: bcache-status [--help] [-f] "), "{help}");
        for line in [
            "  --help             Show this help message and exit\n",
            "  -f, --five-minute  Print the last five minutes of stats.\n",
            "  -g, --gc           Invoke GC before printing status.\n",
        ] {
            assert!(help.contains(line), "{help}");
        }
    }

    /// What bcache-status of bcache-tools prints of the same tree.
    #[test]
    fn a_set_is_told_in_the_same_words() {
        let folder = tempfile::tempdir().unwrap();
        let file =
            concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/running/dirty-6.12.sysfs");
        let root = recorded::unpack(&fs::read_to_string(file).unwrap(), folder.path()).unwrap();
        let stats = "Unused:\t\t97%\nClean:\t\t1%\nDirty:\t\t1%\nMetadata:\t0%\n";
        fs::write(root.sys("class/block/vdb/bcache/priority_stats"), stats).unwrap();
        fs::write(root.sys("class/block/vda/bcache/stats_total/cache_hits"), "2\n").unwrap();
        fs::write(root.sys("class/block/vda/bcache/stats_total/cache_misses"), "1\n").unwrap();
        // A link as udev makes it, where this machine's own would stand.
        let links = folder.path().join("block");
        fs::create_dir_all(&links).unwrap();
        symlink("/dev/null", links.join("254:0")).unwrap();
        let set = set_folders(&root).remove(0);
        let asked = options(&["-s", "-f", "-t"]).unwrap();
        assert_eq!(report(&set, &links, &asked), include_str!("status-expected.txt"));
    }
}
