//! A bounded run of every fuzz target's function, on seeded random bytes.
//!
//! `FUZZ_SEED` and `FUZZ_ITERATIONS` change what is run; a failure prints the seed of its input.

use std::panic::{AssertUnwindSafe, catch_unwind};

use bcache_core::fuzz::TARGETS;
use rand::{Rng, RngCore, SeedableRng};
use rand_pcg::Pcg64;

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

fn run(name: &str) {
    let (_, target) = TARGETS.iter().find(|(target, _)| *target == name).unwrap();
    let first = setting("FUZZ_SEED", 1);
    for seed in first..first + setting("FUZZ_ITERATIONS", 2000) {
        let mut rng = Pcg64::seed_from_u64(seed);
        let mut bytes = vec![0; rng.random_range(0..1500)];
        rng.fill_bytes(&mut bytes);
        // Small numbers are where formats have their limits.
        let sparse = rng.random_range(0..4);
        for byte in &mut bytes {
            if rng.random_range(0..4) < sparse {
                *byte = 0;
            }
        }
        let run = catch_unwind(AssertUnwindSafe(|| target(&bytes)));
        assert!(run.is_ok(), "target {name} failed: FUZZ_SEED={seed} FUZZ_ITERATIONS=1");
    }
}

macro_rules! targets {
    ($($name:ident)*) => {
        $(#[test] fn $name() { run(stringify!($name)); })*

        #[test]
        fn every_target_is_run_and_has_its_file() {
            let here = [$(stringify!($name)),*];
            assert_eq!(TARGETS.map(|(name, _)| name), here);
            let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/../../fuzz/fuzz_targets");
            for name in here {
                let file = std::path::Path::new(folder).join(format!("{name}.rs"));
                assert!(file.is_file(), "{}", file.display());
            }
        }
    };
}

targets!(superblock bkey bset jset prio_set uuid_table check image);
