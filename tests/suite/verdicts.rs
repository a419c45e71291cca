//! Our verdict on superblocks against that of a stock kernel.
//!
//! `fixtures/kernel-verdicts` holds 240 superblocks, as records of 16 KiB to be placed at the start
//! of a device of 128 MiB, and what Linux 6.1 said of each.

use std::io::Read;

use bcache_core::layout::superblock::{SB_BYTES, Superblock};
use bcache_core::layout::verdict::{Target, kernel_verdict};
use bcache_core::units::Sectors;
use serde::Deserialize;

const RECORD_BYTES: usize = 16 << 10;
const DEVICE: Sectors = Sectors((128 << 20) / 512);

#[derive(Deserialize)]
struct Record {
    case: usize,
    kernel_accepts: bool,
    kernel_error: String,
}

#[test]
fn verdict_is_the_kernels() {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/fixtures/kernel-verdicts");
    let mut records = Vec::new();
    zstd::Decoder::new(std::fs::File::open(format!("{folder}/records.img.zst")).unwrap())
        .unwrap()
        .read_to_end(&mut records)
        .unwrap();
    let verdicts = std::fs::read_to_string(format!("{folder}/verdicts-6.1.jsonl")).unwrap();
    let target = Target {
        device_size: DEVICE,
        disk_size: DEVICE,
        logical_block_bytes: 512,
        is_bcache_volume: false,
    };
    let mut differences = Vec::new();
    let mut judged = 0;
    for line in verdicts.lines() {
        let record: Record = serde_json::from_str(line).unwrap();
        let start = record.case * RECORD_BYTES + 4096;
        let sb = Superblock::from_bytes(&records[start..start + SB_BYTES]).unwrap();
        let verdict = kernel_verdict(&sb, &target);
        let ours = verdict.refusal.map(|refusal| refusal.to_string()).unwrap_or_default();
        assert_eq!(record.kernel_accepts, record.kernel_error.is_empty(), "{line}");
        if ours != record.kernel_error {
            differences.push(format!("case {}: ours {ours:?}, {line}", record.case));
        }
        judged += 1;
    }
    assert_eq!(judged, 240);
    assert!(differences.is_empty(), "{}", differences.join("\n"));
}
