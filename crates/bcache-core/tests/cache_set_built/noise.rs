//! Any byte of the metadata may be wrong.

use bcache_core::device::{BlockDevice, ReadDevice};
use bcache_core::layout::superblock::SB_OFFSET_BYTES;
use bcache_core::ops::check::{CheckOptions, check};
use proptest::prelude::*;

use crate::sample::Sample;

/// Every metadata byte of the sample: superblock, journal entries, prio sets, uuid table, nodes.
fn metadata_ranges(sample: &Sample) -> Vec<(&'static str, u64, u64)> {
    let mut ranges = vec![("superblock", SB_OFFSET_BYTES, 2264)];
    ranges.extend((40..44).map(|seq| ("journal", sample.entry_byte(seq), 264)));
    for bucket in &sample.built.prio_buckets {
        ranges.push(("prios", sample.byte_of(*bucket), 8192));
    }
    ranges.push(("uuids", sample.byte_of(sample.built.uuid_bucket), 256));
    for level in 0..=sample.built.root.0 {
        for node in sample.nodes(level) {
            for (index, set) in node.sets.iter().enumerate() {
                let what = if index == 0 { "first set" } else { "later set" };
                let start = node.sector().bytes() + set.offset as u64;
                ranges.push((what, start, 32 + set.key_bytes as u64));
            }
        }
    }
    ranges
}

/// A sample for the whole of a property test, which undoes what it does to it.
fn with_sample<T>(test: impl FnOnce(&Sample, &[(&'static str, u64, u64)]) -> T) -> T {
    thread_local! {
        static SAMPLE: (Sample, Vec<(&'static str, u64, u64)>) = {
            let sample = Sample::new();
            let ranges = metadata_ranges(&sample);
            (sample, ranges)
        };
    }
    SAMPLE.with(|(sample, ranges)| test(sample, ranges))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Flips bits of any metadata byte. Nothing panics or hangs, and what a checksum covers, the
    /// kernel would notice, and so does the check.
    #[test]
    fn any_flipped_byte_is_survived_and_noticed_where_the_kernel_would(
        place in any::<proptest::sample::Index>(), mask in 1u8..,
    ) {
        with_sample(|sample, ranges| {
            let total: u64 = ranges.iter().map(|range| range.2).sum();
            let mut rest = place.index(usize::try_from(total).unwrap()) as u64;
            let range = ranges.iter().find(|range| {
                let here = rest < range.2;
                if !here {
                    rest -= range.2;
                }
                here
            });
            let &(what, start, _) = range.unwrap();
            let byte = start + rest;
            sample.flip(byte, mask);
            let result = check(&sample.device, &CheckOptions::default(), &mut |_| {});
            sample.flip(byte, mask);
            let found = result.map_or(true, |report| !report.is_clean());
            let noticed = match what {
                // Behind the last journal bucket's number nothing is covered by the checksum.
                "superblock" => rest < 208 + 8 * 16,
                // Entry 40 is not needed any more. With a smaller sequence number an entry looks like
                // what a power cut left of an older cycle.
                "journal" => start != sample.entry_byte(40) && !(16..24).contains(&rest),
                "prios" | "first set" => true,
                // A later set of another seq is none of the node's: the node ends before it.
                "later set" => !(16..24).contains(&rest),
                _ => false,
            };
            prop_assert!(found || !noticed, "{what} byte {rest} at {byte}, mask {mask:#x}");
            Ok(())
        })?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    /// Whole stretches overwritten with noise: no panic, no hang.
    #[test]
    fn noise_is_survived(
        place in any::<proptest::sample::Index>(),
        noise in prop::collection::vec(any::<u8>(), 1..600),
    ) {
        with_sample(|sample, ranges| {
            let before = sample.device.snapshot();
            let (_, start, len) = ranges[place.index(ranges.len())];
            let mut image = vec![0; usize::try_from(len).unwrap().next_multiple_of(512)];
            sample.device.read_at(start, &mut image).unwrap();
            let at = place.index(image.len());
            for (to, from) in image[at..].iter_mut().zip(noise) {
                *to = from;
            }
            sample.device.write_at(start, &image).unwrap();
            let _ = check(&sample.device, &CheckOptions::default(), &mut |_| {});
            sample.device.restore(&before);
        });
    }
}
