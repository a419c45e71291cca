//! Each damage is found by its code, and nothing else is.

use std::collections::BTreeSet;

use bcache_core::cache_set::btree::{FaultKind, NodeFault};
use bcache_core::cache_set::testkit::SetBuilder;
use bcache_core::cache_set::{
    BtreeProblem, CacheDevice, CacheSet, Problem, ReadOptions, SetRefusal, Visitor,
};
use bcache_core::device::testkit::MemoryDevice;
use bcache_core::device::{BlockDevice, ReadDevice};
use bcache_core::inspect::Answer;
use bcache_core::layout::bkey::{Bkey, Ptr};
use bcache_core::layout::bset;
use bcache_core::layout::superblock::{BackingState, SB_OFFSET_BYTES};
use bcache_core::ops::check::{CheckOptions, Code, Finding, Registration, Severity, check};
use bcache_core::units::{Gen, Sectors};

use crate::backing::backing;
use crate::damages::{DAMAGES, UNREADABLE, unreadable_at, unreadable_places};
use crate::sample::{Sample, data_key, report};

#[test]
fn a_sound_set_has_no_findings() {
    let sample = Sample::new();
    let report = sample.check();
    assert!(report.is_clean(), "{:?}", report.findings);
    assert_eq!(report.registration, Registration::Accepted);
    assert_eq!(report.dirty.len(), 2);
}

#[test]
fn every_damage_is_found_by_its_code_and_nothing_else_is() {
    for (name, damage, code, along) in DAMAGES {
        let sample = Sample::new();
        let before = sample.device.content_hash();
        damage(&sample);
        assert_ne!(sample.device.content_hash(), before, "{name}: the damage did not land");
        let report = sample.check();
        let found: BTreeSet<Code> = report.counts.keys().copied().collect();
        assert!(found.contains(code), "{name}: {:?}", report.findings);
        let stray: Vec<_> =
            found.iter().filter(|&other| other != code && !along.contains(other)).collect();
        assert!(stray.is_empty(), "{name}: {stray:?} beside {code}: {:?}", report.findings);
        let worst = report.findings.iter().map(Finding::severity).max().unwrap();
        assert_eq!(report.worst, Some(worst), "{name}");
        let refused = matches!(report.registration, Registration::Refused { .. });
        assert_eq!(refused, worst == Severity::KernelRefuses, "{name}");
        match worst {
            // Without a journal nobody knows of the dirty data.
            Severity::KernelRefuses => {
                assert_eq!(report.data_at_risk, !report.dirty.is_empty(), "{name}");
                assert!(report.data_at_risk || report.incomplete, "{name}");
            }
            Severity::DataAtRisk => assert!(report.data_at_risk, "{name}"),
            Severity::NotChecked | Severity::Untidy => assert!(!report.data_at_risk, "{name}"),
        }
        for finding in &report.findings {
            assert!(!finding.place().to_string().is_empty() && !finding.expected().is_empty());
        }
    }
}

/// The findings that tests below provoke otherwise than by damage to the sample.
const ELSEWHERE: &[Code] = &[
    Code::SuperblockCutOff,
    Code::SuperblockCoversSet,
    Code::JournalUnreadable,
    Code::PrioUnreadable,
    Code::UuidUnreadable,
    Code::UuidDetachedDirty,
    Code::BtreeUnreadable,
    Code::JournalChanged,
    Code::BackingUnreadable,
    Code::BackingRefused,
    Code::BackingOtherSet,
    Code::BackingDetached,
    Code::BackingNotInTable,
    Code::BackingStateClean,
    Code::BackingWrittenBack,
    Code::BackingStateStale,
    Code::BackingTooSmall,
    Code::BackingSetGone,
    Code::BackingReleased,
    Code::BackingMoved,
    Code::BackingBlockSize,
    // Tested on images that a kernel wrote.
    Code::CleanMismatch,
    Code::BackingDataOffset,
    Code::BackingNewer,
    Code::BackingSetCovered,
    Code::BackingIsCache,
    Code::SuperblockGone,
    Code::SuperblockCopied,
    Code::BackingCopied,
];

#[test]
fn every_code_has_its_damage() {
    let covered: BTreeSet<Code> =
        DAMAGES.iter().map(|(_, _, code, _)| *code).chain(ELSEWHERE.iter().copied()).collect();
    let missing: Vec<_> = Code::ALL.iter().filter(|code| !covered.contains(code)).collect();
    assert!(missing.is_empty(), "{missing:?}");
}

/// Collects the problems themselves.
#[derive(Default)]
struct All(Vec<Problem>);

impl Visitor for All {
    fn problem(&mut self, problem: Problem) {
        self.0.push(problem);
    }
}

pub(crate) fn problems(device: &dyn ReadDevice) -> Vec<Problem> {
    let mut all = All::default();
    if let Ok(cache) = CacheDevice::open(device) {
        let _ = CacheSet::read(cache, &ReadOptions::default(), &mut all);
    }
    all.0
}

/// `show` and `check` say the same of registration, and of whether keys may be missing.
#[test]
fn what_the_kernel_refuses_is_told_alike_by_its_words_and_by_severity() {
    let agree = |name: &str, device: &dyn ReadDevice| {
        let report = report(device);
        let found = problems(device);
        let in_words = found.iter().any(|problem| SetRefusal::of(problem, None).is_some());
        let of_the_set = |finding: &&Finding| {
            finding.severity() == Severity::KernelRefuses
                && !matches!(finding.code(), Code::SuperblockRefused | Code::SuperblockMagic)
        };
        assert_eq!(in_words, report.findings.iter().any(|it| of_the_set(&it)), "{name}");
        if found.iter().any(Problem::hides_keys) {
            assert!(report.incomplete, "{name}");
        }
    };
    for (name, damage, ..) in DAMAGES {
        let sample = Sample::new();
        damage(&sample);
        agree(name, &sample.device);
    }
    let sample = Sample::new();
    for byte in unreadable_places(&sample) {
        agree("unreadable", &unreadable_at(&sample, byte));
    }
}

/// Many faults of one kind leave room for one of another.
#[test]
fn faults_of_a_node_are_bounded_by_kind() {
    let kinds = |sample: &Sample| -> Vec<(FaultKind, bool)> {
        let faults = problems(&sample.device).into_iter().filter_map(|problem| match problem {
            Problem::Btree(BtreeProblem::Fault { fault, .. }) => {
                Some((fault.kind(), matches!(fault, NodeFault::More { .. })))
            }
            _ => None,
        });
        faults.collect()
    };
    let extents = |from: u64| (from..from + 40).map(|n| Bkey::new(0, 10 + n * 10, 8));
    let leaf = |sample: &Sample, keys: Vec<Bkey>| {
        let node = sample.nodes(0).remove(0);
        let ptr = node.key.ptrs()[0];
        let bytes = bset::encode(sample.built.magic, ptr, 99, &keys);
        let mut image = vec![0; 8192];
        image[..bytes.len()].copy_from_slice(&bytes);
        sample.write(ptr.offset().bytes(), &image);
    };
    // Bad extents only: not a word of order.
    let sample = Sample::new();
    let bad = Ptr::new(Gen(1), Sectors(1 << 40), 0);
    leaf(&sample, extents(0).map(|key| key.with_ptrs(&[bad])).collect());
    let found = kinds(&sample);
    assert!(found.iter().all(|(kind, _)| *kind == FaultKind::BadExtent), "{found:?}");
    assert!(found.contains(&(FaultKind::BadExtent, true)), "{found:?}");
    assert!(!sample.check().counts.contains_key(&Code::BtreeOrder));
    // Keys in the reverse order, and one bad extent behind them.
    let sample = Sample::new();
    let mut keys: Vec<Bkey> = extents(0).collect();
    keys.reverse();
    keys.push(Bkey::new(0, 900, 8).with_ptrs(&[bad]));
    leaf(&sample, keys);
    let found = kinds(&sample);
    assert!(found.contains(&(FaultKind::OutOfOrder, true)), "{found:?}");
    assert!(found.contains(&(FaultKind::BadExtent, false)), "{found:?}");
    let report = sample.check();
    assert!(matches!(report.registration, Registration::Refused { .. }), "{:?}", report.findings);
}

/// Only what is at stake is at risk.
#[test]
fn a_refused_cache_without_dirty_data_puts_none_at_risk() {
    let builder = SetBuilder { nbuckets: 700, bucket_size: Sectors(16), ..SetBuilder::default() };
    let device = MemoryDevice::new(700 * 16 * 512);
    let bucket = builder.data_buckets(0).start;
    let key = data_key(&builder, 0, 100, bucket, 0);
    let built = builder.write(&device, std::iter::once(key)).unwrap();
    let flip_in = |byte: u64, places: &[usize]| {
        let mut sector = [0; 512];
        device.read_at(byte, &mut sector).unwrap();
        for place in places {
            sector[*place] ^= 1;
        }
        device.write_at(byte, &sector).unwrap();
    };
    let flip = |byte: u64| flip_in(byte, &[100]);
    // Damage in one place hides nothing.
    flip(SB_OFFSET_BYTES);
    let refused = report(&device);
    assert!(matches!(refused.registration, Registration::Refused { .. }));
    assert_eq!((refused.stakes.answer, refused.data_at_risk), (Answer::None, false));
    flip(SB_OFFSET_BYTES);
    // What the superblock says cannot be trusted: it may hide newer journal entries.
    flip_in(SB_OFFSET_BYTES, &[80, 100]);
    let refused = report(&device);
    assert!(matches!(refused.registration, Registration::Refused { .. }));
    assert!(!refused.data_at_risk && refused.incomplete && !refused.unread);
    assert_eq!(refused.stakes.answer, Answer::Unknown);
    // A backing device that lacks nothing settles it.
    let complete = backing(BackingState::Clean, |_| {});
    let options = CheckOptions { backing: vec![&complete], ..CheckOptions::default() };
    let settled = check(&device, &options, &mut |_| {}).unwrap();
    assert_eq!(settled.stakes.answer, Answer::None);
    assert!(!settled.data_at_risk);
    flip_in(SB_OFFSET_BYTES, &[80, 100]);
    // Gens are in doubt: it cannot be told.
    flip(built.geometry.bucket_to_sector(built.prio_buckets[0]).bytes());
    let refused = report(&device);
    assert!(matches!(refused.registration, Registration::Refused { .. }));
    assert!(!refused.data_at_risk && refused.incomplete);
}

#[test]
fn unreadable_places_are_told_and_the_rest_is_read() {
    let sample = Sample::new();
    for (byte, code) in unreadable_places(&sample).into_iter().zip(UNREADABLE) {
        let report = report(&unreadable_at(&sample, byte));
        assert_eq!(report.counts.keys().collect::<Vec<_>>(), [&code], "{:?}", report.findings);
        assert!(report.incomplete && report.unread);
    }
}
