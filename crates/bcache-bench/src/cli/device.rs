//! Options of `bcache-bench device`.

use std::num::{NonZeroU32, NonZeroU64};
use std::path::PathBuf;
use std::time::Duration;

use bcache_cli::policy::PolicyName;
use bcache_cli::size::parse_bytes;
use clap::Args;

use super::export::ExportArgs;
use crate::device::plan::{
    Consent, DevicePlan, IoMode, Length, ReserveName, Target, WorkingSetSize, parse_duration,
};
use crate::record::pace::Pace;
use crate::report::export::{ExportFormat, ExportPaths, ExportTo};
use crate::workload::{Access, BlockSizes, ReadShare, Weighted};

/// How long a run takes when nothing is said.
const DURATION_DEFAULT: Duration = Duration::from_secs(30);

/// Options of `bcache-bench device`.
#[derive(Debug, Args)]
#[command(override_usage = "bcache-bench device [OPTIONS] DEV...\n       \
                      bcache-bench device [OPTIONS] --image FILE --size SIZE")]
pub struct DeviceArgs {
    /// Block devices or image files: everything on them is lost
    #[arg(value_name = "DEV", required_unless_present = "image", conflicts_with = "image")]
    devices: Vec<PathBuf>,

    /// Make an image file and run on it; it is removed afterwards, unless --keep says otherwise
    #[arg(long, value_name = "FILE", requires = "size")]
    image: Option<PathBuf>,

    /// Size of the image file
    #[arg(long, value_name = "SIZE", value_parser = parse_bytes, requires = "image")]
    size: Option<u64>,

    /// Number of writers, each a thread
    #[arg(long, value_name = "N", default_value = "1", help_heading = "Workload")]
    writers: NonZeroU32,

    /// Streams (write points) of each writer
    #[arg(long, value_name = "N", default_value = "4", help_heading = "Workload")]
    streams: NonZeroU32,

    /// Sizes of operations: one, or several with their weights, as in 4k=70,64k=30
    #[arg(long, value_name = "SIZES", default_value = "64k", help_heading = "Workload")]
    block_sizes: BlockSizes,

    /// Size of the working set, or its share of the cache in percent [default: 150%]
    #[arg(long, value_name = "SIZE", help_heading = "Workload")]
    working_set: Option<WorkingSetSize>,

    /// Where operations go: uniform, zipf, zipf:EXPONENT, sequential, or a mix, as in
    /// zipf=80,sequential=20
    #[arg(long, value_name = "PATTERN", default_value = "uniform", help_heading = "Workload")]
    access: Access,

    /// Share of operations that read, in percent
    #[arg(long, value_name = "PERCENT", default_value = "0", help_heading = "Workload")]
    read_share: ReadShare,

    /// Seed of the sequence of operations
    #[arg(long, value_name = "N", default_value = "1", help_heading = "Workload")]
    seed: u64,

    /// Operations a second of all writers together; latencies count from when each is due [default:
    /// each starts when the previous one has ended]
    #[arg(long, value_name = "N", help_heading = "Workload")]
    rate: Option<NonZeroU64>,

    /// How long to run, as in 30s [default: 30s]
    #[arg(
        long,
        value_name = "TIME",
        value_parser = parse_duration,
        conflicts_with = "amount",
        help_heading = "Workload"
    )]
    duration: Option<Duration>,

    /// End when the operations add up to this many bytes, written or read, hit or miss
    #[arg(long, value_name = "SIZE", value_parser = parse_amount, help_heading = "Workload")]
    amount: Option<NonZeroU64>,

    /// What is really read and written
    #[arg(
        long,
        value_name = "WHAT",
        value_enum,
        default_value = "data",
        help_heading = "Workload"
    )]
    io: IoMode,

    /// How the cache picks the buckets that it reuses
    #[arg(long, value_name = "POLICY", value_enum, default_value = "lru", help_heading = "Cache")]
    policy: PolicyName,

    /// Size of a bucket [default: what bcachectl make would choose]
    #[arg(short, long, value_name = "SIZE", value_parser = parse_bytes, help_heading = "Cache")]
    bucket: Option<u64>,

    /// Reserves that allocations draw from, with their weights, as in none=95,btree=5
    #[arg(long, value_name = "RESERVES", default_value = "none", help_heading = "Cache")]
    reserves: Weighted<ReserveName>,

    /// Discard buckets before they are used again
    #[arg(long, help_heading = "Cache")]
    discard: bool,

    /// Leave the cache set on the devices when the run is over
    #[arg(long, help_heading = "Cache")]
    keep: bool,

    /// Do not also run the same writes without an allocator
    #[arg(long, help_heading = "Report")]
    no_baseline: bool,

    /// Print JSON
    #[arg(long, help_heading = "Report")]
    pub json: bool,

    #[command(flatten)]
    export: ExportArgs,

    /// --export json=FILE, as 0.1.0 had it
    #[arg(long, value_name = "FILE", hide = true)]
    export_json: Option<PathBuf>,

    /// --export hgrm=FOLDER, as 0.1.0 had it
    #[arg(long, value_name = "FOLDER", hide = true)]
    export_hgrm: Option<PathBuf>,

    /// --export svg=FILE, as 0.1.0 had it
    #[arg(long, value_name = "FILE", hide = true)]
    export_svg: Option<PathBuf>,

    /// Write each allocation, failed allocation and invalidation to a file, as it happens
    #[arg(long, value_name = "FILE", help_heading = "Report")]
    trace: Option<PathBuf>,

    /// Overwrite bcache superblocks
    #[arg(long)]
    wipe_bcache: bool,

    /// Overwrite anything else: filesystems, partition tables, RAID, LVM
    #[arg(short, long)]
    force: bool,

    /// Do not ask, even on a terminal
    #[arg(short, long)]
    yes: bool,
}

fn parse_amount(text: &str) -> Result<NonZeroU64, String> {
    let bytes = parse_bytes(text).map_err(|error| error.to_string())?;
    NonZeroU64::new(bytes).ok_or_else(|| "an amount of 0 is no run".to_owned())
}

/// What makes no sense together, beyond what the parser can tell.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// No data is read or written, but reads are asked for.
    #[error("--read-share needs --io data: without data there is nothing to read")]
    ReadsWithoutData,
    /// What is never written is to be kept.
    #[error("--keep needs --io data or metadata: without any nothing is written")]
    KeepNothing,
    /// A size, and no image to make.
    #[error("--size is for --image: a device has its size")]
    SizeWithoutImage,
    /// No kernel would assemble what is kept.
    #[error("--keep is for one device: no kernel since 5.10 runs a set of several caches")]
    KeepSeveral,
    /// The same device twice.
    #[error("{} is given twice", .0.display())]
    Twice(PathBuf),
}

impl DeviceArgs {
    /// The files that the report goes to.
    fn files(&self) -> Vec<ExportTo> {
        let earlier = [
            (ExportFormat::Json, &self.export_json),
            (ExportFormat::Hgrm, &self.export_hgrm),
            (ExportFormat::Svg, &self.export_svg),
        ];
        let earlier = earlier
            .into_iter()
            .filter_map(|(format, path)| Some(ExportTo { format, path: path.clone()? }));
        self.export.export.iter().cloned().chain(earlier).collect()
    }

    /// What is to be done.
    pub fn plan(&self) -> Result<DevicePlan, PlanError> {
        let target = match (&self.image, self.size) {
            (Some(path), Some(size_bytes)) => Target::NewImage { path: path.clone(), size_bytes },
            // The parser lets this pass where devices are given, because those exclude an image.
            (None, Some(_)) => return Err(PlanError::SizeWithoutImage),
            (_, None) => Target::Existing(self.devices.clone()),
        };
        for (index, device) in self.devices.iter().enumerate() {
            if self.devices.iter().take(index).any(|before| before == device) {
                return Err(PlanError::Twice(device.clone()));
            }
        }
        if self.keep && self.devices.len() > 1 {
            return Err(PlanError::KeepSeveral);
        }
        if self.io != IoMode::Data && self.read_share.fraction() > 0.0 {
            return Err(PlanError::ReadsWithoutData);
        }
        if self.io == IoMode::None && self.keep {
            return Err(PlanError::KeepNothing);
        }
        Ok(DevicePlan {
            target,
            access: self.access.clone(),
            block_sizes: self.block_sizes.clone(),
            read_share: self.read_share,
            writers: self.writers,
            streams: self.streams,
            working_set: self.working_set.unwrap_or_default(),
            seed: self.seed,
            pace: self.rate.map_or(Pace::Closed, |per_second| Pace::Open { per_second }),
            length: match self.amount {
                Some(bytes) => Length::Bytes(bytes),
                None => Length::Elapsed(self.duration.unwrap_or(DURATION_DEFAULT)),
            },
            policy: self.policy.into(),
            bucket_bytes: self.bucket,
            reserves: self.reserves.clone(),
            discard: self.discard,
            io: self.io,
            baseline: !self.no_baseline,
            keep: self.keep,
            exports: ExportPaths { files: self.files(), trace: self.trace.clone() },
            consent: Consent { wipe_bcache: self.wipe_bcache, force: self.force, yes: self.yes },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bcache_core::units::Sectors;
    use clap::Parser;

    #[derive(Debug, Parser)]
    struct Alone {
        #[command(flatten)]
        device: DeviceArgs,
    }

    fn parse(line: &str) -> Result<DevicePlan, String> {
        let words = ["bcache-bench-device"].into_iter().chain(line.split_whitespace());
        let alone = Alone::try_parse_from(words).map_err(|error| error.to_string())?;
        alone.device.plan().map_err(|error| error.to_string())
    }

    #[test]
    fn defaults_are_a_plan() {
        let plan = parse("/dev/sda").unwrap();
        assert_eq!(plan.target, Target::Existing(vec!["/dev/sda".into()]));
        assert_eq!(plan.length, Length::Elapsed(Duration::from_secs(30)));
        assert_eq!((plan.pace, plan.io, plan.baseline), (Pace::Closed, IoMode::Data, true));
        let workload = plan.workload(Sectors(1 << 20));
        assert_eq!(workload.working_set, Sectors((3 << 20) / 2));
        assert_eq!(workload.check(), Ok(()));
    }

    #[test]
    fn options_reach_the_plan_and_the_settings() {
        let plan = parse(
            "--image a.img --size 8G --writers 3 --streams 2 --block-sizes 4k=70,64k=30 \
             --working-set 4G --access zipf:0.9=80,sequential=20 --read-share 25% --seed 7 \
             --rate 20000 --amount 20G --policy fifo -b 256k --discard --keep --no-baseline \
             --export json=a.json --export hgrm=b --export-svg c.svg --trace d --wipe-bcache -f -y",
        )
        .unwrap();
        assert_eq!(plan.target, Target::NewImage { path: "a.img".into(), size_bytes: 8 << 30 });
        let files = plan.exports.files.iter().map(|it| (it.format, it.path.to_str().unwrap()));
        let wanted = [
            (ExportFormat::Json, "a.json"),
            (ExportFormat::Hgrm, "b"),
            (ExportFormat::Svg, "c.svg"),
        ];
        assert!(files.eq(wanted));
        assert_eq!(plan.exports.trace, Some("d".into()));
        assert_eq!(plan.consent, Consent { wipe_bcache: true, force: true, yes: true });
        assert!(plan.keep && plan.discard && !plan.baseline);
        let settings = serde_json::to_value(plan.settings().unwrap()).unwrap();
        assert_eq!(
            settings,
            serde_json::json!({
                "devices": 1,
                "access": "zipf:0.9=80,sequential=20",
                "block_sizes": "4KiB=70,64KiB=30",
                "read_share": "25%",
                "writers": 3,
                "streams": 2,
                "working_set": "4 GiB",
                "seed": 7,
                "rate": 20000,
                "duration_ms": null,
                "amount": "20 GiB",
                "policy": "fifo",
                "bucket_size": "256 KiB",
                "reserves": "none",
                "discard": true,
                "io": "data"
            })
        );
        let other = parse("/dev/sda --io none --reserves none=9,btree=1").unwrap();
        assert_eq!(other.settings().unwrap().text("reserves"), "none=9,btree=1");
    }

    #[test]
    fn nonsense_is_refused_and_the_option_named() {
        for (line, part) in [
            ("", "<DEV>"),
            ("/dev/sda --image a --size 1G", "--image"),
            ("--image a", "--size"),
            ("/dev/sda --size 1G", "--image"),
            ("/dev/sda /dev/sdb /dev/sda", "/dev/sda is given twice"),
            ("/dev/sda /dev/sdb --keep", "--keep is for one device"),
            ("/dev/sda --writers 0", "--writers"),
            ("/dev/sda --streams -1", "-1"),
            ("/dev/sda --block-sizes 4k,8k", "--block-sizes"),
            ("/dev/sda --block-sizes 0", "--block-sizes"),
            ("/dev/sda --working-set 0", "--working-set"),
            ("/dev/sda --access zipfian", "--access"),
            ("/dev/sda --read-share 101", "--read-share"),
            ("/dev/sda --rate 0", "--rate"),
            ("/dev/sda --duration 0", "--duration"),
            ("/dev/sda --duration 3s --amount 1G", "--amount"),
            ("/dev/sda --amount 0", "--amount"),
            ("/dev/sda --policy mru", "--policy"),
            ("/dev/sda --reserves prio", "--reserves"),
            ("/dev/sda --io none --keep", "--keep needs --io data or metadata"),
            ("/dev/sda --read-share 1 --io metadata", "--read-share needs --io data"),
            ("/dev/sda --io all", "--io"),
        ] {
            let error = parse(line).unwrap_err();
            assert!(error.contains(part), "{line}: {error}");
        }
    }
}
