//! What makes a measurement dubious, as values in the report.
//!
//! Nothing here stops a run or alters a figure: a warning says what a reader has to know before the
//! figures are believed. The thresholds are constants below, each with its reason.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use bcache_core::units::{Sectors, format_bytes};
use serde::{Deserialize, Serialize};

use crate::environment::{Backing, Environment};
use crate::num::{float, format_count, format_ns, ratio};
use crate::record::Measure;
use crate::record::slices::SLICES_NEEDED;
use crate::report::{Percentile, Run};
use crate::watch::{DeviceIo, Observed};

/// More time than this taken by the hypervisor shows in p99.
const STEAL_SHARE_MAX: f64 = 0.005;
/// Other programs that keep more than this many CPUs busy compete with the writers.
const OTHER_CPUS_MAX: f64 = 0.1;
/// More involuntary switches a second than this are more than a kernel's own housekeeping.
const SWITCHES_PER_SECOND_MAX: f64 = 100.0;
/// CPUs whose frequencies are further apart than this ran at different speeds.
const FREQUENCY_RATIO_MAX: f64 = 1.05;
/// I/O of others beyond this share of ours; below it, it is somebody who looked at the device.
const OTHER_IO_SHARE_MAX: f64 = 0.01;
/// I/O of others that is always allowed: a probe of the device by udev.
const OTHER_IO_SECTORS_MAX: u64 = 8192;
/// A clock that steps by more than this share of a median says little about it.
const CLOCK_SHARE_MAX: f64 = 0.1;
/// Share of late operations from which on an open loop has not kept its pace.
const LATE_SHARE_MAX: f64 = 0.01;

/// Something that makes figures dubious.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "code", rename_all = "snake_case")]
pub enum Warning {
    /// The program was built for debugging.
    DebugBuild,
    /// A percentile rests on fewer than ten samples beyond it.
    TooFewSamples {
        /// The run.
        run: String,
        /// The measure.
        measure: Measure,
        /// The lowest percentile for which it holds.
        percentile: Percentile,
        /// Samples there are.
        samples: u64,
        /// Samples it takes.
        needed: u64,
    },
    /// A run that is too short to tell its rate from noise.
    ShortRun {
        /// The run.
        run: String,
        /// How long it lasted, in ns.
        elapsed_ns: u64,
    },
    /// A time limit ended a run before it had made its passes.
    LimitReached {
        /// The run.
        run: String,
        /// Passes that it made.
        passes: u64,
        /// Passes that were wanted.
        wanted: u64,
    },
    /// Discards were asked of a device that takes none.
    NoDiscard {
        /// The device.
        device: PathBuf,
    },
    /// The kernel's clock does not come from the CPU's counter.
    Clocksource {
        /// Where it comes from.
        clocksource: String,
    },
    /// The clock is coarse, or slow to read, compared with what was measured.
    ClockResolution {
        /// The run.
        run: String,
        /// The measure.
        measure: Measure,
        /// The median in ns.
        p50_ns: u64,
        /// What the clock tells apart, or what reading it costs, whichever is more, in ns.
        clock_ns: u64,
    },
    /// The CPUs' frequency follows the load.
    Governor {
        /// How it is chosen.
        governor: String,
    },
    /// The CPUs ran at different frequencies.
    FrequencyChanged {
        /// The lowest that was seen, in MHz.
        lowest_mhz: u64,
        /// The highest.
        highest_mhz: u64,
    },
    /// Somebody else read or wrote the device.
    OtherUserOfDevice {
        /// The kernel's name of the disk.
        disk: String,
        /// Sectors that others read.
        read_sectors: u64,
        /// Sectors that others wrote.
        written_sectors: u64,
    },
    /// A loop device that goes through the page cache.
    LoopOverPageCache {
        /// The loop device.
        device: PathBuf,
        /// What it reads.
        file: PathBuf,
    },
    /// An image file: its file system is measured, too.
    ImageFile {
        /// The image.
        image: PathBuf,
        /// Whether its file system keeps it in memory.
        in_memory: bool,
    },
    /// The hypervisor ran something else.
    Steal {
        /// The share of CPU time, from 0 to 1.
        share: f64,
    },
    /// Other programs were busy.
    OtherPrograms {
        /// So many CPUs, on the average.
        cpus: f64,
    },
    /// Threads lost their CPU against their will.
    InvoluntarySwitches {
        /// So often a second.
        per_second: f64,
    },
    /// There are more threads than CPUs.
    MoreThreadsThanCpus {
        /// Threads that want to run all the time.
        threads: u32,
        /// CPUs.
        cpus: u32,
    },
    /// An open loop in which operations began late.
    PaceNotKept {
        /// The run.
        run: String,
        /// Share of late operations, from 0 to 1.
        late_share: f64,
        /// The latest, in ns.
        late_ns_max: u64,
    },
}

impl fmt::Display for Warning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DebugBuild => {
                f.write_str("this is a debug build: every figure is worse than it would be")
            }
            Self::TooFewSamples { run, measure, percentile, samples, needed } => write!(
                f,
                "{run}: {} samples of {measure} are too few for {percentile} (it takes {})",
                format_count(*samples),
                format_count(*needed)
            ),
            Self::ShortRun { run, elapsed_ns } => write!(
                f,
                "{run}: {} are too short to tell a rate from noise (it takes a second)",
                format_ns(float(*elapsed_ns))
            ),
            Self::LimitReached { run, passes, wanted } => {
                write!(f, "{run}: the time limit ended it after {passes} of {wanted} passes")
            }
            Self::NoDiscard { device } => {
                write!(f, "{} takes no discards: --discard had no effect", device.display())
            }
            Self::Clocksource { clocksource } => write!(
                f,
                "the clocksource is {clocksource}, not tsc: reading the clock is slow and coarse"
            ),
            Self::ClockResolution { run, measure, p50_ns, clock_ns } => write!(
                f,
                "{run}: {measure} takes {}, of which up to {} are the clock's",
                format_ns(float(*p50_ns)),
                format_ns(float(*clock_ns))
            ),
            Self::Governor { governor } => write!(
                f,
                "the CPU frequency governor is {governor}, not performance: short runs see slow CPUs"
            ),
            Self::FrequencyChanged { lowest_mhz, highest_mhz } => {
                write!(f, "CPU frequencies between {lowest_mhz} and {highest_mhz} MHz were seen")
            }
            Self::OtherUserOfDevice { disk, read_sectors, written_sectors } => write!(
                f,
                "others read {} from {disk} and wrote {} to it during the run",
                format_bytes(Sectors(*read_sectors).bytes()),
                format_bytes(Sectors(*written_sectors).bytes())
            ),
            Self::LoopOverPageCache { device, file } => write!(
                f,
                "{} goes through the page cache of {}: writes end in memory, and each flush writes back \
                 what is there, so that ratios between runs that flush more and less often say little \
                 (losetup --direct-io=on)",
                device.display(),
                file.display()
            ),
            Self::ImageFile { image, in_memory: false } => {
                write!(f, "{} is a file: its file system is measured, too", image.display())
            }
            Self::ImageFile { image, in_memory: true } => {
                write!(f, "{} is in memory: no device is measured", image.display())
            }
            Self::Steal { share } => {
                write!(f, "the hypervisor took {:.1} % of the CPU time", share * 100.0)
            }
            Self::OtherPrograms { cpus } => {
                write!(f, "other programs kept {cpus:.2} CPUs busy during the run")
            }
            Self::InvoluntarySwitches { per_second } => write!(
                f,
                "threads lost their CPU {per_second:.0} times a second: the tail shows the scheduler"
            ),
            Self::MoreThreadsThanCpus { threads, cpus } => write!(
                f,
                "{threads} threads that want to run all the time share {cpus} {}",
                if *cpus == 1 { "CPU" } else { "CPUs" }
            ),
            Self::PaceNotKept { run, late_share, late_ns_max } => write!(
                f,
                "{run}: {:.1} % of the operations began late, by up to {}: their latency counts from \
                 when they were due",
                late_share * 100.0,
                format_ns(float(*late_ns_max))
            ),
        }
    }
}

/// Warnings that can be told before the run. `busy_threads` want to run all the time.
pub fn of_environment(environment: &Environment, busy_threads: u32) -> Vec<Warning> {
    let mut warnings = Vec::new();
    if environment.debug_build {
        warnings.push(Warning::DebugBuild);
    }
    if let Some(clocksource) = environment.clocksource.as_ref().filter(|name| *name != "tsc") {
        warnings.push(Warning::Clocksource { clocksource: clocksource.clone() });
    }
    for governor in environment.governors.iter().filter(|name| *name != "performance") {
        warnings.push(Warning::Governor { governor: governor.clone() });
    }
    if busy_threads > environment.cpus {
        let (threads, cpus) = (busy_threads, environment.cpus);
        warnings.push(Warning::MoreThreadsThanCpus { threads, cpus });
    }
    for device in &environment.devices {
        match &device.backing {
            // Not to know is no reason to be content: old kernels only have buffered loop devices.
            Backing::Loop { file, direct } if *direct != Some(true) => {
                let (device, file) = (device.path.clone(), file.clone());
                warnings.push(Warning::LoopOverPageCache { device, file });
            }
            Backing::Image { in_memory } => {
                let (image, in_memory) = (device.path.clone(), *in_memory);
                warnings.push(Warning::ImageFile { image, in_memory });
            }
            Backing::Loop { .. } | Backing::Device | Backing::Memory => {}
        }
    }
    warnings
}

impl Warning {
    /// Whether it is about a device that is written to.
    pub fn is_of_device(&self) -> bool {
        matches!(
            self,
            Self::LoopOverPageCache { .. } | Self::ImageFile { .. } | Self::NoDiscard { .. }
        )
    }
}

/// Warnings about what else happened during the run. `own` is our own I/O by disk.
pub fn of_observed(observed: &Observed, own: &BTreeMap<String, DeviceIo>) -> Vec<Warning> {
    let mut warnings = Vec::new();
    if observed.steal_share > STEAL_SHARE_MAX {
        warnings.push(Warning::Steal { share: observed.steal_share });
    }
    if observed.other_cpus > OTHER_CPUS_MAX {
        warnings.push(Warning::OtherPrograms { cpus: observed.other_cpus });
    }
    let seconds = observed.elapsed.as_secs_f64();
    let per_second = float(observed.involuntary_switches) / seconds.max(1e-3);
    if per_second > SWITCHES_PER_SECOND_MAX {
        warnings.push(Warning::InvoluntarySwitches { per_second });
    }
    if let Some((lowest_khz, highest_khz)) = observed.frequency_khz {
        if float(highest_khz) > float(lowest_khz) * FREQUENCY_RATIO_MAX {
            warnings.push(Warning::FrequencyChanged {
                lowest_mhz: lowest_khz / 1000,
                highest_mhz: highest_khz / 1000,
            });
        }
    }
    for (disk, all) in &observed.devices {
        let own = own.get(disk).copied().unwrap_or_default();
        let others = |all: u64, own: u64| {
            let others = all.saturating_sub(own);
            let allowed = (float(own) * OTHER_IO_SHARE_MAX).max(float(OTHER_IO_SECTORS_MAX));
            (float(others) > allowed).then_some(others)
        };
        let read = others(all.read_sectors, own.read_sectors);
        let written = others(all.written_sectors, own.written_sectors);
        if read.is_some() || written.is_some() {
            warnings.push(Warning::OtherUserOfDevice {
                disk: disk.clone(),
                read_sectors: read.unwrap_or(0),
                written_sectors: written.unwrap_or(0),
            });
        }
    }
    warnings
}

/// Warnings about the figures themselves.
pub fn of_run(run: &Run, environment: &Environment) -> Vec<Warning> {
    let mut warnings = Vec::new();
    let late_share = ratio(run.pace.late, run.operations).unwrap_or(0.0);
    if late_share > LATE_SHARE_MAX {
        let (run, late_ns_max) = (run.name.clone(), run.pace.late_ns_max);
        warnings.push(Warning::PaceNotKept { run, late_share, late_ns_max });
    }
    if (1..SLICES_NEEDED).contains(&run.slices.len()) {
        let elapsed_ns = u64::try_from(run.elapsed.as_nanos()).unwrap_or(u64::MAX);
        warnings.push(Warning::ShortRun { run: run.name.clone(), elapsed_ns });
    }
    let clock_ns = environment.clock.read_ns.max(environment.clock.resolution_ns);
    for measured in &run.measures {
        let (measure, samples) = (measured.measure, measured.histogram.len());
        let too_few =
            Percentile::ALL.into_iter().find(|percentile| samples < percentile.samples_needed());
        if let Some(percentile) = too_few {
            warnings.push(Warning::TooFewSamples {
                run: run.name.clone(),
                measure,
                percentile,
                samples,
                needed: percentile.samples_needed(),
            });
        }
        let p50_ns = measured.percentile_ns(Percentile::P50);
        // The empty operation is there to show what the clock costs.
        if measure != Measure::Empty && float(clock_ns) > float(p50_ns) * CLOCK_SHARE_MAX {
            let run = run.name.clone();
            warnings.push(Warning::ClockResolution { run, measure, p50_ns, clock_ns });
        }
    }
    warnings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::report::sample;
    use std::time::Duration;

    fn codes(warnings: &[Warning]) -> Vec<String> {
        warnings
            .iter()
            .map(|warning| {
                assert!(!warning.to_string().is_empty());
                let json = serde_json::to_value(warning).unwrap();
                let back: Warning = serde_json::from_value(json.clone()).unwrap();
                assert_eq!(&back, warning);
                json["code"].as_str().unwrap().to_owned()
            })
            .collect()
    }

    #[test]
    fn a_quiet_machine_gives_none() {
        let environment = sample::environment();
        assert_eq!(of_environment(&environment, environment.cpus), []);
        let io = DeviceIo { read_sectors: 1_008_000, written_sectors: 2_000_000 };
        let own = DeviceIo { read_sectors: 1_000_000, written_sectors: 2_000_000 };
        let observed = Observed {
            elapsed: Duration::from_secs(10),
            steal_share: 0.001,
            other_cpus: 0.05,
            involuntary_switches: 900,
            frequency_khz: Some((3_000_000, 3_100_000)),
            devices: BTreeMap::from([("sda".to_owned(), io)]),
        };
        assert_eq!(of_observed(&observed, &BTreeMap::from([("sda".to_owned(), own)])), []);
        assert_eq!(of_run(&sample::run("allocator", 100_000, 1.0), &environment), []);
    }

    #[test]
    fn a_poor_environment_is_told() {
        let mut environment = sample::environment();
        environment.debug_build = true;
        environment.clocksource = Some("hpet".to_owned());
        environment.governors = vec!["performance".to_owned(), "powersave".to_owned()];
        let device = |backing| {
            let mut device = sample::environment().devices.remove(0);
            device.backing = backing;
            device
        };
        let file = PathBuf::from("/image");
        environment.devices = vec![
            device(Backing::Loop { file: file.clone(), direct: Some(true) }),
            device(Backing::Loop { file: file.clone(), direct: Some(false) }),
            device(Backing::Loop { file, direct: None }),
            device(Backing::Image { in_memory: false }),
        ];
        let threads = environment.cpus + 1;
        assert_eq!(
            codes(&of_environment(&environment, threads)),
            [
                "debug_build",
                "clocksource",
                "governor",
                "more_threads_than_cpus",
                "loop_over_page_cache",
                "loop_over_page_cache",
                "image_file"
            ]
        );
        let told = of_environment(&environment, threads).into_iter().map(|it| it.to_string());
        assert_eq!(told.filter(|it| it.contains("ratios") && it.contains("flush")).count(), 2);
    }

    #[test]
    fn a_noisy_machine_is_told() {
        let io = DeviceIo { read_sectors: 10_000, written_sectors: 2_100_000 };
        let own = DeviceIo { read_sectors: 10_000, written_sectors: 2_000_000 };
        let observed = Observed {
            elapsed: Duration::from_secs(10),
            steal_share: 0.02,
            other_cpus: 1.3,
            involuntary_switches: 5000,
            frequency_khz: Some((800_000, 3_000_000)),
            devices: BTreeMap::from([("sda".to_owned(), io), ("sdb".to_owned(), io)]),
        };
        let warnings = of_observed(&observed, &BTreeMap::from([("sda".to_owned(), own)]));
        assert_eq!(
            codes(&warnings),
            [
                "steal",
                "other_programs",
                "involuntary_switches",
                "frequency_changed",
                "other_user_of_device",
                "other_user_of_device"
            ]
        );
        assert_eq!(
            warnings[4],
            Warning::OtherUserOfDevice {
                disk: "sda".to_owned(),
                read_sectors: 0,
                written_sectors: 100_000
            }
        );
        assert_eq!(
            warnings[5].to_string(),
            "others read 4.8 MiB from sdb and wrote 1.0 GiB to it during the run"
        );
    }

    #[test]
    fn too_few_samples_name_the_first_percentile_that_lacks_them() {
        let environment = sample::environment();
        for (samples, percentile) in [
            (1, Percentile::P50),
            (50, Percentile::P90),
            (999, Percentile::P99),
            (1_000, Percentile::P999),
            (99_999, Percentile::P9999),
        ] {
            let warnings = of_run(&sample::run("allocator", samples, 1.0), &environment);
            let found: Vec<_> = warnings
                .iter()
                .map(|warning| match warning {
                    Warning::TooFewSamples { percentile, samples: found, .. } => {
                        (*percentile, *found)
                    }
                    other => panic!("{other}"),
                })
                .collect();
            assert!(!found.is_empty());
            assert!(found.iter().all(|it| *it == (percentile, samples)), "{found:?}");
        }
    }

    #[test]
    fn a_short_run_is_told() {
        let mut run = sample::run("allocator", 100_000, 1.0);
        run.slices.pop();
        assert_eq!(codes(&of_run(&run, &sample::environment())), ["short_run"]);
        let others = [
            Warning::LimitReached { run: "allocator".to_owned(), passes: 8, wanted: 20 },
            Warning::NoDiscard { device: PathBuf::from("/dev/sda") },
        ];
        assert_eq!(codes(&others), ["limit_reached", "no_discard"]);
    }

    #[test]
    fn a_coarse_clock_and_a_lost_pace_are_told() {
        let mut environment = sample::environment();
        environment.clock.resolution_ns = 4_000_000;
        let mut run = sample::run("allocator", 100_000, 1.0);
        run.pace.late = 2_000;
        run.pace.late_ns_max = 5_000_000;
        let mut codes = codes(&of_run(&run, &environment));
        codes.dedup();
        assert_eq!(codes, ["pace_not_kept", "clock_resolution"]);
    }
}
