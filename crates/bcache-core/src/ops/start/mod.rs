//! Bringing caches into use, and what a running cache writes from then on.
//!
//! [`RunningSet::start`] takes freshly formatted caches, as the kernel does at their first registration
//! (docs/on-disk-format.md §7, `run_cache_set` without `CACHE_SYNC`). [`RunningSet::open`] takes those
//! that have been in use, and writes nothing itself: only step 3 concerns them.
//!
//! Order of the writes, and what a power cut leaves:
//!
//! 1. an empty uuid table, an empty btree root, a chain of prio sets; a flush; the first journal
//!    entry, which names them; a flush. The superblock still says that nothing here is valid
//!    (`CACHE_SYNC` clear): a formatted cache, as before.
//! 2. the superblock with `CACHE_SYNC` and the journal's buckets; a flush. From now on a set.
//! 3. while the allocator thread runs, chains of prio sets and journal entries by [`CacheIo`], in the
//!    order that [`AllocatorThread`](crate::allocator::AllocatorThread) keeps: at each moment the newest
//!    durable entry names a whole chain, whose gens are those of every bucket handed out so far.
//!
//! Whoever runs the set keeps its keys where it likes; on the device the btree stays as it is. To the
//! kernel, a bucket that the set hands out holds nothing.

mod behind;
mod error;
mod in_use;
mod io;
mod journal;

use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use crate::allocator::{Config, Mark, Policy, Reserve, SetAllocator, WriteError, write_prios};
use crate::device::{AlignedBuf, BlockDevice, DeviceError};
use crate::layout::SetMagic;
use crate::layout::bkey::{Bkey, Pos, Ptr};
use crate::layout::bset;
use crate::layout::superblock::{SB_OFFSET_BYTES, Superblock, VERSION_CDEV_WITH_UUID};
use crate::units::{BucketIndex, Geometry, SECTOR_BYTES};

use journal::JournalWriter;

pub use error::{CacheIoError, InUseError, StartError};
pub use io::CacheIo;

/// A formatted cache device that is to be part of a running set.
#[derive(Clone)]
pub struct Member {
    /// The device, claimed for writing.
    pub device: Arc<dyn BlockDevice>,
    /// Its superblock, as `make` left it: without `CACHE_SYNC`.
    pub superblock: Superblock,
}

/// One cache of a running set.
pub struct RunningCache {
    device: Arc<dyn BlockDevice>,
    superblock: Superblock,
    geometry: Geometry,
    magic: SetMagic,
    journal: Mutex<JournalWriter>,
}

/// Caches in use, and their allocator.
pub struct RunningSet {
    allocator: Arc<SetAllocator>,
    caches: Vec<Arc<RunningCache>>,
    /// Buckets of the metadata that was written at the start.
    metadata: Vec<(u16, BucketIndex)>,
}

/// How a formatted cache allocates: what its superblock says.
pub(crate) fn config_of(superblock: &Superblock) -> Option<Config> {
    let geometry = superblock.geometry()?;
    let policy = Policy::from(superblock.replacement()?);
    Some(Config { policy, discard: superblock.discard(), ..Config::new(geometry) })
}

impl RunningSet {
    /// Makes every member a set of its own on its device, with one allocator over all of them.
    ///
    /// `change` may alter how each cache allocates, its geometry aside; of a seed that it gives, each
    /// cache has its own. `node_seq` gives a random
    /// number for each btree root, which tells its sets from what the bucket held before.
    ///
    /// No thread refills the reserves yet: see [`io`](Self::io).
    pub fn start(
        members: Vec<Member>,
        change: impl Fn(&mut Config),
        node_seq: &mut dyn FnMut() -> u64,
    ) -> Result<Self, StartError> {
        let mut configs = Vec::with_capacity(members.len());
        let mut metadata = Vec::new();
        for (device, member) in members.iter().enumerate() {
            let fresh = config_of(&member.superblock).filter(|_| !member.superblock.sync());
            let mut config = fresh.ok_or(StartError::NotFresh { device })?;
            change(&mut config);
            // Caches that take the same buckets in the same order would fill up in step.
            config.seed = config.seed.map(|seed| seed.wrapping_add(device as u64));
            let first = config.geometry.first_bucket().0;
            let journal = first..first + u64::from(config.geometry.njournal_buckets_default());
            let number = u16::try_from(device).unwrap_or(u16::MAX);
            metadata.extend(journal.map(|bucket| (number, BucketIndex(bucket))));
            configs.push(config);
        }
        let allocator = Arc::new(SetAllocator::new(&configs)?);
        let mut set = Self { allocator, caches: Vec::new(), metadata };
        // As after a GC that has found no key: everything but the journal may be allocated.
        set.allocator.gc_finish(&set.metadata_marks())?;
        for (device, member) in members.into_iter().enumerate() {
            let cache = set.start_cache(device, member, node_seq())?;
            set.caches.push(Arc::new(cache));
        }
        for device in 0..set.caches.len() {
            set.write_prios(device).map_err(|source| StartError::Prios { device, source })?;
        }
        set.caches.iter().try_for_each(|cache| cache.write_superblock())?;
        Ok(set)
    }

    /// Steps 1 up to the prio sets, for one cache.
    fn start_cache(
        &mut self,
        device: usize,
        member: Member,
        node_seq: u64,
    ) -> Result<RunningCache, StartError> {
        let Member { device: block_device, mut superblock } = member;
        let geometry = superblock.geometry().ok_or(StartError::NotFresh { device })?;
        let number = u16::try_from(device).unwrap_or(u16::MAX);
        let shared = Arc::clone(self.allocator.cache(number)?);
        shared.refiller()?.initial_fill();
        let mut allocate = || -> Result<Ptr, StartError> {
            let bucket = shared.bucket_alloc(Reserve::Btree, false)?;
            let table = shared.core().table();
            // From here on it is kept by its mark.
            table.unpin(bucket)?;
            self.metadata.push((number, bucket));
            // On its own device each cache is the only one of its set.
            Ok(Ptr::new(table.bucket_gen(bucket)?, geometry.bucket_to_sector(bucket), 0))
        };
        let (uuid_ptr, root_ptr) = (allocate()?, allocate()?);
        let magic = superblock.set_magic();

        let uuid_bytes = geometry.meta_bucket_bytes();
        let table = AlignedBuf::zeroed(usize::try_from(uuid_bytes).unwrap_or(0));
        block_device.write_at(uuid_ptr.offset().bytes(), &table)?;

        // One block: what the bucket held before cannot carry this number, so the node ends there.
        let node = bset::encode(magic, root_ptr, node_seq.max(1), &[]);
        let block_bytes = usize::try_from(geometry.block_bytes()).unwrap_or(0);
        let block = AlignedBuf::padded(&node, block_bytes);
        block_device.write_at(root_ptr.offset().bytes(), &block)?;

        let sectors = |sectors: u64| u16::try_from(sectors).unwrap_or(u16::MAX);
        let uuid_bucket =
            Bkey::new(0, 0, sectors(uuid_bytes / SECTOR_BYTES)).with_ptrs(&[uuid_ptr]);
        let node_size = sectors(geometry.btree_node_size().0);
        let btree_root =
            Bkey::new(Pos::MAX.inode, Pos::MAX.offset, node_size).with_ptrs(&[root_ptr]);

        let njournal = geometry.njournal_buckets_default();
        let version = superblock.version().max(VERSION_CDEV_WITH_UUID);
        let seq = superblock.seq().saturating_add(1);
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        // 32 bits on the device: they wrap in 2106, as the kernel's.
        let last_mount = u32::try_from(now.as_secs() & u64::from(u32::MAX)).unwrap_or(0);
        superblock.edit(|sb| {
            sb.version(version).sync(true).journal_buckets(njournal);
            sb.seq(seq).last_mount(last_mount);
        });
        Ok(RunningCache {
            device: block_device,
            geometry,
            magic,
            journal: Mutex::new(JournalWriter::new(
                &geometry,
                magic,
                njournal,
                uuid_bucket,
                btree_root,
            )),
            superblock,
        })
    }

    /// The allocator over all caches.
    pub fn allocator(&self) -> &Arc<SetAllocator> {
        &self.allocator
    }

    /// The caches, in the order of the members.
    pub fn caches(&self) -> &[Arc<RunningCache>] {
        &self.caches
    }

    /// What the end of a GC marks besides the keys' buckets, of caches that were formatted: journals,
    /// uuid tables, btree roots. What a set in use holds, its allocator marks by itself.
    pub fn metadata_marks(&self) -> Vec<(u16, BucketIndex, Mark)> {
        self.metadata.iter().map(|&(device, bucket)| (device, bucket, Mark::Metadata)).collect()
    }

    /// What the allocator thread of a cache writes through; `wake_gc` is called whenever only a GC
    /// can help. `None` where there is no such cache.
    pub fn io(&self, device: usize, wake_gc: Arc<dyn Fn() + Send + Sync>) -> Option<CacheIo> {
        self.caches.get(device).map(|cache| CacheIo::new(Arc::clone(cache), wake_gc))
    }

    /// Writes the prios and gens of a cache as they are now: fails while its thread runs.
    pub fn write_prios(&self, device: usize) -> Result<(), WriteError<CacheIoError>> {
        let cache = u16::try_from(device).ok().and_then(|number| self.allocator.cache(number).ok());
        match (cache, self.io(device, Arc::new(|| ()))) {
            (Some(cache), Some(mut io)) => {
                let refiller = cache.refiller().map_err(|_| WriteError::RefillerTaken)?;
                write_prios(&refiller, &mut io)
            }
            _ => Ok(()),
        }
    }
}

impl RunningCache {
    /// The device.
    pub fn device(&self) -> &Arc<dyn BlockDevice> {
        &self.device
    }

    /// The superblock, as it is on the device now.
    pub fn superblock(&self) -> &Superblock {
        &self.superblock
    }

    /// The geometry.
    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    fn write_superblock(&self) -> Result<(), DeviceError> {
        let bytes = AlignedBuf::copy_of(self.superblock.as_bytes());
        self.device.write_at(SB_OFFSET_BYTES, &bytes)?;
        self.device.flush()
    }
}
