//! What a guest said, as typed values.
//!
//! A log is lines. Those that start with one of these words have a meaning (`prelude.sh` prints
//! them); all others are free text of the script:
//!
//! ```text
//! LAB-BEGIN RELEASE          the script starts, on this kernel
//! SYSFS NAME                 a figure; its value is on the lines after it
//! MD5 SUM  DEVICE[:BYTES]
//! REGISTER DEVICE accepted|refused
//! STAGE NAME                 a part of the script
//! CAPTURE NAME ... CAPTURE-END STATUS
//! CRASH                      a power cut follows
//! DMESG LINE                 a line of the kernel's log
//! LAB-STATUS STATUS          the script's exit status
//! ```
//!
//! The kernel's own log comes from the console, or from `DMESG` lines in logs that were kept in one
//! piece. Registrations and stages leave a mark in it (`LAB-REGISTER DEVICE`, `LAB-STAGE NAME`), and every
//! ten seconds there is a `LAB-ALIVE`.

use anstream::adapter::strip_str;
use anyhow::{Context as _, bail};
use std::str::FromStr;

/// Everything that was said in one run of a guest, or in one stage of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Log {
    /// The kernel's release, as `uname -r` tells it.
    pub release: Option<String>,
    /// The script's exit status; `None` when it did not come to its end.
    pub status: Option<i32>,
    /// Whether the script cut the power.
    pub power_cut: bool,
    entries: Vec<Entry>,
    kernel: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Entry {
    Stage(String),
    Figure { name: String, value: String },
    Md5 { device: String, sum: String },
    Register { device: String, accepted: bool },
    Capture { name: String, capture: Capture },
}

/// A command's output in the guest (both streams) and its exit status.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Capture {
    /// What it printed.
    pub output: String,
    /// Its exit status; `None` when the guest ended first.
    pub status: Option<i32>,
}

impl Log {
    /// Reads what the script printed and, where it was kept apart, the kernel's console.
    pub fn parse(output: &str, console: &str) -> Self {
        let mut log = Self::default();
        let mut lines = output.lines().peekable();
        while let Some(line) = lines.next() {
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            match word {
                "LAB-BEGIN" => log.release = Some(rest.to_owned()),
                "LAB-STATUS" => log.status = rest.parse().ok(),
                "CRASH" if rest.is_empty() => log.power_cut = true,
                "DMESG" => log.kernel.push(rest.to_owned()),
                "STAGE" => log.entries.push(Entry::Stage(rest.to_owned())),
                "MD5" => {
                    if let Some((sum, device)) = rest.split_once(char::is_whitespace) {
                        log.entries.push(Entry::Md5 {
                            device: device.trim().to_owned(),
                            sum: sum.to_owned(),
                        });
                    }
                }
                "REGISTER" => {
                    if let Some((device, verdict)) = rest.rsplit_once(' ') {
                        log.entries.push(Entry::Register {
                            device: device.to_owned(),
                            accepted: verdict == "accepted",
                        });
                    }
                }
                "SYSFS" => {
                    let mut value = lines.next().unwrap_or_default().to_owned();
                    // Of the figures, only tables ("Key:<tab>value") have several lines.
                    while is_table_row(&value) && lines.peek().is_some_and(|row| is_table_row(row))
                    {
                        value.push('\n');
                        value.push_str(lines.next().unwrap_or_default());
                    }
                    log.entries.push(Entry::Figure { name: rest.to_owned(), value });
                }
                "CAPTURE" => {
                    let mut capture = Capture::default();
                    for captured in lines.by_ref() {
                        if let Some(status) = captured.strip_prefix("CAPTURE-END ") {
                            capture.status = status.parse().ok();
                            break;
                        }
                        capture.output.push_str(captured);
                        capture.output.push('\n');
                    }
                    // The newline that the prelude adds, so that the end stands on its own line.
                    if capture.output.ends_with('\n') {
                        capture.output.pop();
                    }
                    log.entries.push(Entry::Capture { name: rest.to_owned(), capture });
                }
                _ => {}
            }
        }
        // What the machine said while it booted is none of bcache's business.
        let boot = console.find("LAB-BEGIN").unwrap_or(0);
        let said = console.get(boot..).unwrap_or_default().lines().skip(usize::from(boot > 0));
        log.kernel.extend(said.map(|line| line.trim_end_matches('\r').to_owned()));
        log
    }

    /// The part of the log between `stage NAME` and the next stage.
    pub fn stage(&self, name: &str) -> Option<Self> {
        let is_stage = |entry: &Entry| matches!(entry, Entry::Stage(_));
        let first =
            self.entries.iter().position(|e| matches!(e, Entry::Stage(s) if s == name))? + 1;
        let entries =
            self.entries.iter().skip(first).take_while(|e| !is_stage(e)).cloned().collect();
        let kernel = after_mark(&self.kernel, "LAB-STAGE", name)
            .take_while(|line| mark(line, "LAB-STAGE").is_none())
            .map(str::to_owned)
            .collect();
        Some(Self { entries, kernel, ..self.clone() })
    }

    /// The value of a figure; the last one when it was read several times.
    pub fn figure(&self, name: &str) -> Option<&str> {
        self.entries.iter().rev().find_map(|entry| match entry {
            Entry::Figure { name: n, value } if n == name => Some(value.as_str()),
            _ => None,
        })
    }

    /// A figure that is a number.
    ///
    /// # Errors
    /// When the figure is not there or not a number.
    pub fn number(&self, name: &str) -> anyhow::Result<u64> {
        let value = self.figure(name).with_context(|| format!("no figure {name} in the log"))?;
        value.trim().parse().with_context(|| format!("figure {name}: {value:?} is no number"))
    }

    /// The MD5 sums of a device, in the order in which they were taken.
    pub fn md5s(&self, device: &str) -> Vec<&str> {
        let mut sums = Vec::new();
        for entry in &self.entries {
            if let Entry::Md5 { device: d, sum } = entry {
                if d == device {
                    sums.push(sum.as_str());
                }
            }
        }
        sums
    }

    /// The last MD5 sum of a device.
    pub fn md5(&self, device: &str) -> Option<&str> {
        self.md5s(device).last().copied()
    }

    /// The devices of which MD5 sums were taken, each once, in the order of their last sums.
    pub fn md5_devices(&self) -> Vec<&str> {
        let mut devices: Vec<&str> = Vec::new();
        for entry in &self.entries {
            if let Entry::Md5 { device, .. } = entry {
                devices.retain(|known| known != device);
                devices.push(device);
            }
        }
        devices
    }

    /// Whether the kernel accepted a device when it was last offered; `None` when it never was.
    pub fn accepted(&self, device: &str) -> Option<bool> {
        self.entries.iter().rev().find_map(|entry| match entry {
            Entry::Register { device: d, accepted } if d == device => Some(*accepted),
            _ => None,
        })
    }

    /// What a captured command printed.
    pub fn capture(&self, name: &str) -> Option<&Capture> {
        self.entries.iter().rev().find_map(|entry| match entry {
            Entry::Capture { name: n, capture } if n == name => Some(capture),
            _ => None,
        })
    }

    /// The lines of the kernel's log since the script began, each with its time stamp.
    pub fn kernel_lines(&self) -> impl Iterator<Item = &str> {
        self.kernel.iter().map(String::as_str).filter(|line| !line.contains("LAB-"))
    }

    /// The lines in which the kernel complains: bcache's errors, I/O errors, and what the kernel
    /// says of its own troubles (oops, warning, lockup).
    pub fn errors(&self) -> Vec<&str> {
        self.kernel_lines().filter(|line| complains(line)).collect()
    }

    /// What the kernel said after a device was last offered to it and before the next was.
    pub fn register_lines(&self, device: &str) -> Vec<&str> {
        after_mark(&self.kernel, "LAB-REGISTER", device)
            .take_while(|line| mark(line, "LAB-REGISTER").is_none())
            .filter(|line| !line.contains("LAB-"))
            .collect()
    }

    /// The first reason that the kernel gave for refusing a device when it was last offered, such
    /// as `Bad checksum`.
    pub fn register_error(&self, device: &str) -> Option<&str> {
        let mut lines = self.register_lines(device);
        lines.retain(|line| complains(line));
        // An allocation that is too large gets a warning of its own before bcache tells.
        let by_bcache = lines.iter().find(|line| line.contains("bcache: "));
        let line = *by_bcache.or(lines.first())?;
        let said = line.split_once("bcache: ").map_or(line, |(_, said)| said);
        let message = said.split_once("() ").map_or(said, |(_function, message)| message);
        // Of the number of stripes it complains with what may lie behind it.
        if message.starts_with("nr_stripes") {
            if let Some((_, reason)) = message.split_once('(') {
                return Some(reason.trim_end_matches(')'));
            }
        }
        // "error /dev/vdb: Bad checksum"; kernel 6.12 may leave the device out. An error of the
        // whole set says at its end what follows from it.
        let reason = message
            .strip_prefix("error ")
            .and_then(|error| error.split_once(": "))
            .map_or(message, |(_device, reason)| reason);
        Some(reason.trim_end_matches(", disabling caching"))
    }

    /// The figures of the set and its caches, as `set_figures` printed them last.
    ///
    /// # Errors
    /// When one is missing or does not have the kernel's form.
    pub fn set_figures(&self) -> anyhow::Result<SetFigures> {
        let mut caches = Vec::new();
        while self.figure(&format!("cache{}/nbuckets", caches.len())).is_some() {
            let cache = format!("cache{}", caches.len());
            let text = |name: &str| {
                let name = format!("{cache}/{name}");
                self.figure(&name).with_context(|| format!("no figure {name} in the log"))
            };
            caches.push(CacheFigures {
                priority_stats: text("priority_stats")?.parse()?,
                nbuckets: self.number(&format!("{cache}/nbuckets"))?,
                replacement: chosen(text("cache_replacement_policy")?)?.to_owned(),
            });
        }
        if caches.is_empty() {
            bail!("no figures of a cache in the log");
        }
        Ok(SetFigures {
            caches,
            available_percent: self.number("cache_available_percent")?,
            root_usage_percent: self.number("root_usage_percent")?,
            tree_depth: self.number("tree_depth")?,
            average_key_size: self.figure("average_key_size").unwrap_or_default().to_owned(),
            btree_nodes: self.number("internal/btree_nodes")?,
            btree_used_percent: self.number("internal/btree_used_percent")?,
        })
    }

    /// The figures of a backing device, named as `vda` or `/dev/vda`.
    ///
    /// # Errors
    /// When one is missing or does not have the kernel's form.
    pub fn backing_figures(&self, device: &str) -> anyhow::Result<BackingFigures> {
        let device = device.strip_prefix("/dev/").unwrap_or(device);
        let text = |name: &str| {
            let name = format!("/sys/block/{device}/bcache/{name}");
            self.figure(&name).with_context(|| format!("no figure {name} in the log"))
        };
        Ok(BackingFigures {
            dirty_data: text("dirty_data")?.to_owned(),
            state: text("state")?.to_owned(),
            cache_mode: chosen(text("cache_mode")?)?.to_owned(),
            running: text("running")? == "1",
        })
    }
}

/// Figures of a set, under the names that sysfs gives them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetFigures {
    /// Its caches, in the order of their numbers.
    pub caches: Vec<CacheFigures>,
    /// `cache_available_percent`, set by the kernel's last GC.
    pub available_percent: u64,
    /// `root_usage_percent`: how full the btree's root is.
    pub root_usage_percent: u64,
    /// `tree_depth`: levels below the root.
    pub tree_depth: u64,
    /// `average_key_size` of the leaves, in the kernel's rounded form.
    pub average_key_size: String,
    /// `internal/btree_nodes`, set by the kernel's last GC.
    pub btree_nodes: u64,
    /// `internal/btree_used_percent`, set by the kernel's last GC.
    pub btree_used_percent: u64,
}

/// Figures of one cache of a set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheFigures {
    /// What its buckets hold and how their prios are spread.
    pub priority_stats: PriorityStats,
    /// Number of its buckets.
    pub nbuckets: u64,
    /// `cache_replacement_policy`: `lru`, `fifo` or `random`.
    pub replacement: String,
}

/// Figures of a backing device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackingFigures {
    /// `dirty_data` in the kernel's rounded form, which [`rounded_size`] gives to a number of bytes.
    pub dirty_data: String,
    /// `no cache`, `clean`, `dirty` or `inconsistent`.
    pub state: String,
    /// `writethrough`, `writeback`, `writearound` or `none`.
    pub cache_mode: String,
    /// Whether its bcache device is there.
    pub running: bool,
}

/// `priority_stats` of a cache.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PriorityStats {
    /// Percentage of buckets that hold nothing.
    pub unused: u64,
    /// Percentage of buckets with clean data.
    pub clean: u64,
    /// Percentage of buckets with dirty data.
    pub dirty: u64,
    /// Percentage of buckets with metadata.
    pub metadata: u64,
    /// Average of prio over the buckets with data, as distance from the greatest.
    pub average: u64,
    /// Sectors of cached data in each quantile.
    pub sectors_per_quantile: u64,
    /// Quantiles of prio, as distance from the greatest.
    pub quantiles: Vec<u64>,
}

impl FromStr for PriorityStats {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> anyhow::Result<Self> {
        let field = |name: &str| {
            text.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .map(str::trim)
                .with_context(|| format!("priority_stats without {name}: {text:?}"))
        };
        let number = |name: &str| {
            let value = field(name)?;
            value
                .trim_end_matches('%')
                .parse::<u64>()
                .with_context(|| format!("priority_stats, {name}: {value:?} is no number"))
        };
        let quantiles = field("Quantiles")?
            .trim_start_matches('[')
            .trim_end_matches(']')
            .split_whitespace()
            .map(|value| value.parse().with_context(|| format!("quantile {value:?}")))
            .collect::<anyhow::Result<_>>()?;
        Ok(Self {
            unused: number("Unused")?,
            clean: number("Clean")?,
            dirty: number("Dirty")?,
            metadata: number("Metadata")?,
            average: number("Average")?,
            sectors_per_quantile: number("Sectors per Q")?,
            quantiles,
        })
    }
}

/// A number of bytes as bcache prints it in sysfs: in units of 1024, the smallest being the
/// kibibyte, that keep it below 1000, and one decimal, rounded down.
pub fn rounded_size(bytes: u64) -> String {
    let mut unit = 0;
    let mut tenths_of = bytes;
    let mut whole = bytes;
    while unit == 0 || whole >= 1000 {
        unit += 1;
        tenths_of = whole % 1024;
        whole /= 1024;
    }
    let letter = "kMGTPE".chars().nth(unit - 1).unwrap_or('?');
    format!("{whole}.{}{letter}", tenths_of * 10 / 1024)
}

/// The choice in brackets of a line such as `[lru] fifo random`.
fn chosen(line: &str) -> anyhow::Result<&str> {
    let inside = line.split_once('[').and_then(|(_, rest)| rest.split_once(']'));
    Ok(inside.with_context(|| format!("no choice in {line:?}"))?.0)
}

/// What a terminal shows of what a guest printed. A program that takes long, as all do on a busy host,
/// draws its progress there: on a line that it wipes at last, and the next one that prints goes on in it.
pub(super) fn shown(output: &str) -> String {
    let mut text = String::with_capacity(output.len());
    for line in output.lines() {
        let line = line.trim_end_matches('\r');
        let last = line.rsplit('\r').next().unwrap_or_default();
        text.extend(strip_str(last));
        text.push('\n');
    }
    text
}

fn is_table_row(line: &str) -> bool {
    line.contains(":\t")
}

/// What follows the word in the kernel's line, where the line is such a mark.
fn mark<'a>(line: &'a str, word: &str) -> Option<&'a str> {
    line.split_once(word).map(|(_, rest)| rest.trim())
}

/// The lines after the last mark with this name.
fn after_mark<'a>(
    lines: &'a [String],
    word: &str,
    name: &str,
) -> impl Iterator<Item = &'a str> + use<'a> {
    let last = lines.iter().rposition(|line| mark(line, word) == Some(name));
    lines.iter().skip(last.map_or(lines.len(), |index| index + 1)).map(String::as_str)
}

fn complains(line: &str) -> bool {
    const WORDS: [&str; 19] = [
        "error",
        "bad ",
        "inconsistent",
        "disabling",
        "corrupt",
        "fail",
        "too small",
        "unsupported",
        "no journal entries",
        "missing",
        "duplicate",
        "beyond end",
        "bug:",
        "warning:",
        "oops",
        "lockup",
        "panic",
        "blocked for more than",
        "call trace",
    ];
    let line = line.to_lowercase();
    // Only where one begins: a UUID may end with "bad".
    let begins = |at: usize| !line[..at].ends_with(|before: char| before.is_ascii_alphanumeric());
    WORDS.iter().any(|word| line.match_indices(word).any(|(at, _)| begins(at)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::Fixture;

    #[test]
    fn a_complaint_is_a_word() {
        let line =
            "bcache: cache_set_free() Cache set 7794a962-c77b-4ee5-9fb8-063b50434bad unregistered";
        assert!(!complains(line));
        for line in [
            "bcache: bch_journal_read() bad checksum",
            "bcache: register_bcache() error : Bad magic",
            "------------[ cut here ]------------ WARNING: CPU: 0",
            "bcache: bch_cache_set_error() error on 7794a962: IO error reading",
            "I/O error, dev vdb, sector 8",
        ] {
            assert!(complains(line), "{line}");
        }
    }

    #[test]
    fn clean_fixture() -> anyhow::Result<()> {
        let log = Fixture::log("clean-612")?;
        assert_eq!(log.release.as_deref(), Some("6.12.111+deb12-amd64"));
        assert_eq!((log.status, log.power_cut), (Some(0), false));
        let set = log.set_figures()?;
        assert_eq!(set.caches.len(), 1);
        let cache = &set.caches[0];
        assert_eq!((cache.nbuckets, cache.replacement.as_str()), (1024, "lru"));
        let stats = &cache.priority_stats;
        assert_eq!((stats.unused, stats.clean, stats.dirty, stats.metadata), (85, 14, 0, 1));
        assert_eq!((stats.average, stats.sectors_per_quantile), (71, 1280));
        assert_eq!(stats.quantiles.len(), 31);
        assert_eq!(stats.quantiles.last(), Some(&153));
        assert_eq!((set.available_percent, set.btree_nodes, set.tree_depth), (98, 1, 0));
        assert_eq!((set.root_usage_percent, set.btree_used_percent), (12, 12));
        assert_eq!(set.average_key_size, "24.0k");
        let backing = log.backing_figures("/dev/vda")?;
        assert_eq!(backing.dirty_data, "0.0k");
        assert_eq!(
            (backing.state.as_str(), backing.cache_mode.as_str()),
            ("clean", "writethrough")
        );
        assert!(backing.running);
        assert_eq!(log.md5("/dev/bcache0"), Some("7733b1e5ac886188ec029ebcf33814b1"));
        assert_eq!(log.kernel_lines().count(), 7);
        assert_eq!(log.errors(), Vec::<&str>::new());
        Ok(())
    }

    #[test]
    fn power_cut_fixtures() -> anyhow::Result<()> {
        let log = Fixture::log("crash-612")?;
        assert_eq!((log.status, log.power_cut), (None, true));
        assert_eq!(
            log.md5s("/dev/bcache0"),
            ["baf30608603f5bd04ef2f9f60e93ca64", "af79370e126e2b3afdb5e2e3e0ee0d7f"]
        );
        let log = Fixture::log("crashhot-61")?;
        assert!(log.power_cut);
        assert_eq!(log.release.as_deref(), Some("6.1.0-50-amd64"));
        assert_eq!(log.md5("/dev/bcache0"), None);
        assert_eq!(log.backing_figures("vda")?.dirty_data, "7.3M");
        Ok(())
    }

    #[test]
    fn several_volumes_fixture() -> anyhow::Result<()> {
        let log = Fixture::log("multi-612")?;
        assert_eq!(log.md5_devices(), ["/dev/bcache0", "/dev/bcache1", "/dev/bcache2"]);
        assert_eq!(log.set_figures()?.caches[0].nbuckets, 1536);
        assert_eq!(log.backing_figures("vda")?.dirty_data, "2.3M");
        assert_eq!(log.backing_figures("vdc")?.dirty_data, "8.1M");
        assert!(log.backing_figures("vdd").is_err());
        Ok(())
    }

    #[test]
    fn every_fixture_has_figures() -> anyhow::Result<()> {
        for name in Fixture::names()? {
            let log = Fixture::log(&name)?;
            let set = log.set_figures().with_context(|| name.clone())?;
            let stats = &set.caches[0].priority_stats;
            let percent = stats.unused + stats.clean + stats.dirty + stats.metadata;
            // Each of the four is rounded down.
            assert!((97..=100).contains(&percent), "{name}: {stats:?}");
        }
        Ok(())
    }

    #[test]
    fn progress_on_a_terminal_hides_no_line() {
        let printed = "LAB-BEGIN 6.1\r\nreplay \u{2591} 1/9\r\x1b[2Kreplay \u{2588} 9/9\r\x1b[2KCAPTURE report\r\n\
                       \x1b[1;31m{\x1b[0m}\r\n\r\nCAPTURE-END 0\r\n\x1b[?25hLAB-STATUS 0\r\n";
        let shown = shown(printed);
        assert_eq!(shown, "LAB-BEGIN 6.1\nCAPTURE report\n{}\n\nCAPTURE-END 0\nLAB-STATUS 0\n");
        let log = Log::parse(&shown, "");
        let report = Capture { output: "{}\n".to_owned(), status: Some(0) };
        assert_eq!(log.capture("report"), Some(&report));
    }

    #[test]
    fn stages_captures_and_registrations() {
        let output = "LAB-BEGIN 6.1\r\nSTAGE one\r\nREGISTER /dev/vda accepted\r\nSYSFS a\r\n1\r\n\
                      text\r\nCAPTURE show\r\n{\r\n}\r\n\r\nCAPTURE-END 3\r\nSTAGE two\r\n\
                      REGISTER /dev/vda refused\r\nSYSFS a\r\n2\r\nCRASH\r\n";
        let console = "[ 1.0] ACPI error while booting\r\n[ 2.0] LAB-BEGIN\r\n[ 2.1] LAB-STAGE one\r\n\
                       [ 2.2] LAB-REGISTER /dev/vda\r\n[ 2.3] bcache: register_bdev() registered\r\n\
                       [ 3.0] LAB-STAGE two\r\n[ 3.1] LAB-REGISTER /dev/vda\r\n\
                       [ 3.2] bcache: register_bcache() error : Bad checksum\r\n";
        let log = Log::parse(&shown(output), console);
        assert_eq!(log.figure("a"), Some("2"));
        assert_eq!(log.errors(), ["[ 3.2] bcache: register_bcache() error : Bad checksum"]);
        assert_eq!(log.register_error("/dev/vda"), Some("Bad checksum"));
        assert_eq!(log.register_error("/dev/vdb"), None);
        assert_eq!(log.accepted("/dev/vda"), Some(false));
        assert_eq!((log.status, log.power_cut), (None, true));
        let one = log.stage("one").unwrap();
        assert_eq!(one.figure("a"), Some("1"));
        assert_eq!(one.accepted("/dev/vda"), Some(true));
        assert_eq!(one.errors(), Vec::<&str>::new());
        assert_eq!(one.kernel_lines().count(), 1);
        let show = Capture { output: "{\n}\n".to_owned(), status: Some(3) };
        assert_eq!(one.capture("show"), Some(&show));
        assert_eq!(log.stage("two").unwrap().capture("show"), None);
        assert_eq!(log.stage("three"), None);
    }

    #[test]
    fn values_without_form_are_errors() {
        let log = Log::parse(
            "SYSFS cache0/nbuckets\n12x\nSYSFS cache0/priority_stats\nUnused:\t7%\n",
            "",
        );
        assert!(log.number("cache0/nbuckets").is_err());
        assert!(log.set_figures().is_err());
        assert!("Unused:\t7%".parse::<PriorityStats>().is_err());
    }

    #[test]
    fn sizes_are_rounded_as_the_kernel_does() {
        assert_eq!(rounded_size(0), "0.0k");
        assert_eq!(rounded_size(512), "0.5k");
        assert_eq!(rounded_size(24 << 10), "24.0k");
        assert_eq!(rounded_size(999 << 10), "999.0k");
        assert_eq!(rounded_size(1000 << 10), "0.9M");
        assert_eq!(rounded_size(3 << 20), "3.0M");
        assert_eq!(rounded_size((7 << 20) + (300 << 10)), "7.2M");
    }
}
