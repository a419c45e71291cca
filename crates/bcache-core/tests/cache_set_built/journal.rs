//! Journals that were cut off, that go on behind damage, or that change while they are read.

use std::sync::atomic::{AtomicBool, Ordering};

use bcache_core::device::testkit::MemoryDevice;
use bcache_core::device::{DeviceError, DeviceInfo, ReadDevice};
use bcache_core::layout::SetMagic;
use bcache_core::layout::bkey::{Bkey, Ptr};
use bcache_core::ops::check::{Code, Finding, Registration, Severity};
use bcache_core::units::{Gen, Sectors};

use crate::sample::{EXTENT, Sample, report};

#[test]
fn an_entry_with_newer_ones_behind_it_was_not_torn_whichever_byte_is_damaged() {
    let sample = Sample::new();
    let byte = sample.append(1, &[sample.new_dirty_key()]);
    sample.append(2, &[]);
    let sound = sample.check();
    assert!(sound.is_clean(), "{:?}", sound.findings);
    for at in 0..264 {
        sample.flip(byte + at, 0x81);
        let report = sample.check();
        sample.flip(byte + at, 0x81);
        let codes: Vec<_> = report.counts.keys().collect();
        assert_eq!(codes, [&Code::JournalHidden], "byte {at}: {:?}", report.findings);
        assert!(report.data_at_risk && report.incomplete, "byte {at}");
        assert_eq!(report.registration, Registration::Accepted, "the kernel goes on without it");
    }
    // Entries behind it that are older are what a cycle before left.
    sample.write(byte, &[0; 512]);
    sample.write(byte + 512, sample.entry(40).as_bytes());
    assert!(sample.check().is_clean());
}

/// A device that is formatted again has the entries of the set before it just where the new set's next
/// ones would be, and with their numbers.
#[test]
fn what_another_set_left_behind_the_newest_entry_is_not_torn() {
    let sample = Sample::new();
    let other = SetMagic(!sample.built.magic.0);
    let byte = sample.append_of(other, 1, &[sample.new_dirty_key()]);
    let report = sample.check();
    assert!(report.is_clean(), "{:?}", report.findings);
    // Were it not whole, it could be an entry of this set with a damaged magic.
    sample.flip(byte + 32, 1);
    let report = sample.check();
    assert_eq!(report.counts.keys().collect::<Vec<_>>(), [&Code::JournalTorn]);
}

#[test]
fn a_torn_entry_leaves_it_open_whether_its_dirty_keys_are_lost() {
    let clean = |sample: &Sample| sample.new_dirty_key().with_dirty(false);
    // Bytes: of the checksum, of the number of key words, of the first key.
    for (keys, at, open) in [
        (&(|s: &Sample| vec![s.new_dirty_key()]) as &dyn Fn(&Sample) -> Vec<Bkey>, 0, true),
        (&|s| vec![clean(s), s.new_dirty_key()], 3, true),
        (&|s| vec![clean(s)], 28, true),
        (&|s| vec![clean(s)], 0, false),
        (&|_| Vec::new(), 0, false),
    ] {
        let sample = Sample::new();
        let byte = sample.append(1, &keys(&sample));
        sample.flip(byte + at, 0x40);
        let report = sample.check();
        let codes: Vec<_> = report.counts.keys().collect();
        assert_eq!(codes, [&Code::JournalTorn], "{:?}", report.findings);
        assert_eq!(report.worst, Some(Severity::Untidy));
        assert!(!report.data_at_risk);
        assert_eq!(report.incomplete, open, "{:?}", report.findings);
    }
}

#[test]
fn a_stale_dirty_key_of_the_journal_is_harmless_only_where_the_btree_went_on() {
    let severities = |keys: &dyn Fn(&Sample) -> Bkey| -> Vec<Severity> {
        let sample = Sample::new();
        let key = keys(&sample);
        sample.write_newest(&[key], |_| {});
        sample.set_gen(key.ptrs()[0].bucket(&sample.built.geometry).0, |g| g + 1);
        let report = sample.check();
        assert_eq!(report.counts.keys().collect::<Vec<_>>(), [&Code::KeyStaleDirty]);
        let worst = report.worst.unwrap();
        assert_eq!(report.data_at_risk, worst == Severity::DataAtRisk);
        // The figures are certain where nothing is lost.
        assert_eq!(report.incomplete, worst == Severity::DataAtRisk);
        report.findings.iter().map(Finding::severity).collect()
    };
    let clean_key = |s: &Sample| s.leaf().keys.iter().find(|key| !key.dirty()).unwrap();
    let elsewhere = |s: &Sample, key: &Bkey| {
        let sector = Sectors(s.unused_bucket() * 16);
        key.with_ptrs(&[Ptr::new(Gen(1), sector, 0)]).with_dirty(true)
    };
    assert_eq!(severities(&Sample::new_dirty_key), [Severity::DataAtRisk]);
    // In the btree too, just as dirty and stale: nothing went on.
    assert_eq!(severities(&|s| s.dirty_key().0), [Severity::DataAtRisk]);
    // An older dirty write is there.
    assert_eq!(severities(&|s| elsewhere(s, &s.dirty_key().0)), [Severity::DataAtRisk]);
    assert_eq!(severities(&|s| elsewhere(s, &clean_key(s))), [Severity::Untidy]);
    // One half of the key lies over a clean key of the btree, the other over none.
    let half = |s: &Sample| {
        let mut key = elsewhere(s, &clean_key(s));
        key.low += EXTENT / 2;
        key
    };
    assert_eq!(severities(&half), [Severity::Untidy, Severity::DataAtRisk]);
}

#[test]
fn a_stale_dirty_key_that_newer_ones_of_the_journal_hide_is_no_finding() {
    let sample = Sample::new();
    let key = sample.new_dirty_key();
    let hole = Bkey::new(key.inode(), key.offset(), u16::try_from(EXTENT).unwrap());
    sample.write_newest(&[key, hole], |_| {});
    sample.set_gen(sample.unused_bucket(), |g| g + 1);
    assert!(sample.check().is_clean(), "{:?}", sample.check().findings);
}

/// A journal that moves on while it is read: the second reading of an entry finds zeroes.
struct Moving {
    device: MemoryDevice,
    entry: u64,
    seen: AtomicBool,
}

impl ReadDevice for Moving {
    fn info(&self) -> &DeviceInfo {
        self.device.info()
    }

    fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<(), DeviceError> {
        self.device.read_at(offset, buf)?;
        if offset == self.entry && self.seen.swap(true, Ordering::Relaxed) {
            buf.fill(0);
        }
        Ok(())
    }
}

#[test]
fn a_journal_that_changes_meanwhile_is_told() {
    let sample = Sample::new();
    let entry = sample.entry_byte(41);
    let device = Moving { device: sample.device.clone(), entry, seen: AtomicBool::new(false) };
    let report = report(&device);
    let codes: Vec<_> = report.counts.keys().copied().collect();
    assert_eq!(codes, [Code::JournalGap, Code::JournalChanged]);
}
