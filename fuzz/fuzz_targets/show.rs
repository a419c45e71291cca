//! Superblocks, through the verdict and `bcachectl show`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| bcache_tests::fuzz::show(data));
