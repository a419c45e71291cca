//! What else happened on the machine while a run lasted.
//!
//! [`Watch::start`] before and [`Watch::finish`] after a run; the differences are [`Observed`], which
//! `warnings` judges.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use bcache_core::device::sysfs::{BlockDir, Root};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use nix::unistd::{SysconfVar, sysconf};

use crate::environment::{cpu_dirs, read_line};

/// Sectors that went to and from a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DeviceIo {
    /// Sectors read.
    pub read_sectors: u64,
    /// Sectors written.
    pub written_sectors: u64,
}

impl DeviceIo {
    fn minus(self, other: Self) -> Self {
        Self {
            read_sectors: self.read_sectors.saturating_sub(other.read_sectors),
            written_sectors: self.written_sectors.saturating_sub(other.written_sectors),
        }
    }

    /// From the `stat` attribute of a block device: reads, merged, sectors, ms, writes, merged,
    /// sectors, ms, ...
    fn parse(stat: &str) -> Option<Self> {
        let mut fields = stat.split_ascii_whitespace();
        let read_sectors = fields.nth(2)?.parse().ok()?;
        let written_sectors = fields.nth(3)?.parse().ok()?;
        Some(Self { read_sectors, written_sectors })
    }
}

/// CPU time of the whole machine in clock ticks since it was started.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct CpuTicks {
    busy: u64,
    idle: u64,
    steal: u64,
}

impl CpuTicks {
    /// From /proc/stat: user, nice, system, idle, iowait, irq, softirq, steal (the guests' shares
    /// are in the first two).
    fn parse(stat: &str) -> Option<Self> {
        let line = stat.lines().find_map(|line| line.strip_prefix("cpu "))?;
        let ticks: Vec<u64> =
            line.split_ascii_whitespace().map_while(|field| field.parse().ok()).collect();
        match ticks.as_slice() {
            [user, nice, system, idle, iowait, irq, softirq, steal, ..] => Some(Self {
                busy: user + nice + system + irq + softirq,
                idle: idle + iowait,
                steal: *steal,
            }),
            _ => None,
        }
    }
}

/// The state of the machine at one moment.
#[derive(Clone, Debug, Default)]
struct Snapshot {
    cpu: Option<CpuTicks>,
    /// By CPU, in kHz.
    frequencies_khz: BTreeMap<String, u64>,
    /// By the kernel's name.
    devices: BTreeMap<String, DeviceIo>,
    own_cpu: Duration,
    own_involuntary_switches: u64,
}

impl Snapshot {
    fn take(root: &Root, devices: &[String]) -> Self {
        let stat = fs::read_to_string(root.proc("stat")).unwrap_or_default();
        let frequency = |cpu: std::path::PathBuf| {
            let khz = read_line(&cpu.join("cpufreq/scaling_cur_freq"))?.parse().ok()?;
            Some((cpu.file_name()?.to_string_lossy().into_owned(), khz))
        };
        let io = |name: &String| {
            let stat = BlockDir::by_name(root, name)?.attribute("stat")?;
            Some((name.clone(), DeviceIo::parse(&stat)?))
        };
        let mut snapshot = Self {
            cpu: CpuTicks::parse(&stat),
            frequencies_khz: cpu_dirs(root).filter_map(frequency).collect(),
            devices: devices.iter().filter_map(io).collect(),
            ..Self::default()
        };
        if let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) {
            let time = usage.user_time() + usage.system_time();
            let micros = u64::try_from(time.num_microseconds()).unwrap_or(0);
            snapshot.own_cpu = Duration::from_micros(micros);
            snapshot.own_involuntary_switches =
                u64::try_from(usage.involuntary_context_switches()).unwrap_or(0);
        }
        snapshot
    }
}

/// A run being watched.
#[derive(Debug)]
pub struct Watch {
    root: Root,
    devices: Vec<String>,
    began: Instant,
    before: Snapshot,
}

/// What was seen.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    /// How long the machine was watched.
    pub elapsed: Duration,
    /// Share of the CPUs' time that the hypervisor kept, from 0 to 1.
    pub steal_share: f64,
    /// CPUs that other programs kept busy, on the average.
    pub other_cpus: f64,
    /// Times that a thread of ours lost its CPU against its will.
    pub involuntary_switches: u64,
    /// Lowest and highest frequency seen at the beginning and at the end, in kHz.
    pub frequency_khz: Option<(u64, u64)>,
    /// I/O to each device, whoever did it, by the kernel's name.
    pub devices: BTreeMap<String, DeviceIo>,
}

impl Watch {
    /// Begins to watch the machine and the block devices with these kernel names.
    pub fn start(root: Root, devices: Vec<String>) -> Self {
        let before = Snapshot::take(&root, &devices);
        Self { root, devices, began: Instant::now(), before }
    }

    /// What happened since.
    pub fn finish(self) -> Observed {
        let elapsed = self.began.elapsed();
        let after = Snapshot::take(&self.root, &self.devices);
        let ticks_per_second = match sysconf(SysconfVar::CLK_TCK) {
            Ok(Some(ticks)) => u64::try_from(ticks).unwrap_or(100),
            _ => 100,
        };
        observe(elapsed, ticks_per_second, &self.before, &after)
    }
}

fn observe(
    elapsed: Duration,
    ticks_per_second: u64,
    before: &Snapshot,
    after: &Snapshot,
) -> Observed {
    use crate::num::{float, ratio};
    let mut observed = Observed {
        elapsed,
        involuntary_switches: after
            .own_involuntary_switches
            .saturating_sub(before.own_involuntary_switches),
        ..Observed::default()
    };
    if let (Some(before_cpu), Some(after_cpu)) = (before.cpu, after.cpu) {
        let busy = after_cpu.busy.saturating_sub(before_cpu.busy);
        let idle = after_cpu.idle.saturating_sub(before_cpu.idle);
        let steal = after_cpu.steal.saturating_sub(before_cpu.steal);
        observed.steal_share = ratio(steal, busy + idle + steal).unwrap_or(0.0);
        let own = after.own_cpu.saturating_sub(before.own_cpu).as_secs_f64();
        let other = (float(busy) / float(ticks_per_second.max(1)) - own).max(0.0);
        let seconds = elapsed.as_secs_f64();
        observed.other_cpus = if seconds > 0.0 { other / seconds } else { 0.0 };
    }
    let frequencies = || before.frequencies_khz.values().chain(after.frequencies_khz.values());
    observed.frequency_khz = frequencies().min().copied().zip(frequencies().max().copied());
    for (name, io) in &after.devices {
        let then = before.devices.get(name).copied().unwrap_or_default();
        observed.devices.insert(name.clone(), io.minus(then));
    }
    observed
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::environment::tests::Tree;

    #[test]
    fn differences_are_told() {
        let tree = Tree::new();
        tree.write("proc/stat", "cpu  100 0 50 1000 10 1 2 5 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n");
        tree.write("sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq", "3000000\n");
        tree.write("sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq", "2800000\n");
        tree.write("sys/class/block/sda/stat", "  1 2 300 4 5 6 700 8 0 0 0 0 0 0 0 0 0\n");
        let watch = Watch::start(tree.root(), vec!["sda".to_owned(), "absent".to_owned()]);
        tree.write("proc/stat", "cpu  150 0 90 1100 20 2 3 205 0 0\n");
        tree.write("sys/devices/system/cpu/cpu1/cpufreq/scaling_cur_freq", "800000\n");
        tree.write("sys/class/block/sda/stat", "  1 2 364 4 5 6 1700 8 0 0 0\n");
        let after = Snapshot::take(&tree.root(), &watch.devices);
        let before = Snapshot { own_cpu: Duration::ZERO, ..watch.before.clone() };
        let after = Snapshot { own_cpu: Duration::from_millis(420), ..after };
        let observed = observe(Duration::from_secs(1), 100, &before, &after);
        // 92 ticks busy, 110 idle, 200 stolen; 0.92 s less our own 0.42 s.
        assert!((observed.steal_share - 200.0 / 402.0).abs() < 1e-9, "{observed:?}");
        assert!((observed.other_cpus - 0.5).abs() < 1e-9, "{observed:?}");
        assert_eq!(observed.frequency_khz, Some((800_000, 3_000_000)));
        let io = DeviceIo { read_sectors: 64, written_sectors: 1000 };
        assert_eq!(observed.devices, BTreeMap::from([("sda".to_owned(), io)]));
    }

    #[test]
    fn what_cannot_be_told_is_nothing() {
        let tree = Tree::new();
        tree.write("proc/stat", "cpu  1 2 3\n");
        let observed = Watch::start(tree.root(), vec!["sda".to_owned()]).finish();
        assert_eq!((observed.frequency_khz, observed.devices.len()), (None, 0));
        assert!(observed.steal_share == 0.0 && observed.other_cpus == 0.0);
    }

    #[test]
    fn our_own_work_is_not_that_of_others() {
        let watch = Watch::start(Root::system(), Vec::new());
        let end = Instant::now() + Duration::from_millis(300);
        while Instant::now() < end {
            std::hint::spin_loop();
        }
        let own = watch.before.own_cpu;
        let observed = watch.finish();
        assert!(observed.elapsed >= Duration::from_millis(300));
        let after = Snapshot::take(&Root::system(), &[]);
        assert!(after.own_cpu > own);
    }
}
