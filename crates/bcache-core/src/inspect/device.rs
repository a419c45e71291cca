//! One device, read once: what it is and what it holds.

use std::collections::BTreeSet;
use std::collections::TryReserveError;

use uuid::Uuid;

use crate::cache_set::gone::{Look, Remains};
use crate::cache_set::reused::set_uuid_reused;
use crate::cache_set::{
    CacheDevice, CacheSet, NoVisitor, OpenError, ReadError, ReadOptions, SetRefusal, Visitor,
    read_superblock,
};
use crate::device::{DeviceError, ReadDevice, SuperblockArea};
use crate::inspect::backing::BackingDevices;
use crate::inspect::doubt::{Doubt, Watch};
use crate::layout::SetMagic;
use crate::layout::damage::restored;
use crate::layout::superblock::{Kind, Superblock};
use crate::layout::uuid_entry::UuidEntry;
use crate::layout::verdict::{Verdict, kernel_verdict};
use crate::units::Sectors;

/// Why nothing can be said of a device.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// Its superblock cannot be read.
    #[error("the superblock cannot be read")]
    Device(#[from] DeviceError),
    /// There is not enough memory for the table of buckets.
    #[error("no memory for a table of {nbuckets} buckets")]
    OutOfMemory {
        /// The number of buckets.
        nbuckets: u64,
        /// The allocator's answer.
        source: TryReserveError,
    },
}

/// What a device is, by what stands where bcache's superblock goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// A cache device.
    Cache,
    /// A backing device.
    Backing,
    /// bcache, of a version that no kernel knows.
    UnknownVersion,
    /// A superblock of bcache whose magic was overwritten, as `wipefs` does; the rest is whole, but for a
    /// bit perhaps.
    MagicWiped(Kind),
    /// A superblock of bcache that was damaged in one place, which its checksum tells.
    Damaged(Kind),
    /// A cache whose superblock was overwritten; the rest tells what it was.
    SuperblockGone,
    /// No bcache device.
    NotBcache,
}

/// What a device holds.
#[derive(Debug)]
pub enum Contents<'d> {
    /// No cache set: it is no cache device.
    None,
    /// A cache that was never registered.
    New,
    /// A cache set.
    Set(Box<SetContents<'d>>),
    /// A cache device whose set cannot be found.
    Unreadable(ReadError),
}

/// A cache set, and what is wrong with it.
#[derive(Debug)]
pub struct SetContents<'d> {
    /// The set.
    pub set: CacheSet<'d>,
    /// What the kernel would say instead of bringing it up.
    pub refusal: Option<SetRefusal>,
    /// The superblock lacks `CACHE_SYNC`, or says so with a bad checksum: the kernel would
    /// initialise the set, and everything in it would be lost.
    pub unsynced: bool,
}

/// A set under a superblock that is not its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OlderSet {
    /// Which one.
    pub(crate) set: SetMagic,
    /// Sector of an entry of its journal.
    pub at: Sectors,
}

impl OlderSet {
    /// Whether it is the set of this UUID.
    pub(crate) fn is(&self, set_uuid: &Uuid) -> bool {
        self.set == SetMagic::from_set_uuid(set_uuid)
    }
}

/// A device and what was read of it.
pub struct Device<'d> {
    /// The open device.
    pub handle: &'d dyn ReadDevice,
    /// What it is.
    pub identity: Identity,
    /// Its superblock; one that was damaged in one place, whose magic was wiped, or that is gone, as it
    /// was before. `None` where it has none, or cannot be told.
    pub superblock: Option<Superblock>,
    /// What stands where a superblock goes, if the device is long enough.
    pub as_found: Option<Superblock>,
    /// What the kernel says of that.
    pub verdict: Option<Verdict>,
    /// Sector of a journal entry of a cache set whose superblock is gone.
    pub remains_at: Option<Sectors>,
    /// A set under a superblock that is not its own, with data that may exist nowhere else.
    pub older_set: Option<OlderSet>,
    /// What it holds.
    pub contents: Contents<'d>,
    /// Where the last bucket ends, if the device is shorter than that.
    pub cut_off: Option<Sectors>,
    /// Why what was read may not be all.
    pub doubts: BTreeSet<Doubt>,
}

impl<'d> Device<'d> {
    /// Reads the superblock of `handle`, and of a cache device all of its metadata.
    pub fn read(
        handle: &'d dyn ReadDevice,
        options: &ReadOptions,
        visitor: &mut dyn Visitor,
    ) -> Result<Self, InspectError> {
        let mut device = Self::read_superblock(handle)?;
        device.read_set(options, visitor)?;
        Ok(device)
    }

    /// Reads the superblock alone: [`Self::contents`] is [`Contents::None`].
    pub fn read_superblock(handle: &'d dyn ReadDevice) -> Result<Self, InspectError> {
        let as_found = read_superblock(handle)?;
        let area = SuperblockArea::of(as_found.as_ref());
        let mut remains_at = None;
        let (identity, superblock) = match &area {
            SuperblockArea::Bcache(sb) => {
                let (identity, sb) = identity_of(sb);
                (identity, Some(sb))
            }
            SuperblockArea::MagicWiped(sb) => match sb.kind() {
                Some(kind) => (Identity::MagicWiped(kind), Some(sb.clone())),
                None => (Identity::NotBcache, None),
            },
            SuperblockArea::Blank | SuperblockArea::Unknown => {
                let restored = as_found.as_ref().and_then(restored);
                let restored = restored.and_then(|(_, sb)| Some((sb.kind()?, sb)));
                let remains =
                    if restored.is_none() { Remains::read(handle, Look::Everywhere) } else { None };
                remains_at = remains.as_ref().map(|it| it.at);
                match (restored, remains.and_then(|it| it.superblock)) {
                    (Some((kind, sb)), _) => (Identity::MagicWiped(kind), Some(sb)),
                    (None, Some(sb)) => (Identity::SuperblockGone, Some(sb)),
                    (None, None) => (Identity::NotBcache, None),
                }
            }
            SuperblockArea::TooShort | SuperblockArea::Bcachefs(_) => (Identity::NotBcache, None),
        };
        // What the kernel says is about what stands there, not about what can be made of it.
        let verdict = as_found.as_ref().map(|sb| kernel_verdict(sb, &handle.info().target()));
        let mut doubts = BTreeSet::new();
        match &superblock {
            None => _ = doubts.insert(Doubt::NoSuperblock),
            Some(sb) if !sb.csum_ok() => _ = doubts.insert(Doubt::Superblock),
            Some(_) => {}
        }
        Ok(Self {
            handle,
            identity,
            superblock,
            as_found,
            verdict,
            remains_at,
            older_set: None,
            contents: Contents::None,
            cut_off: None,
            doubts,
        })
    }

    /// Reads the set that `handle` has by `superblock`, which was found to be whole by it.
    pub(crate) fn read_remains(
        handle: &'d dyn ReadDevice,
        superblock: Superblock,
    ) -> Result<Self, InspectError> {
        let mut device = Self {
            handle,
            identity: Identity::SuperblockGone,
            superblock: Some(superblock),
            as_found: None,
            verdict: None,
            remains_at: None,
            older_set: None,
            contents: Contents::None,
            cut_off: None,
            doubts: BTreeSet::new(),
        };
        device.read_set(&ReadOptions::default(), &mut NoVisitor)?;
        Ok(device)
    }

    /// Whether it is a cache or a backing device, be its magic there or not.
    pub const fn kind(&self) -> Option<Kind> {
        match self.identity {
            Identity::Cache | Identity::SuperblockGone => Some(Kind::Cache),
            Identity::Backing => Some(Kind::Backing),
            Identity::MagicWiped(kind) | Identity::Damaged(kind) => Some(kind),
            Identity::UnknownVersion | Identity::NotBcache => None,
        }
    }

    /// Why it is neither a cache nor a backing device; `None` where it is one.
    pub fn no_bcache(&self) -> Option<OpenError> {
        match self.identity {
            _ if self.kind().is_some() => None,
            Identity::UnknownVersion => {
                let version = self.superblock.as_ref().map(Superblock::version).unwrap_or_default();
                Some(OpenError::UnknownVersion { version })
            }
            _ => Some(match self.remains_at {
                Some(at) => OpenError::Remains { at },
                None => OpenError::without_superblock(self.handle),
            }),
        }
    }

    /// Where the last bucket of a cache ends, if the device is shorter than that. Of a superblock
    /// whose checksum is wrong, its number of buckets may be what is wrong.
    pub(super) fn ends_before_its_buckets(&self) -> Option<Sectors> {
        let sb = self.superblock.as_ref()?;
        let vouched = self.kind() == Some(Kind::Cache) && sb.csum_ok();
        let needed = sb.geometry()?.size();
        (vouched && needed > self.handle.info().size()).then_some(needed)
    }

    /// The cache set, if there is one.
    pub fn set(&self) -> Option<&SetContents<'d>> {
        match &self.contents {
            Contents::Set(set) => Some(set),
            _ => None,
        }
    }

    /// Whether the kernel would register it with what is on it.
    pub fn registers(&self) -> bool {
        self.verdict.as_ref().is_some_and(Verdict::accepts)
            && match &self.contents {
                Contents::None | Contents::New => true,
                Contents::Set(set) => set.refusal.is_none() && !set.unsynced,
                Contents::Unreadable(_) => false,
            }
    }

    /// Gives a set whose superblock is gone the whole of its UUID, which its backing devices have, be they in
    /// the uuid table or not.
    pub fn complete_set_uuid(&mut self, backing: &mut BackingDevices) {
        let Contents::Set(contents) = &mut self.contents else { return };
        if self.identity != Identity::SuperblockGone {
            return;
        }
        let set = &mut contents.set;
        let set_uuid = backing.set_uuid(set.cache.magic());
        if let Some(set_uuid) = set_uuid {
            set.cache.name_set(set_uuid);
            self.superblock = Some(set.cache.superblock().clone());
        }
    }

    /// Whether the uuid table says for certain that the set has no backing device; those alone have the whole
    /// of its UUID. A table that was wiped is as empty as that of a set without volumes.
    pub(crate) fn has_flash_only_alone(&self) -> bool {
        let Some(set) = self.set().map(|it| &it.set) else { return false };
        let is_flash_only = |slot: u32| set.uuids.get(slot).is_some_and(UuidEntry::flash_only);
        let mut slots =
            set.uuids.used().map(|(slot, _)| slot).chain(set.volumes.keys().copied()).peekable();
        let is_known = slots.peek().is_some() && slots.all(is_flash_only);
        let is_in_doubt = |it| self.doubts.contains(it);
        is_known && ![Doubt::UuidTable, Doubt::UuidSlot].iter().any(is_in_doubt)
    }

    /// Reads all metadata of a cache device; of any other device there is none.
    pub fn read_set(
        &mut self,
        options: &ReadOptions,
        visitor: &mut dyn Visitor,
    ) -> Result<(), InspectError> {
        if self.kind() != Some(Kind::Cache) {
            return Ok(());
        }
        self.cut_off = self.ends_before_its_buckets();
        self.doubts.extend(self.cut_off.map(|_| Doubt::CutOff));
        let Some(sb) = &self.superblock else { return Ok(()) };
        let cache = match CacheDevice::with_superblock(
            self.handle,
            readable(sb, self.handle.info().size()),
        ) {
            Ok(cache) => cache,
            Err(error) => {
                self.doubts.insert(Doubt::Geometry);
                self.contents = Contents::Unreadable(error.into());
                return Ok(());
            }
        };
        if sb.csum_ok() && !sb.sync() && sb.njournal_buckets() == 0 {
            self.contents = Contents::New;
            if set_uuid_reused(sb, self.handle).is_ok_and(|warning| warning.is_none()) {
                return Ok(());
            }
            // What the old journal says may be worth more than the new superblock.
            self.doubts.insert(Doubt::OldJournal);
            return Ok(());
        }
        // Fewer journal buckets than there are hide the newest entries.
        let journal_default = cache.geometry().njournal_buckets_default();
        if !sb.csum_ok() && cache.superblock().njournal_buckets() < journal_default {
            self.doubts.insert(Doubt::Journal);
        }
        let unsynced = !sb.sync();
        let mut watch = Watch::new(visitor);
        let set = CacheSet::read(cache, &ReadOptions { ignore_sync: true, ..*options }, &mut watch);
        let (refusal, doubts) = (watch.refusal, watch.doubts);
        self.doubts.extend(doubts);
        self.contents = match set {
            Ok(set) => Contents::Set(Box::new(SetContents { set, refusal, unsynced })),
            Err(ReadError::OutOfMemory { nbuckets, source }) => {
                return Err(InspectError::OutOfMemory { nbuckets, source });
            }
            Err(error) => {
                self.doubts.insert(Doubt::NoJournal);
                Contents::Unreadable(error)
            }
        };
        Ok(())
    }
}

/// Takes the cache out of devices that were named in any order: the first that is one. None where a backing
/// device is among them and no cache; of devices that are neither, the first stands in its place.
pub fn take_cache<D: ReadDevice>(devices: &mut Vec<D>) -> Option<D> {
    let kind = |device: &D| Device::read_superblock(device).ok().and_then(|it| it.kind());
    let kinds: Vec<Option<Kind>> = devices.iter().map(kind).collect();
    let cache = kinds.iter().position(|kind| *kind == Some(Kind::Cache));
    let first = (!devices.is_empty() && !kinds.contains(&Some(Kind::Backing))).then_some(0);
    cache.or(first).map(|index| devices.remove(index))
}

/// What a superblock with its magic in place says that the device is, and the superblock that says so.
fn identity_of(found: &Superblock) -> (Identity, Superblock) {
    if let Some((_, restored)) = restored(found) {
        if let Some(kind) = restored.kind() {
            return (Identity::Damaged(kind), restored);
        }
    }
    let identity = match found.kind() {
        Some(Kind::Cache) => Identity::Cache,
        Some(Kind::Backing) => Identity::Backing,
        None => Identity::UnknownVersion,
    };
    (identity, found.clone())
}

/// The superblock with which the set is read. Of one with a wrong checksum, the number of buckets is at
/// most what a device of `size` has room for. A journal that it does not name is looked for where every
/// kernel puts it.
fn readable(sb: &Superblock, size: Sectors) -> Superblock {
    let mut sb = sb.clone();
    if sb.csum_ok() {
        return sb;
    }
    if let Some(geometry) = sb.geometry().filter(|it| it.size() > size) {
        let room = size.0 / geometry.bucket_size().0.max(1);
        sb.edit(|edit| _ = edit.nbuckets(room));
    }
    if let Some(geometry) = sb.geometry().filter(|_| sb.njournal_buckets() == 0) {
        sb.edit(|edit| _ = edit.journal_buckets(geometry.njournal_buckets_default()));
    }
    sb
}

impl std::fmt::Debug for Device<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Device")
            .field("path", &self.handle.info().path)
            .field("identity", &self.identity)
            .field("doubts", &self.doubts)
            .finish_non_exhaustive()
    }
}
