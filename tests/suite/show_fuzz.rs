//! `bcachectl show` on mutated and truncated superblocks: no panic, no hang, no write. What the
//! fuzz target `show` does with bytes of libFuzzer's, here on a bounded number of generated ones;
//! and some of them through the program itself.

use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::process::{Child, Output, Stdio};
use std::time::{Duration, Instant};

use bcache_core::layout::superblock::{SB_BYTES, SB_OFFSET_BYTES, Superblock};
use bcache_core::layout::verdict::Target;
use bcache_core::units::Sectors;
use bcache_tests::fuzz::{bits, show, show_input};
use bcache_tests::superblocks::vary;
use bcache_tests::tool::bcachectl;
use bcache_tests::{Fixture, Scratch};
use rand::{Rng as _, RngCore as _, SeedableRng as _};
use rand_pcg::Pcg64;
use serde_json::Value;

const SEED: u64 = 9;
const IN_PROCESS: usize = 10_000;
const BY_PROGRAM: usize = 400;

fn seed() -> u64 {
    std::env::var("BCACHE_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(SEED)
}

/// A superblock with fields at their limits, then bits flipped, ranges overwritten, or cut short.
fn mutated(rng: &mut Pcg64, kernels_own: &[Superblock]) -> Vec<u8> {
    let size = Sectors([8, 16, 6144, 262_144][rng.random_range(0..4)]);
    let target = Target {
        device_size: size,
        disk_size: size,
        logical_block_bytes: 512,
        is_bcache_volume: false,
    };
    let mut bytes = if rng.random_bool(0.3) {
        kernels_own[rng.random_range(0..kernels_own.len())].as_bytes().to_vec()
    } else {
        vary(rng, &target).superblock.as_bytes().to_vec()
    };
    for _ in 0..rng.random_range(0..4) {
        // Most of what matters is in the first 208 bytes.
        let end = if rng.random_bool(0.8) { 208 } else { SB_BYTES };
        let start = rng.random_range(0..end);
        match rng.random_range(0..3) {
            0 => bytes[start] ^= 1 << rng.random_range(0..8),
            1 => {
                let end = (start + [1, 2, 4, 8, 32][rng.random_range(0..5)]).min(SB_BYTES);
                rng.fill_bytes(&mut bytes[start..end]);
            }
            _ => {
                let end = (start + [1, 2, 4, 8, 64][rng.random_range(0..5)]).min(SB_BYTES);
                bytes[start..end].fill([0, 0xff][rng.random_range(0..2)]);
            }
        }
    }
    bytes
}

/// Superblocks of devices that are in use, journal buckets and all.
fn kernels_own() -> Vec<Superblock> {
    let mut superblocks = Vec::new();
    for name in Fixture::names().unwrap() {
        let fixture = Fixture::unpack(&name).unwrap();
        for image in fixture.disks() {
            let bytes = fs::read(image).unwrap();
            let start = usize::try_from(SB_OFFSET_BYTES).unwrap();
            superblocks.push(Superblock::from_bytes(&bytes[start..]).unwrap());
        }
    }
    superblocks
}

#[test]
fn show_survives_ten_thousand_superblocks() {
    let kernels_own = kernels_own();
    for number in 0..IN_PROCESS {
        // A seed of its own for each, so that one can be repeated alone.
        let seed = seed() + number as u64;
        let input = std::panic::catch_unwind(|| {
            let mut rng = Pcg64::seed_from_u64(seed);
            let mut options: u8 = rng.random();
            if rng.random_bool(0.8) {
                options |= bits::MAGIC | bits::CHECKSUM;
            }
            let bytes = mutated(&mut rng, &kernels_own);
            show(&show_input(options, rng.random(), &bytes));
        });
        assert!(input.is_ok(), "superblock {number} failed (BCACHE_TEST_SEED={seed}, the first)");
    }
}

/// Short inputs, down to none: what is cut off reads as nothing, not as what was there before.
#[test]
fn show_survives_every_length() {
    let whole = &kernels_own()[0];
    for length in (0..240).step_by(3).chain((240..=SB_BYTES).step_by(97)) {
        for options in [0, bits::MAGIC, bits::MAGIC | bits::CHECKSUM, u8::MAX] {
            for size in 0..8 {
                show(&show_input(options, size, &whole.as_bytes()[..length]));
            }
        }
    }
}

/// Waits, but not for ever.
fn wait(mut child: Child) -> Output {
    let deadline = Instant::now() + Duration::from_secs(60);
    while child.try_wait().unwrap().is_none() {
        if Instant::now() > deadline {
            child.kill().unwrap();
            panic!("it hangs: {:?}", child.wait_with_output().unwrap());
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    child.wait_with_output().unwrap()
}

#[test]
fn the_program_survives_them_too() {
    let kernels_own = kernels_own();
    let mut rng = Pcg64::seed_from_u64(seed());
    let scratch = Scratch::new().unwrap();
    let mut shown = 0;
    while shown < BY_PROGRAM {
        let batch: Vec<PathBuf> = (0..10)
            .map(|index| {
                let bytes = mutated(&mut rng, &kernels_own);
                let size = [4096, 6000, 8192, 3 << 20, 128 << 20][rng.random_range(0..5)];
                let image = scratch.sparse(&format!("{index}.img"), size).unwrap();
                let fits = usize::try_from(size - SB_OFFSET_BYTES).unwrap().min(bytes.len());
                bcache_tests::image::write_at(&image, SB_OFFSET_BYTES, &bytes[..fits]).unwrap();
                image
            })
            .collect();
        // What is written anywhere takes space, or changes the time or the start.
        let state = |image: &PathBuf| {
            let mut start = Vec::new();
            File::open(image).unwrap().take(64 << 10).read_to_end(&mut start).unwrap();
            let metadata = fs::metadata(image).unwrap();
            (start, metadata.len(), metadata.blocks(), metadata.modified().unwrap())
        };
        let before: Vec<_> = batch.iter().map(state).collect();
        let arguments: &[&str] = [&["--json"] as &[_], &[], &["--json", "--all"]][shown / 10 % 3];
        let mut command = bcachectl().unwrap();
        command.arg("show").args(arguments).args(&batch);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let output = wait(child);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let status = output.status.code();
        assert!(matches!(status, Some(0 | 1)), "seed {}, {shown}: {said}", seed());
        assert!(!said.contains("panicked"), "seed {}, {shown}: {said}", seed());
        if arguments.contains(&"--json") {
            let document: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(document["devices"].as_array().unwrap().len(), 10, "{document}");
        }
        let after: Vec<_> = batch.iter().map(state).collect();
        assert!(before == after, "seed {}, {shown}: an image was written", seed());
        shown += batch.len();
    }
}
