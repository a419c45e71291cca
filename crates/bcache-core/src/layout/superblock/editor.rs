//! Changes to single fields.

use uuid::Uuid;

use super::{
    BDEV_STATE_MASK, BDEV_STATE_SHIFT, BackingState, CACHE_REPLACEMENT_MASK,
    CACHE_REPLACEMENT_SHIFT, FLAG_CACHE_SYNC, Raw, Replacement, SB_JOURNAL_BUCKETS,
};

/// Changes to single fields of a superblock; the bytes of all others stay as they are.
pub struct Editor<'a> {
    pub(super) raw: &'a mut Raw,
}

impl Editor<'_> {
    /// Sets the version.
    pub fn version(&mut self, version: u64) -> &mut Self {
        self.raw.version = version.into();
        self
    }

    /// Sets all flags.
    pub fn flags(&mut self, flags: u64) -> &mut Self {
        self.raw.flags = flags.into();
        self
    }

    /// Sets the number of buckets of a cache device.
    pub fn nbuckets(&mut self, nbuckets: u64) -> &mut Self {
        self.raw.nbuckets = nbuckets.into();
        self
    }

    /// Sets `CACHE_SYNC`.
    pub fn sync(&mut self, sync: bool) -> &mut Self {
        let flags = self.raw.flags.get() & !FLAG_CACHE_SYNC;
        self.flags(flags | u64::from(sync))
    }

    /// Sets the uuid of the device.
    pub fn uuid(&mut self, uuid: Uuid) -> &mut Self {
        self.raw.uuid = uuid.into_bytes();
        self
    }

    /// Sets `CACHE_REPLACEMENT`.
    pub fn replacement(&mut self, policy: Replacement) -> &mut Self {
        let mask = CACHE_REPLACEMENT_MASK << CACHE_REPLACEMENT_SHIFT;
        let flags = self.raw.flags.get() & !mask;
        self.flags(flags | u64::from(policy.to_raw()) << CACHE_REPLACEMENT_SHIFT)
    }

    /// Sets the uuid of the set.
    pub fn set_uuid(&mut self, set_uuid: Uuid) -> &mut Self {
        self.raw.set_uuid = set_uuid.into_bytes();
        self
    }

    /// Sets `BDEV_STATE`.
    pub fn state(&mut self, state: BackingState) -> &mut Self {
        let flags = self.raw.flags.get() & !(BDEV_STATE_MASK << BDEV_STATE_SHIFT);
        self.flags(flags | u64::from(state.to_raw()) << BDEV_STATE_SHIFT)
    }

    /// Sets the sequence number.
    pub fn seq(&mut self, seq: u64) -> &mut Self {
        self.raw.seq = seq.into();
        self
    }

    /// Names `count` journal buckets from the first bucket on, as the kernel lays them out.
    pub fn journal_buckets(&mut self, count: u16) -> &mut Self {
        let count = count.min(SB_JOURNAL_BUCKETS);
        let first = u64::from(self.raw.first_bucket.get());
        self.raw.keys = count.into();
        for (number, bucket) in (first..).zip(self.raw.d.iter_mut().take(count.into())) {
            *bucket = number.into();
        }
        self
    }

    /// Sets when the device was last registered.
    pub fn last_mount(&mut self, seconds: u32) -> &mut Self {
        self.raw.last_mount = seconds.into();
        self
    }
}
