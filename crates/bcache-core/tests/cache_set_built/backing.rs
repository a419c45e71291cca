//! Backing devices beside the sample.

use bcache_core::cache_set::testkit::{SetBuilder, backing_volume};
use bcache_core::cache_set::{NoVisitor, ReadOptions, read_superblock};
use bcache_core::device::testkit::{Fault, FaultDevice, Lasting, MemoryDevice, Trigger};
use bcache_core::device::{BlockDevice, ReadDevice};
use bcache_core::inspect::{Advice, BackingDevices, Device, Doubt, Group};
use bcache_core::layout::superblock::{
    BackingParams, BackingState, CacheMode, Label, SB_OFFSET_BYTES, Superblock,
};
use bcache_core::ops::check::{CheckOptions, Code, Place, Registration, Severity, check};
use bcache_core::units::{BucketIndex, Sectors};

use crate::sample::{DATA_BUCKETS, EXTENT, Sample, data_key};

pub(crate) fn backing(
    state: BackingState,
    change: impl FnOnce(&mut BackingParams),
) -> MemoryDevice {
    let mut params = BackingParams {
        uuid: backing_volume(1).uuid,
        set_uuid: SetBuilder::default().superblock().set_uuid(),
        label: Label::default(),
        data_offset: Sectors(16),
        block_size: 1,
        cache_mode: CacheMode::Writeback,
    };
    change(&mut params);
    let mut sb = Superblock::new_backing(&params);
    sb.edit(|sb| {
        sb.state(state);
    });
    let device = MemoryDevice::new(600 << 20);
    device.write_at(SB_OFFSET_BYTES, sb.as_bytes()).unwrap();
    device
}

/// Beside the cache, or beside a backing device: it may be either, and is to be copied.
#[test]
fn a_device_that_cannot_be_read_may_be_anything() {
    let sample = Sample::new();
    let trigger = Trigger::Overlaps { operation: None, offset: SB_OFFSET_BYTES, len: 512 };
    let unreadable = FaultDevice::new(backing(BackingState::Dirty, |_| {}))
        .with(Fault::new(trigger).lasting(Lasting::Always));
    let path = &unreadable.info().path;
    let first: [&dyn ReadDevice; 2] = [&sample.device, &backing(BackingState::Dirty, |_| {})];
    for device in first {
        let options = CheckOptions { backing: vec![&unreadable], ..CheckOptions::default() };
        let report = check(device, &options, &mut |_| {}).unwrap();
        let said = report.findings.iter().find(|it| it.code() == Code::BackingUnreadable).unwrap();
        assert_eq!(said.place(), Place::Device { path: path.clone() });
        let copy = Advice::CopyDevice { device: path.clone() };
        let at = report.advice.iter().position(|it| *it == copy).unwrap();
        let is_warning =
            |it: &Advice| matches!(it, Advice::DoNotRegister { .. } | Advice::DoNotWipe);
        assert!(report.advice[..at].iter().all(is_warning), "{:?}", report.advice);
        assert!(report.incomplete && report.unread);
    }
}

#[test]
fn backing_devices_must_belong() {
    let sample = Sample::new();
    let codes = |device: &MemoryDevice| -> Vec<Code> {
        let options = CheckOptions { backing: vec![device], ..CheckOptions::default() };
        let report = check(&sample.device, &options, &mut |_| {}).unwrap();
        report.counts.keys().copied().collect()
    };
    let dirty = BackingState::Dirty;
    assert_eq!(codes(&backing(dirty, |_| {})), []);
    // The sample's data is zeroes, and so is the device's: it was written back.
    let written_back = backing(BackingState::Clean, |_| {});
    assert_eq!(codes(&written_back), [Code::BackingWrittenBack]);
    for sector in (2..1_200_000 / EXTENT).map(|extent| extent * EXTENT) {
        written_back.write_at(sector * 512, &[0x55; 512]).unwrap();
    }
    // Clean data is as little there then.
    assert_eq!(codes(&written_back), [Code::BackingStateClean, Code::CleanMismatch]);
    assert_eq!(codes(&backing(BackingState::Stale, |_| {})), [Code::BackingStateStale]);
    let other = uuid::Uuid::from_u128(77);
    let (none, clean) = (BackingState::None, BackingState::Clean);
    assert_eq!(codes(&backing(dirty, |p| p.set_uuid = other)), [Code::BackingMoved]);
    assert_eq!(codes(&backing(none, |p| p.set_uuid = uuid::Uuid::nil())), [Code::BackingReleased]);
    assert_eq!(codes(&backing(clean, |p| p.uuid = other)), [Code::BackingNotInTable]);
    let stranger = |state| backing(state, |p| (p.uuid, p.set_uuid) = (other, other));
    assert_eq!(codes(&stranger(clean)), [Code::BackingOtherSet]);
    // Nothing is said against a device that needs no cache, unless the cache may hold something of it.
    let detached = backing(none, |p| (p.uuid, p.set_uuid) = (other, uuid::Uuid::nil()));
    assert_eq!(codes(&detached), [Code::BackingDetached]);
    let leaf = sample.leaf().sector().bytes() + 100;
    sample.flip(leaf, 1);
    let in_doubt = codes(&detached);
    sample.flip(leaf, 1);
    assert!(in_doubt.contains(&Code::BackingOtherSet), "{in_doubt:?}");
    for state in [dirty, BackingState::Stale] {
        assert_eq!(codes(&backing(state, |p| p.uuid = other)), [Code::BackingSetGone]);
        assert_eq!(codes(&stranger(state)), [Code::BackingSetGone]);
    }
    sample.edit_superblock(|sb| {
        *sb = SetBuilder { block_size: 8, ..sample.builder.clone() }.superblock();
    });
    assert!(codes(&backing(none, |p| p.uuid = other)).contains(&Code::BackingBlockSize));
    sample.edit_superblock(|sb| *sb = sample.builder.superblock());
    assert_eq!(codes(&backing(BackingState::None, |p| p.uuid = other)), []);
    assert_eq!(codes(&MemoryDevice::new(1 << 20)), [Code::BackingUnreadable]);
    let small = backing(dirty, |_| {}).with_info(|info| {
        info.size_bytes = 1 << 20;
        info.disk_size = Sectors(2048);
    });
    assert_eq!(codes(&small), [Code::BackingTooSmall]);
    assert_eq!(codes(&backing(dirty, |p| p.block_size = 0)), [Code::BackingRefused]);
}

/// What is wrong with a backing device says nothing of the cache.
#[test]
fn a_backing_device_is_no_verdict_on_the_cache() {
    // All of its data is clean.
    let builder = SetBuilder { nbuckets: 700, bucket_size: Sectors(16), ..SetBuilder::default() };
    let cache = MemoryDevice::new(700 * 16 * 512);
    let key = data_key(&builder, 0, 100, builder.data_buckets(0).start, 0);
    builder.write(&cache, std::iter::once(key)).unwrap();
    let other = uuid::Uuid::from_u128(77);
    let clean = BackingState::Clean;
    for (device, worst) in [
        (MemoryDevice::new(1 << 20), Severity::NotChecked),
        (backing(clean, |p| p.set_uuid = other), Severity::NotChecked),
        (backing(clean, |p| p.block_size = 0), Severity::KernelRefuses),
    ] {
        let options = CheckOptions { backing: vec![&device], ..CheckOptions::default() };
        let report = check(&cache, &options, &mut |_| {}).unwrap();
        assert_eq!(report.worst, Some(worst), "{:?}", report.findings);
        assert_eq!(report.registration, Registration::Accepted);
        assert!(!report.data_at_risk, "{:?}", report.findings);
    }
}

/// However few are listed, all are counted, and none of another kind gets lost behind them.
#[test]
fn findings_of_backing_devices_are_counted_listed_or_not() {
    let sample = Sample::new();
    let backing = backing(BackingState::Dirty, |_| {});
    let data = vec![0x5a; usize::try_from(DATA_BUCKETS * 16 * 512).unwrap()];
    sample.device.write_at(sample.byte_of(BucketIndex(sample.first_data)), &data).unwrap();
    let clean: Vec<u64> = (0..DATA_BUCKETS).filter(|n| n % 5 != 0).collect();
    let last = 100 + clean[clean.len() - 1] * 3 * EXTENT - EXTENT;
    let unreadable = Trigger::Overlaps { operation: None, offset: last * 512, len: 512 };
    let backing = FaultDevice::new(backing).with(Fault::new(unreadable).lasting(Lasting::Always));
    for listed in [0, 3, 100, usize::MAX] {
        let options = CheckOptions {
            backing: vec![&backing],
            verify_clean: true,
            findings_per_code: listed,
            ..CheckOptions::default()
        };
        let report = check(&sample.device, &options, &mut |_| {}).unwrap();
        let mismatches = clean.len() as u64 - 1;
        let counts: Vec<_> = report.counts.iter().map(|(code, count)| (*code, *count)).collect();
        assert_eq!(counts, [(Code::BackingUnreadable, 1), (Code::CleanMismatch, mismatches)]);
        let mut told = report.findings.iter().filter(|it| it.code() == Code::CleanMismatch);
        assert_eq!(told.by_ref().count(), listed.min(clean.len() - 1));
        assert!(report.unread && report.incomplete);
        assert_eq!(report.worst, Some(Severity::DataAtRisk));
    }
}

/// A dirty backing device that the kernel read at that time.
fn mounted(last_mount: u32) -> MemoryDevice {
    let backing = backing(BackingState::Dirty, |_| {});
    let mut sb = read_superblock(&backing).unwrap().unwrap();
    sb.edit(|sb| _ = sb.last_mount(last_mount));
    backing.write_at(SB_OFFSET_BYTES, sb.as_bytes()).unwrap();
    backing
}

/// Whether somebody holds the devices or not: a loop device on an image is no reason to say less.
#[test]
fn a_registration_after_the_cache_was_last_there_is_told_of_devices_in_use() {
    let sample = Sample::new();
    for (last_mount, expected) in [(1_700_000_002, false), (1_700_000_003, true)] {
        let backing = mounted(last_mount);
        for in_use in [(false, false), (true, false), (false, true)] {
            let read =
                |device| Device::read(device, &ReadOptions::default(), &mut NoVisitor).unwrap();
            let devices = vec![(read(&sample.device), in_use.0), (read(&backing), in_use.1)];
            let group = Group::new(devices, &mut BackingDevices::default());
            let doubts = &group.members[0].device.doubts;
            assert_eq!(
                doubts.contains(&Doubt::RegisteredSince),
                expected,
                "{last_mount} {in_use:?}"
            );
        }
    }
}

/// A machine that starts without the time attaches in 1970: that is no damage, and proves nothing.
#[test]
fn a_machine_without_the_time_is_not_suspected() {
    let slot = Sample::new().check().dirty[0].slot;
    for (first_reg, last_reg) in [(1_700_000_001, 40), (38, 40), (1_700_000_001, 1_690_000_000)] {
        let sample = Sample::new();
        sample.edit_uuid(slot.into(), |entry| {
            (entry.first_reg, entry.last_reg) = (first_reg, last_reg);
        });
        let backing = mounted(1_700_000_003);
        let options = CheckOptions { backing: vec![&backing], ..CheckOptions::default() };
        let report = check(&sample.device, &options, &mut |_| {}).unwrap();
        assert!(report.is_clean(), "{first_reg} {last_reg}: {:?}", report.findings);
    }
}
