use std::collections::{HashMap, HashSet};

use proptest::prelude::*;

use super::access::Pattern;
use super::*;

fn workload(access: &str) -> Workload {
    Workload {
        working_set: Sectors(1 << 20),
        access: access.parse().unwrap(),
        block_sizes: "4k".parse().unwrap(),
        read_share: ReadShare::default(),
        streams: NonZeroU32::new(4).unwrap(),
        writers: NonZeroU32::new(2).unwrap(),
        seed: 1,
    }
}

/// How often each place of 4 KiB is touched by `count` operations of the first writer.
fn touches(workload: &Workload, count: usize) -> HashMap<u64, u64> {
    let mut touches = HashMap::new();
    for operation in workload.generator(0).unwrap().take(count) {
        *touches.entry(operation.offset.0 / 8).or_insert(0) += 1;
    }
    touches
}

fn patterns() -> impl Strategy<Value = Access> {
    let pattern = prop_oneof![
        Just(Pattern::Uniform),
        Just(Pattern::Sequential),
        (0u32..30).prop_map(|tenths| Pattern::Zipf { exponent: f64::from(tenths) / 10.0 }),
    ];
    prop::collection::vec((pattern, 1u32..100), 1..4)
        .prop_map(|entries| Access(Weighted::new(entries).unwrap()))
}

fn workloads() -> impl Strategy<Value = Workload> {
    let block = (1u64..2048).prop_map(|sectors| BlockSize::new(Sectors(sectors)).unwrap());
    let blocks = prop::collection::vec((block, 1u32..100), 1..5);
    (patterns(), blocks, 0u8..=100, 1u32..5, 1u32..5, any::<u64>(), 0u64..1 << 20).prop_map(
        |(access, blocks, reads, streams, writers, seed, spare)| {
            let mut workload = Workload {
                working_set: Sectors(0),
                access,
                block_sizes: Weighted::new(blocks).unwrap(),
                read_share: ReadShare::from_percent(reads.into()).unwrap(),
                streams: NonZeroU32::new(streams).unwrap(),
                writers: NonZeroU32::new(writers).unwrap(),
                seed,
            };
            // From the smallest that is accepted.
            let needed = workload.block_max().0 * workload.streams_total();
            workload.working_set = Sectors(needed + spare);
            workload
        },
    )
}

proptest! {
    #[test]
    fn operations_stay_in_range_and_aligned(workload in workloads()) {
        let sizes: HashSet<_> = workload.block_sizes.values().map(|size| size.sectors()).collect();
        let granule = workload.granule().0;
        let streams = u64::from(workload.streams.get());
        for writer in 0..workload.writers.get() {
            for operation in workload.generator(writer).unwrap().take(300) {
                prop_assert!(sizes.contains(&operation.size));
                prop_assert_eq!(operation.offset.0 % granule, 0);
                prop_assert!(operation.offset + operation.size <= workload.working_set);
                prop_assert_eq!(u64::from(operation.stream) / streams, u64::from(writer));
            }
        }
    }

    #[test]
    fn the_seed_decides(workload in workloads()) {
        let first: Vec<_> = workload.generator(0).unwrap().take(100).collect();
        let again: Vec<_> = workload.generator(0).unwrap().take(100).collect();
        prop_assert_eq!(&first, &again);
        // More than one place to choose from, so that a hundred choices differ.
        let many = workload.working_set.0 / workload.block_max().0 > 8;
        let random = workload.access.0.values().all(|it| *it == Pattern::Uniform);
        if many && random {
            let offsets = |it: &[Operation]| it.iter().map(|it| it.offset).collect::<Vec<_>>();
            let other = Workload { seed: workload.seed ^ 1, ..workload.clone() };
            let other: Vec<_> = other.generator(0).unwrap().take(100).collect();
            prop_assert_ne!(offsets(&first), offsets(&other));
            if workload.writers.get() > 1 {
                let second: Vec<_> = workload.generator(1).unwrap().take(100).collect();
                prop_assert_ne!(offsets(&first), offsets(&second));
            }
        }
    }

    #[test]
    fn patterns_survive_text(access in patterns()) {
        prop_assert_eq!(access.to_string().parse(), Ok(access));
    }
}

#[test]
fn uniform_touches_everything_alike() {
    // 131,072 places, ten touches each on the average.
    let touches = touches(&workload("uniform"), 1_310_720);
    assert!(touches.len() > 131_000, "{}", touches.len());
    let most = touches.values().max().unwrap();
    assert!(*most < 40, "{most}");
}

#[test]
fn zipf_has_the_frequencies_of_its_law() {
    let count = 1_000_000;
    for exponent in [0.8, 1.0, 1.2] {
        let touches = touches(&workload(&format!("zipf:{exponent}")), count);
        let mut counts: Vec<u64> = touches.values().copied().collect();
        counts.sort_unstable_by(|a, b| b.cmp(a));
        let weight = |rank: u32| f64::from(rank).powf(-exponent);
        let total: f64 = (1..=131_072).map(weight).sum();
        for rank in [1u32, 2, 3, 10, 100] {
            let expected = weight(rank) / total * 1e6;
            let found = crate::num::float(counts[rank as usize - 1]);
            // Six standard deviations, and what sorting by count shifts.
            let slack = 6.0 * expected.sqrt() + expected * 0.05;
            assert!((found - expected).abs() < slack, "{exponent}: {rank}: {found} {expected}");
        }
    }
}

#[test]
fn popular_places_are_scattered() {
    let touches = touches(&workload("zipf:1.1"), 200_000);
    let mut places: Vec<_> = touches.into_iter().collect();
    places.sort_unstable_by_key(|(_, count)| std::cmp::Reverse(*count));
    let hottest: Vec<u64> = places.iter().take(16).map(|(place, _)| *place).collect();
    for (index, a) in hottest.iter().enumerate() {
        for b in &hottest[index + 1..] {
            assert!(a.abs_diff(*b) > 1000, "{hottest:?}");
        }
    }
}

#[test]
fn sequential_streams_run_through_their_own_parts() {
    let workload = Workload { block_sizes: "4k=1,8k=1".parse().unwrap(), ..workload("sequential") };
    let part = workload.working_set.0 / 8;
    for writer in 0..2 {
        let mut next: HashMap<u32, u64> = HashMap::new();
        let mut wraps = 0;
        for operation in workload.generator(writer).unwrap().take(200_000) {
            let start = u64::from(operation.stream) * part;
            let expected = next.entry(operation.stream).or_insert(start);
            if operation.offset.0 != *expected {
                // Round again when the operation no longer fits.
                assert!(*expected + operation.size.0 > start + part);
                assert_eq!(operation.offset.0, start);
                wraps += 1;
            }
            assert!(operation.offset.0 + operation.size.0 <= start + part);
            *expected = operation.offset.0 + operation.size.0;
        }
        assert_eq!(next.len(), 4);
        assert!(wraps > 0);
    }
}

#[test]
fn a_mix_follows_its_weights_and_reads_their_share() {
    let workload = Workload {
        read_share: "30%".parse().unwrap(),
        streams: NonZeroU32::MIN,
        writers: NonZeroU32::MIN,
        ..workload("sequential=80,uniform=20")
    };
    let mut next = 0;
    let (mut sequential, mut reads) = (0, 0);
    for operation in workload.generator(0).unwrap().take(100_000) {
        if operation.offset.0 == next {
            sequential += 1;
            next += operation.size.0;
        }
        reads += u32::from(operation.kind == OperationKind::Read);
    }
    assert!((79_000..81_000).contains(&sequential), "{sequential}");
    assert!((29_000..31_000).contains(&reads), "{reads}");
}

#[test]
fn a_working_set_without_room_is_refused() {
    let workload = Workload { working_set: Sectors(63), ..workload("uniform") };
    let error = workload.generator(0).unwrap_err();
    assert_eq!(
        error.to_string(),
        "a working set of 31.5 KiB is too small: 8 streams with operations of up to 4 KiB need \
         32 KiB at least"
    );
}

#[test]
fn nonsense_is_refused_with_its_reason() {
    for (text, reason) in [
        ("", "\"\" is no pattern"),
        ("zipfian", "\"zipfian\" is no pattern"),
        ("zipf:x", "\"x\" is no exponent"),
        ("zipf:-1", "\"-1\" is no exponent"),
        ("zipf:NaN", "\"NaN\" is no exponent"),
        ("zipf:11", "\"11\" is no exponent"),
        ("uniform:1", "\"uniform\" takes no parameter"),
        ("uniform,zipf", "\"uniform\" has no weight"),
    ] {
        let error = text.parse::<Access>().unwrap_err().to_string();
        assert!(error.contains(reason), "{text}: {error}");
    }
    for text in ["-1", "101", "x", "", "NaN", "%"] {
        assert!(text.parse::<ReadShare>().is_err(), "{text}");
    }
    assert_eq!("30".parse::<ReadShare>().unwrap().to_string(), "30%");
}
