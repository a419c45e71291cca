//! Our verdict is the kernel's: superblocks varied around ours are offered to both stock kernels on
//! disks of several sizes, and accepted or refused as we say, in the words that we say.
//!
//! The seed is fixed, so that a run can be repeated; `BCACHE_TEST_SEED` gives another.

use anyhow::{Context as _, ensure};
use bcache_core::device::testkit::partition_table;
use bcache_core::layout::superblock::SB_BYTES;
use bcache_core::layout::verdict::{Refusal, Target, Verdict, Warning, kernel_verdict};
use bcache_core::units::Sectors;
use bcache_tests::image::write_at;
use bcache_tests::superblocks::{Varied, vary};
use bcache_tests::{DiskOptions, Guest, Kernel, Log, Need, Scratch, main_with, trial};
use rand::{Rng as _, SeedableRng as _};
use rand_pcg::Pcg64;
use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

const SEED: u64 = 6;
const RECORDS: usize = 400;

/// Most buckets of a device that the kernel accepts: more take it long and prove no more.
const NBUCKETS_MAX: u64 = 1 << 17;

fn main() -> ExitCode {
    let mut trials = vec![trial("records_reach_every_verdict", &[], records_are_diverse)];
    for kernel in Kernel::ALL {
        let judge = move || judged_by(kernel);
        trials.push(trial(format!("verdict_is_that_of_{kernel}"), &[Need::Guest], judge));
    }
    main_with(trials)
}

/// A disk of the guest, and the device on it that superblocks are put on.
struct Disk {
    size_bytes: u64,
    logical_block_size: u32,
    /// Where the only partition starts, and its size.
    partition: Option<(Sectors, Sectors)>,
}

const DISKS: [Disk; 5] = [
    Disk { size_bytes: 128 << 20, logical_block_size: 512, partition: None },
    Disk { size_bytes: 96 << 20, logical_block_size: 4096, partition: None },
    // Room for buckets that need a superblock of version 5.
    Disk { size_bytes: 40 << 30, logical_block_size: 512, partition: None },
    Disk { size_bytes: 3 << 20, logical_block_size: 512, partition: None },
    Disk {
        size_bytes: 64 << 20,
        logical_block_size: 512,
        partition: Some((Sectors(2048), Sectors(40 << 11))),
    },
];

impl Disk {
    fn target(&self) -> Target {
        let disk_size = Sectors::from_bytes_floor(self.size_bytes);
        Target {
            device_size: self.partition.map_or(disk_size, |(_, size)| size),
            disk_size,
            logical_block_bytes: self.logical_block_size,
            is_bcache_volume: false,
        }
    }

    /// A DOS partition table, where there is a partition.
    fn table(&self) -> Option<[u8; 512]> {
        let (start, size) = self.partition?;
        Some(partition_table(start, size))
    }
}

struct Record {
    disk: usize,
    varied: Varied,
    verdict: Verdict,
}

fn seed() -> u64 {
    std::env::var("BCACHE_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(SEED)
}

/// What the kernels are asked about: the same for both.
fn records() -> Vec<Record> {
    let mut rng = Pcg64::seed_from_u64(seed());
    let mut records = Vec::new();
    while records.len() < RECORDS {
        let disk = rng.random_range(0..DISKS.len());
        let target = DISKS[disk].target();
        let varied = vary(&mut rng, &target);
        let verdict = kernel_verdict(&varied.superblock, &target);
        let record = Record { disk, varied, verdict };
        if record.can_be_offered() {
            records.push(record);
        }
    }
    records
}

impl Record {
    /// Whether the kernel survives it, and what it says does not hang on the guest's memory.
    fn can_be_offered(&self) -> bool {
        let sb = &self.varied.superblock;
        if self.verdict.accepts() {
            return !self.verdict.warnings.iter().any(Warning::is_fatal)
                && (sb.geometry().is_none() || sb.nbuckets() <= NBUCKETS_MAX);
        }
        true
    }

    /// What the kernel is expected to say of it on a disk that holds nothing else; empty when it is
    /// expected to accept. Both kernels say the same: where 6.12 differs (it refuses a backing
    /// device with an odd block size), 6.1 crashes, and the verdict's warning is fatal.
    fn expected(&self) -> String {
        let warned = |of: fn(&Warning) -> bool| self.verdict.warnings.iter().any(of);
        match &self.verdict.refusal {
            Some(refusal) => refusal.to_string(),
            // There is no journal.
            None if warned(|warning| matches!(warning, Warning::DependsOnJournal)) => {
                Refusal::NoJournalEntries.to_string()
            }
            None => String::new(),
        }
    }
}

/// The records are worth asking about: nearly every reason to refuse is among them.
fn records_are_diverse() -> anyhow::Result<()> {
    let mut counts: BTreeMap<String, usize> = BTreeMap::new();
    for record in records() {
        let text = record.verdict.refusal.map_or("accepted".to_owned(), |it| it.to_string());
        *counts.entry(text).or_default() += 1;
    }
    println!("seed {}: {counts:#?}", seed());
    ensure!(counts.get("accepted").is_some_and(|&count| count >= RECORDS / 4), "{counts:#?}");
    ensure!(counts.len() >= 22, "{counts:#?}");
    Ok(())
}

fn judged_by(kernel: Kernel) -> anyhow::Result<()> {
    let records = records();
    let scratch = Scratch::new()?;
    let bytes: Vec<u8> =
        records.iter().flat_map(|record| record.varied.superblock.as_bytes()).copied().collect();
    ensure!(bytes.len() == records.len() * SB_BYTES);
    let file = scratch.path("records");
    std::fs::write(&file, bytes)?;
    let mut guest = Guest::new(kernel).timeout(Duration::from_secs(500));
    guest = guest.script(
        "
        # offer NUMBER DISK DEVICE
        offer() {
            dd if=/dev/vdf of=$3 bs=4k count=1 skip=$1 seek=1 conv=fsync 2>/dev/null
            stage $1
            register $3 || true
            for running in /sys/class/block/vd*/bcache/stop; do
                [ ! -e $running ] || echo 1 >$running || true
            done
            stop_all
            wait_free $2
            blkdiscard $3
        }",
    );
    for (index, disk) in DISKS.iter().enumerate() {
        let image = scratch.sparse(&format!("disk{index}"), disk.size_bytes)?;
        if let Some(table) = disk.table() {
            write_at(&image, 0, &table)?;
        }
        let logical_block_size = disk.logical_block_size;
        guest =
            guest.disk_with(&image, DiskOptions { logical_block_size, ..DiskOptions::default() });
    }
    guest = guest.disk(&file);
    for (number, record) in records.iter().enumerate() {
        let disk = Guest::disk_name(record.disk);
        let device = record.device();
        guest = guest.script(format!("offer {number} {disk} {device}"));
    }
    let run = guest.run()?;
    let mut differences = Vec::new();
    let mut judged = 0_usize;
    for (number, record) in records.iter().enumerate() {
        let Some(log) = run.log.stage(&number.to_string()) else { break };
        if let Err(error) = record.compare(&log) {
            differences.push(format!("record {number}: {error:#}"));
        }
        judged += 1;
    }
    let run = run.ok().with_context(|| match judged.checked_sub(1) {
        Some(last) => format!("seed {}: {}", seed(), records[last].describe()),
        None => "before the first record".to_owned(),
    })?;
    ensure!(judged == records.len(), "{judged} records were judged\n{}", run.tail());
    ensure!(
        differences.is_empty(),
        "seed {}: {} of {judged} records are judged differently\n{}",
        seed(),
        differences.len(),
        differences.join("\n")
    );
    Ok(())
}

impl Record {
    fn device(&self) -> String {
        let disk = Guest::disk_name(self.disk);
        if DISKS[self.disk].partition.is_some() { format!("{disk}1") } else { disk }
    }

    fn describe(&self) -> String {
        let head: Vec<String> =
            self.varied.superblock.as_bytes()[..208].chunks(8).map(word).collect();
        format!("{} on disk {}\n  {}", self.varied.story, self.disk, head.join(" "))
    }

    fn compare(&self, log: &Log) -> anyhow::Result<()> {
        let device = self.device();
        let expected = self.expected();
        let accepted = log.accepted(&device).context("it was not offered")?;
        let said = log.register_error(&device).unwrap_or_default();
        ensure!(
            accepted == expected.is_empty() && said.eq_ignore_ascii_case(&expected),
            "we say {expected:?}, the kernel {} it: {:?}\n  {}",
            if accepted { "accepted" } else { "refused" },
            log.register_lines(&device),
            self.describe()
        );
        Ok(())
    }
}

/// Eight bytes in the order in which they lie on the device.
fn word(bytes: &[u8]) -> String {
    let word = bytes.try_into().map_or(0, u64::from_be_bytes);
    format!("{word:016x}")
}
