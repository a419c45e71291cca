//! What `top` shows: figures of one look, and rates from two.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use bcache_core::running::{
    Backing, DeviceState, DiskStats, Finding, Part, Rounded, Set, Severity, View, findings,
};
use uuid::Uuid;

use crate::cli::running::TopSort;
use crate::commands::running::status::{CleanIn, Rates, in_words, rates_between};

/// What the kernel said at a moment.
pub(super) struct Sample {
    pub(super) view: View,
    pub(super) at: Instant,
    /// What did not answer.
    pub(super) silent: BTreeSet<Part>,
}

/// Figures of all sets and devices.
pub(super) struct Figures {
    pub(super) sets: Vec<SetRow>,
    pub(super) devices: Vec<DeviceRow>,
    /// What must not stay as it is, the worst first.
    pub(super) findings: Vec<(Severity, String)>,
    /// Whether the kernel's bcache is there.
    pub(super) available: bool,
}

/// A set and its cache device.
#[derive(Clone, Debug)]
pub(super) struct SetRow {
    pub(super) uuid: Uuid,
    pub(super) cache: Option<String>,
    pub(super) available_percent: Option<u64>,
    /// Bytes a second read from the cache device and written to it.
    pub(super) read: Option<f64>,
    pub(super) written: Option<f64>,
    /// Of all of its backing devices.
    pub(super) hit_ratio: Option<f64>,
    pub(super) gc_age_seconds: Option<u64>,
    /// A garbage collection has ended since the look before.
    pub(super) gc_ended: bool,
    pub(super) btree_nodes: Option<u64>,
    pub(super) journal_entries: Option<u64>,
    pub(super) io_errors: Option<u64>,
    /// Reads and writes wait in bcache, and the devices have nothing to do.
    pub(super) stalled: bool,
}

/// A backing device.
#[derive(Clone, Debug)]
pub(super) struct DeviceRow {
    /// What it runs as, or its own name.
    pub(super) name: String,
    pub(super) backing: String,
    pub(super) label: Option<String>,
    pub(super) set: Option<Uuid>,
    pub(super) state: DeviceState,
    pub(super) mode: Option<String>,
    pub(super) rates: Option<Rates>,
    pub(super) dirty: Option<Rounded>,
    pub(super) dirty_target: Option<Rounded>,
    pub(super) writeback_rate: Option<Rounded>,
    pub(super) clean_in: Option<CleanIn>,
    pub(super) in_flight: Option<u64>,
    pub(super) io_errors: Option<u64>,
    pub(super) stalled: bool,
}

/// Bytes a second over `seconds`.
fn rate(sectors: u64, elapsed: Duration) -> f64 {
    let bytes = sectors.saturating_mul(bcache_core::units::SECTOR_BYTES);
    #[expect(clippy::cast_precision_loss, reason = "a rate for people")]
    let bytes = bytes as f64;
    bytes / elapsed.as_secs_f64().max(f64::EPSILON)
}

/// Whether nothing was done on a device between two looks, and nothing is under way.
fn idle(before: Option<DiskStats>, now: Option<DiskStats>) -> bool {
    let (Some(before), Some(now)) = (before, now) else { return false };
    now.in_flight == 0 && now.since(&before).is_some_and(|it| it.reads == 0 && it.writes == 0)
}

/// Whether reads and writes wait in bcache while neither device works: for a bucket, for room in the
/// journal, or for garbage collection. The kernel itself counts no such waits.
fn is_stalled(before: &View, now: &View, backing: &Backing) -> bool {
    let Some(then) = before.backing_device(&backing.name) else { return false };
    let waits = |it: &Backing| it.bcache_disk.is_some_and(|disk| disk.in_flight > 0);
    let nothing_done = then.bcache_disk.zip(backing.bcache_disk).is_some_and(|(then, now)| {
        now.since(&then).is_some_and(|it| it.reads == 0 && it.writes == 0)
    });
    let cache_of = |view: &View| {
        let set = view.set(backing.set?)?;
        set.cache.as_ref()?.disk
    };
    waits(then)
        && waits(backing)
        && nothing_done
        && idle(then.disk, backing.disk)
        && idle(cache_of(before), cache_of(now))
}

impl Figures {
    /// The figures of `now`, with rates where there is a look before it.
    pub(super) fn new(before: Option<&Sample>, now: &Sample) -> Self {
        let elapsed = before.map(|before| now.at.saturating_duration_since(before.at));
        let rates = match (before, elapsed) {
            (Some(before), Some(elapsed)) => rates_between(&before.view, &now.view, elapsed),
            _ => std::collections::BTreeMap::new(),
        };
        let devices: Vec<DeviceRow> = now
            .view
            .backing
            .iter()
            .map(|backing| DeviceRow {
                name: backing.bcache.clone().unwrap_or_else(|| backing.name.clone()),
                backing: backing.name.clone(),
                label: backing.label.clone(),
                set: backing.set,
                state: DeviceState::of(backing),
                mode: backing.cache_mode.clone(),
                rates: rates.get(&backing.name).copied(),
                dirty: backing.dirty,
                dirty_target: backing.dirty_target,
                writeback_rate: backing.writeback_rate,
                clean_in: CleanIn::of(backing),
                in_flight: backing.bcache_disk.map(|it| it.in_flight),
                io_errors: backing.io_errors,
                stalled: before.is_some_and(|it| is_stalled(&it.view, &now.view, backing)),
            })
            .collect();
        let sets = now.view.sets.iter().map(|set| {
            let then = before.and_then(|it| it.view.set(set.uuid));
            SetRow::new(set, then.zip(elapsed), &devices)
        });
        // Superblocks are not read again and again.
        let found = findings(&now.view, &|_| None);
        let is_silent = |device: &String| now.silent.contains(&Part::Device(device.clone()));
        let found = found
            .iter()
            .filter(|it| !matches!(it, Finding::Unknown { device } if is_silent(device)));
        let words = found.map(in_words).map(|it| (it.severity, it.text));
        Self {
            sets: sets.collect(),
            findings: words.collect(),
            devices,
            available: now.view.available,
        }
    }

    /// Sorts the devices; equal ones by name.
    pub(super) fn sort(&mut self, by: TopSort) {
        let number = |name: &str| {
            let digits = name.trim_start_matches(|it: char| !it.is_ascii_digit());
            (name.len() - digits.len(), digits.parse::<u64>().ok(), name.to_owned())
        };
        self.devices.sort_by_key(|row| number(&row.name));
        let value = |row: &DeviceRow| match by {
            TopSort::Name => 0.0,
            TopSort::Read => row.rates.map_or(0.0, |it| -it.read_bytes),
            TopSort::Write => row.rates.map_or(0.0, |it| -it.written_bytes),
            // Without reads there is no ratio, and nothing to see.
            TopSort::Hits => row.rates.and_then(|it| it.byte_hit_ratio).unwrap_or(2.0),
            #[expect(clippy::cast_precision_loss, reason = "an order for people")]
            TopSort::Dirty => row.dirty.map_or(0.0, |it| -(it.at_most() as f64)),
        };
        // Stable, so that equal ones stay by name.
        self.devices.sort_by(|a, b| value(a).total_cmp(&value(b)));
    }
}

impl SetRow {
    fn new(set: &Set, before: Option<(&Set, Duration)>, devices: &[DeviceRow]) -> Self {
        let cache = set.cache.as_ref();
        let disk = before.and_then(|(then, elapsed)| {
            let now = cache?.disk?;
            Some((now.since(&then.cache.as_ref()?.disk?)?, elapsed))
        });
        let own: Vec<&DeviceRow> = devices.iter().filter(|row| row.set == Some(set.uuid)).collect();
        let sum = |of: fn(&Rates) -> f64| -> f64 {
            own.iter().filter_map(|row| row.rates.as_ref().map(of)).sum()
        };
        let (read, from_disk) = (sum(|it| it.read_bytes), sum(|it| it.backing_read_bytes));
        let age_before = before.and_then(|(then, _)| then.gc_age_seconds);
        Self {
            uuid: set.uuid,
            cache: cache.map(|it| it.name.clone()),
            available_percent: set.available_percent,
            read: disk.map(|(disk, elapsed)| rate(disk.read_sectors, elapsed)),
            written: disk.map(|(disk, elapsed)| rate(disk.written_sectors, elapsed)),
            hit_ratio: (read > 0.0).then(|| (1.0 - from_disk / read).clamp(0.0, 1.0)),
            gc_age_seconds: set.gc_age_seconds,
            gc_ended: before.is_some()
                && set.gc_age_seconds.is_some_and(|now| age_before.is_none_or(|then| now < then)),
            btree_nodes: set.btree_nodes,
            journal_entries: set.active_journal_entries,
            io_errors: cache.and_then(|it| it.io_errors),
            stalled: own.iter().any(|row| row.stalled),
        }
    }
}

#[cfg(test)]
mod tests {
    use bcache_core::running::View;

    use super::*;

    /// A look at a set with one device, whose counters are `bcache`, `backing` and `cache`: reads,
    /// sectors read, writes, sectors written, in flight.
    fn sample(seconds: u64, bcache: [u64; 5], backing: [u64; 5], cache: [u64; 5]) -> Sample {
        let folder = tempfile::tempdir().unwrap();
        let recorded =
            concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/running/dirty-6.12.sysfs");
        let text = std::fs::read_to_string(recorded).unwrap();
        let root = bcache_core::running::recorded::unpack(&text, folder.path()).unwrap();
        for (name, [reads, read, writes, written, in_flight]) in
            [("bcache0", bcache), ("vda", backing), ("vdb", cache)]
        {
            let stat = format!("{reads} 0 {read} 0 {writes} 0 {written} 0 {in_flight} 0 0\n");
            std::fs::write(root.sys("class/block").join(name).join("stat"), stat).unwrap();
        }
        let view = View::read(&root).unwrap();
        let at = Instant::now() + Duration::from_secs(seconds);
        Sample { view, at, silent: BTreeSet::new() }
    }

    #[test]
    fn rates_and_hits_are_the_block_layers() {
        let before = sample(0, [0; 5], [0; 5], [0; 5]);
        let mut now = sample(2, [10, 4096, 5, 2048, 1], [3, 1024, 0, 0, 0], [0, 3072, 9, 4096, 0]);
        now.at = before.at + Duration::from_secs(2);
        let figures = Figures::new(Some(&before), &now);
        let (set, device) = (&figures.sets[0], &figures.devices[0]);
        let rates = device.rates.unwrap();
        assert_eq!((rates.read_bytes, rates.written_bytes), (1_048_576.0, 524_288.0));
        assert_eq!(rates.byte_hit_ratio, Some(0.75));
        assert_eq!((set.read, set.written), (Some(786_432.0), Some(1_048_576.0)));
        assert_eq!(set.hit_ratio, Some(0.75));
        assert_eq!(device.in_flight, Some(1));
        assert!(!device.stalled, "it has done something");
    }

    #[test]
    fn waiting_for_nothing_that_works_is_a_stall() {
        let looks = |after: [u64; 5], backing: [u64; 5], cache: [u64; 5]| {
            let before = sample(0, [7, 8, 9, 8, 2], [1, 8, 1, 8, 0], [1, 8, 1, 8, 0]);
            Figures::new(Some(&before), &sample(1, after, backing, cache)).devices[0].stalled
        };
        let same = [1, 8, 1, 8, 0];
        assert!(looks([7, 8, 9, 8, 2], same, same));
        assert!(!looks([7, 8, 9, 8, 0], same, same), "nothing waits");
        assert!(!looks([8, 16, 9, 8, 2], same, same), "it goes on");
        assert!(!looks([7, 8, 9, 8, 2], [1, 8, 1, 8, 1], same), "the disk works");
        assert!(!looks([7, 8, 9, 8, 2], same, [1, 8, 2, 16, 0]), "the cache worked");
        let before = sample(0, [7, 8, 9, 8, 2], same, same);
        assert!(!Figures::new(None, &before).devices[0].stalled);
    }

    #[test]
    fn devices_are_sorted_by_number_then_by_value() {
        let before = sample(0, [0; 5], [0; 5], [0; 5]);
        let now = sample(1, [1, 8, 0, 0, 0], [0; 5], [0; 5]);
        let mut figures = Figures::new(Some(&before), &now);
        let row = figures.devices[0].clone();
        let named = |name: &str, read: f64| {
            let rates = row.rates.map(|it| Rates { read_bytes: read, ..it });
            DeviceRow { name: name.to_owned(), rates, ..row.clone() }
        };
        figures.devices =
            vec![named("bcache10", 5.0), named("bcache9", 1.0), named("bcache1", 5.0)];
        let names = |figures: &Figures| -> Vec<String> {
            figures.devices.iter().map(|row| row.name.clone()).collect()
        };
        figures.sort(TopSort::Name);
        assert_eq!(names(&figures), ["bcache1", "bcache9", "bcache10"]);
        figures.sort(TopSort::Read);
        assert_eq!(names(&figures), ["bcache1", "bcache10", "bcache9"]);
    }
}
