//! A bounded run of the fuzz target of traces, on seeded bytes: random ones, and real lines and records
//! with a few bytes changed.

use std::panic::{AssertUnwindSafe, catch_unwind};

use rand::{Rng, RngCore, SeedableRng};
use rand_pcg::Pcg64;

const LINES: &[&str] = &[
    "  8,16   1        2     0.000000500  4162  Q   R 1000 + 8 [dd]\n",
    "fio version 3 iolog\n7 /dev/a read 512 512\n9 /dev/b write 0 4096\n",
    "128166372003061629,hm,1,Read,383496192,32768,413\n",
    "419,W,8792731648,16384,1577808000000040\n",
    "0,303567,3584,w,0.000000\n",
    "TIME(s) COMM PID DISK T SECTOR BYTES LAT(ms)\n0.004 a b 25 sda W 8390480 4096 1.5\n",
    "  app-2543  [001]  1234.567890: block_bio_queue:  8,16 RA 1234 + 8 [my app]\n",
    "100 4 0 1\n",
    "1000 0 2048 8 1\n",
];

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |value| value.parse().expect("a number"))
}

#[test]
fn any_bytes_come_to_an_end() {
    let first = setting("FUZZ_SEED", 1);
    for seed in first..first + setting("FUZZ_ITERATIONS", 3000) {
        let mut rng = Pcg64::seed_from_u64(seed);
        let mut bytes = vec![rng.random()];
        if rng.random_range(0..3) == 0 {
            let mut noise = vec![0; rng.random_range(0..600)];
            rng.fill_bytes(&mut noise);
            bytes.extend(noise);
            if rng.random() && bytes.len() > 5 {
                // A record of blktrace, so that what follows is reached.
                bytes[1..5].copy_from_slice(&0x6561_7407u32.to_le_bytes());
            }
        } else {
            for _ in 0..rng.random_range(1..6) {
                bytes.extend(LINES[rng.random_range(0..LINES.len())].bytes());
            }
            for _ in 0..rng.random_range(0..6) {
                let at = rng.random_range(0..bytes.len());
                let letters = b"0123456789 ,.+-RWQ\n\xff";
                bytes[at] = letters[rng.random_range(0..letters.len())];
            }
        }
        let run = catch_unwind(AssertUnwindSafe(|| bcache_bench::trace::fuzz::trace(&bytes)));
        assert!(run.is_ok(), "FUZZ_SEED={seed} FUZZ_ITERATIONS=1");
    }
}
