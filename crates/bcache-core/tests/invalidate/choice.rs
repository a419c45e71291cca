//! Which buckets go, and which do not.

use std::collections::BTreeSet;

use bcache_core::allocator::Policy;
use bcache_core::allocator::replacement::lru::bucket_prio;
use bcache_core::cache_set::testkit::{SetBuilder, backing_volume};
use bcache_core::cache_set::{CacheDevice, CacheSet, GcMark, MetadataRole, NoVisitor};
use bcache_core::inspect::FindVolumeError;
use bcache_core::ops::invalidate::{
    Advice, Amount, GaveUp, InvalidateError, Options, Reason, Selection, run,
};
use bcache_core::units::{BucketIndex, Sectors};
use proptest::prelude::*;

use crate::sample::{
    AT_LIMIT, BELOW_LIMIT, BUCKET, CLEAN, DIRTY, MIXED, NBUCKETS, REPLAY_CLEAN, REPLAY_DIRTY,
    Sample, assert_clean, builder, invalidate, options, plan_on, read_options, state_of, targets,
    volume,
};

#[test]
fn clean_data_goes_and_nothing_else() {
    let sample = Sample::new();
    let before = state_of(&sample.device);
    let gone = invalidate(&sample.device, &options(Selection::AllClean)).unwrap();
    let expected: Vec<u64> = CLEAN.chain(REPLAY_CLEAN).map(|bucket| sample.data(bucket)).collect();
    assert_eq!(gone, expected);
    let after = state_of(&sample.device);
    assert_eq!(
        (after.seq, after.last_seq, after.root),
        (before.seq + 1, before.last_seq, before.root)
    );
    for (number, (old, new)) in (0u64..).zip(before.buckets.iter().zip(&after.buckets)) {
        if gone.contains(&number) {
            assert_eq!(*new, (old.0.wrapping_add(1), GcMark::Unused, 0), "bucket {number}");
        } else {
            assert_eq!((new.0, new.2), (old.0, old.2), "bucket {number}");
        }
    }
    assert!(before.chain.iter().all(|bucket| !after.chain.contains(bucket)));
    // Volume 0 keeps what is in mixed buckets and what is dirty.
    let dirty_before: Vec<u64> = before.volumes.iter().map(|volume| volume.2).collect();
    let dirty_after: Vec<u64> = after.volumes.iter().map(|volume| volume.2).collect();
    assert_eq!(dirty_before, dirty_after);
    let mixed = (MIXED.end - MIXED.start) * 4;
    assert_eq!(after.volumes[0].1, after.volumes[0].2 + mixed);
    assert_clean(&sample.device);
    // There is nothing left: no plan to write, and nothing is written.
    let hash = sample.device.content_hash();
    assert!(invalidate(&sample.device, &options(Selection::AllClean)).unwrap().is_empty());
    assert_eq!(sample.device.content_hash(), hash);
}

/// The lists come when all is over, and the plan's table of buckets is gone by then.
#[test]
fn what_is_told_at_the_end_is_what_was_planned() {
    let sample = Sample::new();
    let node = sample.built.root.1.ptrs()[0].bucket(&sample.built.geometry).0;
    let named = vec![0..=sample.data(BELOW_LIMIT), node..=node, NBUCKETS..=NBUCKETS + 5];
    let wanted = Options { skip_refused: true, ..options(Selection::Buckets(named)) };
    let plan = plan_on(&sample.device, &wanted).unwrap();
    let kinds: BTreeSet<&str> = plan.chosen.refused().map(|(_, reason)| reason.kind()).collect();
    let expected = [
        "before the first bucket",
        "btree",
        "dirty",
        "gen limit",
        "journal",
        "out of range",
        "prios",
        "uuids",
    ];
    assert_eq!(kinds, BTreeSet::from(expected));
    // Compares the lists.
    let gone = invalidate(&sample.device, &wanted).unwrap();
    assert!(gone.len() > 300, "{}", gone.len());
}

#[test]
fn what_must_not_go_is_refused_with_its_reason() {
    let sample = Sample::new();
    let nbuckets = NBUCKETS;
    let first = sample.built.geometry.first_bucket();
    let named = |bucket: u64, last: u64| {
        let plan =
            plan_on(&sample.device, &options(Selection::Buckets(vec![bucket..=last]))).unwrap();
        assert!(plan.chosen.stopped() && plan.chosen.writes.is_none());
        let mut refused: Vec<_> = plan.chosen.refused().collect();
        assert!(!refused[0].1.to_string().is_empty() && !refused[0].1.instead().is_empty());
        (refused.len(), refused.remove(0))
    };
    let share = |reason: &Reason| match reason {
        Reason::Dirty { shares } => shares
            .iter()
            .map(|share| (share.slot, share.name.clone(), share.sectors))
            .collect::<Vec<_>>(),
        other => panic!("{other:?}"),
    };
    let (_, (_, reason)) = named(sample.data(MIXED.start), sample.data(MIXED.start));
    assert_eq!(share(&reason), [(1, "data".to_owned(), 4)]);
    let (_, (_, reason)) = named(sample.data(DIRTY.start), sample.data(DIRTY.start));
    assert_eq!(share(&reason), [(0, "home".to_owned(), 4)]);
    let (_, (_, reason)) = named(sample.data(REPLAY_DIRTY.start), sample.data(REPLAY_DIRTY.start));
    assert_eq!(share(&reason), [(0, "home".to_owned(), 4)]);
    let metadata = |role| Reason::Metadata { role };
    let node = sample.built.root.1.ptrs()[0].bucket(&sample.built.geometry);
    for (bucket, reason) in [
        (first.0, metadata(MetadataRole::Journal)),
        (sample.built.uuid_bucket.0, metadata(MetadataRole::Uuids)),
        (sample.built.prio_buckets[2].0, metadata(MetadataRole::Prios)),
        (node.0, metadata(MetadataRole::Btree)),
        (sample.data(AT_LIMIT), Reason::GenLimit { span: 96 }),
        (0, Reason::BeforeFirst { first_bucket: first }),
        (nbuckets, Reason::OutOfRange { first: nbuckets, last: nbuckets, nbuckets }),
    ] {
        assert_eq!(named(bucket, bucket), (1, (BucketIndex(bucket), reason)));
    }
    let past = Reason::OutOfRange { first: nbuckets, last: u64::MAX, nbuckets };
    assert_eq!(named(nbuckets, u64::MAX), (1, (BucketIndex(nbuckets), past)));

    // One that may go and one that may not: none goes, unless the refused one is to be skipped.
    let mut wanted = options(sample.buckets([CLEAN.start, DIRTY.start, BELOW_LIMIT]));
    let plan = plan_on(&sample.device, &wanted).unwrap();
    assert_eq!(
        (plan.chosen.stopped(), plan.chosen.target_count(), plan.chosen.refused_count()),
        (true, 2, 1)
    );
    let hash = sample.device.content_hash();
    run(plan, &read_options(), || Ok(&sample.device), &mut |_| {}).result.unwrap();
    assert_eq!(sample.device.content_hash(), hash);
    wanted.skip_refused = true;
    let gone = invalidate(&sample.device, &wanted).unwrap();
    assert_eq!(gone, [sample.data(CLEAN.start), sample.data(BELOW_LIMIT)]);
    assert_clean(&sample.device);
    // That was the last time for one of them.
    let again = plan_on(&sample.device, &options(sample.buckets([BELOW_LIMIT]))).unwrap();
    let reasons: Vec<_> = again.chosen.refused().map(|(_, reason)| reason).collect();
    assert_eq!(reasons, [Reason::GenLimit { span: 96 }]);
}

#[test]
fn selections_name_what_they_say() {
    let sample = Sample::new();
    let select = |selection: Selection| {
        let plan = plan_on(&sample.device, &options(selection)).unwrap();
        assert!(!plan.chosen.stopped());
        targets(&plan)
    };
    // Sectors 1 before the end of one bucket to 1 after the start of the third.
    let start = Sectors(sample.data(10) * BUCKET + BUCKET - 1);
    let covered = select(Selection::Sectors { start, len: Sectors(BUCKET + 2) });
    assert_eq!(covered, [sample.data(10), sample.data(11), sample.data(12)]);
    let one = select(Selection::Sectors { start, len: Sectors(1) });
    assert_eq!(one, [sample.data(10)]);

    // Volume 1 has the odd buckets; its label came with a newline from sysfs.
    let odd: Vec<u64> = CLEAN.filter(|it| it % 2 == 1).map(|it| sample.data(it)).collect();
    let uuid = backing_volume(2).uuid.to_string();
    for name in ["data", "1", &uuid] {
        let volume = Selection::Volume { volume: name.to_owned(), range: None };
        assert_eq!(select(volume), odd, "{name}");
    }
    let range = |start, len| Selection::Volume {
        volume: "home".to_owned(),
        range: Some((Sectors(start), Sectors(len))),
    };
    // The key of bucket 20 ends at sector 300.
    assert_eq!(select(range(299, 1)), [sample.data(20)]);
    assert!(select(range(300, 5)).is_empty());
    // What only the journal has yet, and what it hides.
    let replayed = REPLAY_CLEAN.start;
    let place = 1_000_000 + replayed * 100;
    assert_eq!(select(range(place - 4, 1)), [sample.data(replayed)]);
    let plan = plan_on(&sample.device, &options(range(0, 1 << 20))).unwrap();
    let dirty = (DIRTY.end - DIRTY.start) / 2 + REPLAY_DIRTY.end - REPLAY_DIRTY.start;
    assert_eq!(plan.chosen.dirty_kept, Sectors(dirty * 4));
    assert_eq!(plan.chosen.refused_count(), MIXED.end - MIXED.start);
    for name in ["nobody", "7", ""] {
        let volume = Selection::Volume { volume: name.to_owned(), range: None };
        let error = plan_on(&sample.device, &options(volume)).unwrap_err();
        assert!(
            matches!(error, InvalidateError::Volume(FindVolumeError::None { .. })),
            "{name}: {error:?}"
        );
    }

    let prio = |bucket: u64| (builder().bucket_disk)(bucket).prio;
    let mut by_age: Vec<u64> = CLEAN.chain(REPLAY_CLEAN).map(|it| sample.data(it)).collect();
    by_age.sort_by_key(|&bucket| (prio(bucket), bucket));
    let coldest = |count: usize| {
        let mut buckets = by_age[..count].to_vec();
        buckets.sort_unstable();
        buckets
    };
    assert_eq!(select(Selection::Coldest(Amount::Count(17))), coldest(17));
    assert_eq!(select(Selection::Coldest(Amount::Percent(10))), coldest(31));
    assert_eq!(select(Selection::Coldest(Amount::Percent(100))), coldest(by_age.len()));
    assert_eq!(select(Selection::Coldest(Amount::Count(1 << 40))), coldest(by_age.len()));
    assert!(select(Selection::Coldest(Amount::Count(0))).is_empty());
}

#[test]
fn policies_take_what_the_allocator_would() {
    let sample = Sample::new();
    let cache = CacheDevice::open(&sample.device).unwrap();
    let set = CacheSet::read(cache, &read_options(), &mut NoVisitor).unwrap();
    let choose = |policy, count, seed| {
        let selection = Selection::Policy { policy, count, seed };
        let plan = plan_on(&sample.device, &options(selection)).unwrap();
        let chain = plan.chosen.writes.as_ref().unwrap().chain.clone();
        (targets(&plan), chain)
    };
    // So many that LRU has to go on from the unused buckets to those with data.
    let count = NBUCKETS - 600;
    let (lru, chain) = choose(Policy::Lru, count, 0);
    let rank = |number: &u64| {
        let bucket = set.table.get(BucketIndex(*number)).unwrap();
        bucket_prio(bucket.prio(), bucket.sectors_used(), 0)
    };
    let legal: Vec<u64> = (set.geometry().first_bucket().0..NBUCKETS)
        .filter(|&number| {
            let bucket = set.table.get(BucketIndex(number)).unwrap();
            matches!(bucket.mark(), GcMark::Unused | GcMark::Reclaimable)
                && bucket.gen_span() < 96
                && !chain.contains(&BucketIndex(number))
        })
        .collect();
    let mut best: Vec<u64> = legal.iter().map(rank).collect();
    best.sort_unstable();
    let mut chosen: Vec<u64> = lru.iter().map(rank).collect();
    chosen.sort_unstable();
    let take = lru.len().min(best.len());
    assert!(take > 0 && lru.iter().all(|bucket| legal.contains(bucket)));
    assert_eq!(chosen, best[..take]);

    let (fifo, chain) = choose(Policy::Fifo, 50, 0);
    let expected: Vec<u64> =
        legal.iter().copied().filter(|&it| !chain.contains(&BucketIndex(it))).take(50).collect();
    assert_eq!(fifo, expected);
    let (random, _) = choose(Policy::Random, 50, 1);
    assert_eq!(random.len(), 50);
    assert_eq!(choose(Policy::Random, 50, 1).0, random);
    assert_ne!(choose(Policy::Random, 50, 2).0, random);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever is named, over several runs: what may go goes, by exactly one gen each time, and
    /// nothing else changes. (The run itself proves marks and volumes.)
    #[test]
    fn any_list_of_buckets(
        runs in prop::collection::vec(prop::collection::vec(0u64..NBUCKETS + 50, 1..60), 1..4)
    ) {
        let sample = Sample::new();
        for buckets in runs {
            let before = state_of(&sample.device);
            let mut wanted = options(Selection::Buckets(buckets.iter().map(|&it| it..=it).collect()));
            wanted.skip_refused = true;
            let gone = invalidate(&sample.device, &wanted).unwrap();
            let after = state_of(&sample.device);
            for (number, (old, new)) in (0u64..).zip(before.buckets.iter().zip(&after.buckets)) {
                let raised = new.0.wrapping_sub(old.0);
                prop_assert_eq!(raised, u8::from(gone.contains(&number)));
                let named = buckets.contains(&number);
                prop_assert!(!gone.contains(&number) || named);
            }
            assert_clean(&sample.device);
        }
    }
}

#[test]
fn advice_is_given_for_each_kind_of_refusal() {
    let sample = Sample::new();
    let named = [MIXED.start, DIRTY.start, DIRTY.start + 1, AT_LIMIT].map(|it| sample.data(it));
    let mut ranges: Vec<_> = named.iter().map(|&it| it..=it).collect();
    ranges.extend([0..=0, NBUCKETS + 5..=NBUCKETS + 5, NBUCKETS + 5..=NBUCKETS + 9]);
    let plan = plan_on(&sample.device, &options(Selection::Buckets(ranges))).unwrap();
    let advice = plan.chosen.advice();
    let kinds: Vec<_> =
        advice.iter().map(|Advice { kind, buckets, .. }| (*kind, *buckets)).collect();
    assert_eq!(
        kinds,
        [("before the first bucket", 1), ("dirty", 3), ("gen limit", 1), ("out of range", 1)]
    );
    assert!(advice.iter().all(|it| !it.instead.is_empty()));
    let past = Reason::OutOfRange { first: NBUCKETS + 5, last: NBUCKETS + 9, nbuckets: NBUCKETS };
    assert_eq!(plan.chosen.refused().last(), Some((BucketIndex(NBUCKETS + 5), past)));
}

#[test]
fn a_policy_says_when_it_gives_up() {
    let sample = Sample::new();
    for (policy, count) in [(Policy::Random, 1500), (Policy::Fifo, 1 << 40), (Policy::Lru, 1 << 40)]
    {
        let selection = Selection::Policy { policy, count, seed: 3 };
        let plan = plan_on(&sample.device, &options(selection)).unwrap();
        let found = plan.chosen.target_count();
        assert!(found < 3000);
        assert_eq!(plan.chosen.gave_up, Some(GaveUp { found, wanted: count }), "{policy:?}");
    }
    let selection = Selection::Policy { policy: Policy::Random, count: 50, seed: 3 };
    let plan = plan_on(&sample.device, &options(selection)).unwrap();
    assert_eq!((plan.chosen.target_count(), plan.chosen.gave_up), (50, None));
}

#[test]
fn a_label_that_is_a_slot_calls_for_the_uuid() {
    let volumes = vec![volume(1, "home"), volume(2, "0")];
    let sample = Sample::with(SetBuilder { volumes, ..builder() });
    let select = |name: &str| {
        let volume = Selection::Volume { volume: name.to_owned(), range: None };
        plan_on(&sample.device, &options(volume))
    };
    let error = select("0").unwrap_err();
    let uuid = |number| backing_volume(number).uuid;
    let message = error.to_string();
    assert!(message.contains("several volumes"), "{message}");
    for number in [1, 2] {
        assert!(message.contains(&uuid(number).to_string()), "{message}");
        assert!(select(&uuid(number).to_string()).is_ok());
    }
}
