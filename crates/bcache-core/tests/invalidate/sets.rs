//! Sets on which it is not safe, or has no room.

use bcache_core::cache_set::testkit::SetBuilder;
use bcache_core::cache_set::{CacheDevice, CacheSet, GcMark, NoVisitor};
use bcache_core::device::testkit::MemoryDevice;
use bcache_core::device::{BlockDevice, ReadDevice};
use bcache_core::layout::bkey::Bkey;
use bcache_core::ops::invalidate::{InvalidateError, Reason, Selection, run};
use bcache_core::units::BucketIndex;

use crate::sample::{
    CLEAN, NBUCKETS, Sample, assert_clean, builder, options, plan_on, read_options, state_of,
};

/// Each run takes a block of the journal; when there is room no more, it says so, and until then
/// replay keeps what it needs.
#[test]
fn the_journal_is_never_overrun() {
    let sample = Sample::with(SetBuilder { njournal: 6, entries_per_bucket: 100, ..builder() });
    let mut runs = 0u32;
    let error = loop {
        let before = state_of(&sample.device);
        let wanted = options(sample.buckets([CLEAN.start + u64::from(runs) % 90]));
        match plan_on(&sample.device, &wanted) {
            Ok(plan) => {
                run(plan, &read_options(), || Ok(&sample.device), &mut |_| {}).result.unwrap();
            }
            Err(error) => break error,
        }
        runs += 1;
        let after = state_of(&sample.device);
        assert_eq!((after.seq, after.last_seq), (before.seq + 1, before.last_seq));
        assert!(runs < 100);
    };
    assert!(matches!(error, InvalidateError::JournalFull { .. }), "{error:?}");
    // Buckets of eight blocks, of which two stay free for the kernel.
    assert!(runs > 8, "{runs}");
    assert_clean(&sample.device);
}

#[test]
fn a_full_cache_has_no_room_for_a_chain() {
    let sample = Sample::new();
    let cache = CacheDevice::open(&sample.device).unwrap();
    let set = CacheSet::read(cache, &read_options(), &mut NoVisitor).unwrap();
    let unused: Vec<u64> = (sample.first_data..NBUCKETS)
        .filter(|&number| {
            let bucket = set.table.get(BucketIndex(number)).unwrap();
            bucket.mark() == GcMark::Unused && bucket.gen_span() < 96
        })
        .collect();
    let all_but = |count: usize| {
        let named = unused[..unused.len() - count].iter().map(|&it| it..=it).collect();
        plan_on(&sample.device, &options(Selection::Buckets(named)))
    };
    // The bucket at the limit is unused too, and may serve.
    let error = all_but(1).unwrap_err();
    assert!(matches!(error, InvalidateError::TooFewUnused { needed: 3, found: 2 }), "{error:?}");
    assert!(all_but(2).unwrap().chosen.writes.is_some());
}

#[test]
fn damaged_and_foreign_devices_are_refused() {
    let sample = Sample::new();
    let refused = |change: &dyn Fn(&MemoryDevice)| {
        let device = sample.device.snapshot();
        change(&device);
        let hash = device.content_hash();
        let error = plan_on(&device, &options(Selection::AllClean)).unwrap_err();
        assert_eq!(device.content_hash(), hash);
        error
    };
    let byte = |bucket: BucketIndex| sample.built.geometry.bucket_to_sector(bucket).bytes();
    let node = sample.built.root.1.ptrs()[0].offset().bytes();
    for place in [node, byte(sample.built.prio_buckets[1])] {
        let error = refused(&|device| device.write_at(place, &[0x55; 512]).unwrap());
        assert!(matches!(error, InvalidateError::Damaged { .. }), "{error:?}");
    }
    let error = refused(&|device| device.write_at(4096, &[0; 4096]).unwrap());
    assert!(matches!(error, InvalidateError::NoCache { .. }), "{error:?}");
    let unsynced = |device: &MemoryDevice| {
        let mut sb = sample.built.superblock.clone();
        sb.edit(|sb| {
            sb.sync(false);
        });
        device.write_at(4096, sb.as_bytes()).unwrap();
    };
    let error = refused(&unsynced);
    assert!(matches!(error, InvalidateError::NoCache { .. }), "{error:?}");
    let bad_checksum = |device: &MemoryDevice| {
        let mut bytes = sample.built.superblock.as_bytes().to_vec();
        bytes[100] ^= 1;
        device.write_at(4096, &bytes).unwrap();
    };
    let error = refused(&bad_checksum);
    assert!(matches!(error, InvalidateError::KernelRefuses { .. }), "{error:?}");
}

/// The walk of a journal bucket ends at a damaged entry. With a new one in its place, it would go on to the
/// sound ones behind. Their prio chains and nodes may lie in buckets that were reused since.
#[test]
fn entries_behind_a_damaged_one_stay_out_of_reach() {
    for next_bucket in [false, true] {
        let sample = Sample::with(SetBuilder { entries_per_bucket: 1, ..builder() });
        let mut places = Vec::new();
        for bucket in CLEAN {
            let wanted = options(sample.buckets([bucket]));
            let plan = plan_on(&sample.device, &wanted).unwrap();
            places.push(plan.chosen.writes.as_ref().unwrap().place);
            run(plan, &read_options(), || Ok(&sample.device), &mut |_| {}).result.unwrap();
            let in_last =
                places.iter().rev().take_while(|it| it.bucket == places[places.len() - 1].bucket);
            let (count, first) = (in_last.clone().count(), in_last.last().unwrap());
            if count == 3 && (first.offset == 0) == next_bucket {
                break;
            }
        }
        let damaged = places[places.len() - 3];
        assert_eq!(damaged.offset == 0, next_bucket);
        let at = sample.built.geometry.bucket_to_sector(damaged.bucket).bytes() + damaged.offset;
        let mut block = [0; 512];
        sample.device.read_at(at, &mut block).unwrap();
        block[200] ^= 1;
        block[201] ^= 1;
        sample.device.write_at(at, &block).unwrap();
        let (before, hash) = (state_of(&sample.device), sample.device.content_hash());
        let wanted = options(sample.buckets([CLEAN.end - 1]));
        let error = plan_on(&sample.device, &wanted)
            .map(|plan| run(plan, &read_options(), || Ok(&sample.device), &mut |_| {}))
            .unwrap_err();
        // The reader may find the entries first.
        assert!(
            matches!(
                error,
                InvalidateError::JournalHidesEntries { .. } | InvalidateError::Damaged { .. }
            ),
            "{error:?}"
        );
        assert_eq!(sample.device.content_hash(), hash, "a refused run wrote");
        assert_eq!(state_of(&sample.device), before);
    }
}

/// A marker of a freed node carries a gen, and one that the bucket is 129 gens past would set it back.
/// The kernel does not count it in the span.
#[test]
fn markers_of_freed_nodes_are_not_overrun() {
    let sample = Sample::with(SetBuilder { njournal: 64, ..builder() });
    let marked = 1000;
    let size = u16::try_from(sample.built.geometry.btree_node_size().0).unwrap();
    sample.add_to_root(Bkey::new(0, 0, size).with_ptrs(&[sample.ptr(marked, 0)]));
    assert_clean(&sample.device);
    let wanted = options(sample.buckets([marked]));
    let mut runs = 0;
    let reason = loop {
        let plan = plan_on(&sample.device, &wanted).unwrap();
        if let Some((_, reason)) = plan.chosen.refused().next() {
            break reason;
        }
        run(plan, &read_options(), || Ok(&sample.device), &mut |_| {}).result.unwrap();
        runs += 1;
        assert!(runs < 200);
    };
    assert_eq!((runs, reason), (96, Reason::FreedNodeLimit { span: 96 }));
    assert_clean(&sample.device);
}

/// In a set that discards, kernels before 6.19 leave a gap at the start of the replay range and pass over
/// it. Later ones refuse it. Neither set is invalidated.
#[test]
fn a_gap_in_the_replay_range_is_refused_where_the_set_discards_too() {
    for discard in [false, true] {
        let sample = Sample::new();
        let mut sb = sample.built.superblock.clone();
        let sb_flags = sb.flags();
        sb.edit(|sb| {
            sb.flags(sb_flags | u64::from(discard) << 1);
        });
        sample.device.write_at(4096, sb.as_bytes()).unwrap();
        assert!(plan_on(&sample.device, &options(Selection::AllClean)).is_ok());
        // The second journal bucket has entries 40 and 41; replay needs the latter.
        let second = sample
            .built
            .geometry
            .bucket_to_sector(BucketIndex(sample.built.geometry.first_bucket().0 + 1));
        sample.device.write_at(second.bytes(), &[0; 4096]).unwrap();
        let error = plan_on(&sample.device, &options(Selection::AllClean)).unwrap_err();
        match error {
            InvalidateError::JournalGap { gap, .. } if discard => {
                assert_eq!((gap.first, gap.last), (41, 41));
            }
            InvalidateError::Damaged { .. } if !discard => {}
            error => panic!("{discard}: {error:?}"),
        }
    }
}
