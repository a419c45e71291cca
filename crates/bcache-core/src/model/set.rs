//! Requests: what bypasses the cache, what is looked up, kept, dropped (request.c).

use rustc_hash::FxHashMap;

use crate::allocator::AllocError;
use crate::units::Sectors;

use super::cache::{Cache, is_stale};
use super::config::{Config, ConfigError, Mode, ReadaheadPolicy};
use super::engine::{Allocator, Engine};
use super::index::{ExtentIndex, Placed};
use super::request::{Flags, Op, Request};
use super::sequential::{Streams, Tasks};
use super::stats::{BypassReason, Stats, SysfsPeriod};
use super::writeback::{Due, Facts, Writeback};

/// `CUTOFF_CACHE_ADD`: above, everything bypasses.
const CUTOFF_CACHE_ADD: u8 = 95;
/// `CUTOFF_WRITEBACK_SYNC`: above, no write is kept dirty.
const CUTOFF_WRITEBACK_SYNC: u8 = 70;
/// `CUTOFF_WRITEBACK`: above, only writes that somebody waits for are.
const CUTOFF_WRITEBACK: u8 = 40;
/// Most sectors that a miss puts into the cache: 1 MiB.
const PROMOTION_SECTORS_MAX: u64 = 2048;

/// A cache set in memory: one cache, and as many backing devices as its requests name.
///
/// See the [module's page](super) for what is modelled.
pub struct CacheModel<E = Allocator> {
    config: Config,
    cache: Cache<E>,
    streams: FxHashMap<u16, Streams>,
    tasks: Tasks,
    writeback: Writeback,
    dirty_sectors: u64,
    /// When the last request can have been done at the earliest.
    served_ns: u64,
    sysfs_period: SysfsPeriod,
}

/// A request takes at least so long.
const SERVICE_NS: u64 = 200_000;
/// And so long a sector: 1 GiB/s.
const SECTOR_NS: u64 = 500;

impl CacheModel<Allocator> {
    /// An empty cache set.
    ///
    /// # Errors
    /// [`ConfigError`] when no kernel would run it.
    pub fn new(config: Config) -> Result<Self, ConfigError> {
        let geometry = config.geometry()?;
        let allocator = Allocator::new(geometry, config.policy, config.seed);
        Self::with_engine(config, allocator.map_err(ConfigError::Allocator)?)
    }
}

impl<E: Engine> CacheModel<E> {
    /// The same with an allocator of another kind, for an empty cache of the same shape.
    ///
    /// # Errors
    /// [`ConfigError`] when no kernel would run it.
    pub fn with_engine(config: Config, engine: E) -> Result<Self, ConfigError> {
        let geometry = config.geometry()?;
        Ok(Self {
            config,
            cache: Cache::new(engine, geometry, config.chain_ns).map_err(ConfigError::Allocator)?,
            streams: FxHashMap::default(),
            tasks: Tasks::default(),
            writeback: Writeback::default(),
            dirty_sectors: 0,
            served_ns: 0,
            sysfs_period: SysfsPeriod::default(),
        })
    }

    /// How it is set up.
    pub const fn config(&self) -> &Config {
        &self.config
    }

    /// Its allocator, to look at.
    pub const fn engine(&self) -> &E {
        &self.cache.engine
    }

    /// What is cached.
    pub const fn index(&self) -> &ExtentIndex {
        &self.cache.index
    }

    /// What it did so far.
    pub fn stats(&self) -> Stats {
        let (gc_gen_max, gc_gen_64) = self.cache.engine.gc_gens();
        let mut stats = self.cache.stats;
        stats.gc_gen_max = stats.gc_gen_max.max(gc_gen_max);
        stats.gc_gen_64 = gc_gen_64;
        stats.dirty_sectors = self.dirty_sectors;
        let mut period = self.sysfs_period;
        period.end(&mut stats);
        stats
    }

    /// The counters alone, without a look at all buckets.
    pub const fn counters(&self) -> &Stats {
        &self.cache.stats
    }

    /// Makes a request. Those of a trace come in the order of their times.
    ///
    /// # Errors
    /// When the allocator contradicts itself, which would be a bug.
    pub fn request(&mut self, request: &Request) -> Result<(), AllocError> {
        if request.sectors == 0 {
            return Ok(());
        }
        if self.config.mode == Mode::Writeback && self.config.writeback_running {
            self.write_back_until(request.time_ns)?;
            self.writeback.note_request(request.time_ns);
        }
        self.sysfs_period.advance(request.time_ns, &mut self.cache.stats);
        // Data goes into the cache no faster than it comes, whatever the times of a trace say.
        let now_ns = request.time_ns.max(self.served_ns);
        self.served_ns = now_ns.saturating_add(SERVICE_NS + u64::from(request.sectors) * SECTOR_NS);
        self.cache.advance(now_ns)?;
        let bypass = self.bypass(request);
        let sectors = u64::from(request.sectors);
        let stats = &mut self.cache.stats;
        if let Some(reason) = bypass {
            let by = match request.op {
                Op::Read => &mut stats.bypassed_reads,
                Op::Write | Op::Discard => &mut stats.bypassed_writes,
            };
            by.by_mut(reason).add(sectors);
        } else if self.cache.engine.rescale(request.sectors) {
            self.cache.stats.rescalings += 1;
        }
        match request.op {
            Op::Read => self.read(request, bypass.is_some())?,
            Op::Write => self.write(request, bypass.is_some())?,
            Op::Discard => {
                self.cache.stats.discards.add(sectors);
                self.drop_range(request.device, request.sector, request.sectors);
            }
        }
        self.cache.grow_btree()
    }

    /// Which rule sends a request past the cache (`check_should_bypass`).
    fn bypass(&mut self, request: &Request) -> Option<BypassReason> {
        let config = &self.config;
        if self.cache.engine.in_use_percent() > CUTOFF_CACHE_ADD {
            return Some(BypassReason::CacheFull);
        }
        if request.op == Op::Discard {
            return Some(BypassReason::Discard);
        }
        let is_write = request.op == Op::Write;
        if config.mode == Mode::None || (config.mode == Mode::Writearound && is_write) {
            return Some(BypassReason::Mode);
        }
        if config.readahead == ReadaheadPolicy::MetaOnly
            && request.flags.contains(Flags::READAHEAD)
            && !request.flags.intersects(Flags::META.with(Flags::PRIO))
        {
            return Some(BypassReason::Readahead);
        }
        let block = config.block_size.0.saturating_sub(1);
        if (request.sector | u64::from(request.sectors)) & block != 0 {
            return Some(BypassReason::Unaligned);
        }
        if config.sequential_cutoff_bytes == 0 {
            return None;
        }
        let streams = self.streams.entry(request.device).or_default();
        let task = self.tasks.of(request.process);
        let bytes = request.sectors.saturating_mul(512);
        let streamed = streams.account(task, request.time_ns, request.sector, bytes);
        (u64::from(streamed >> 9) >= config.sequential_cutoff_bytes >> 9)
            .then_some(BypassReason::Sequential)
    }

    fn read(&mut self, request: &Request, bypass: bool) -> Result<(), AllocError> {
        let Cache { engine, index, .. } = &mut self.cache;
        let (mut hit_sectors, mut gap) = (0, None::<(u64, u64)>);
        let mut found = FoundBuckets::default();
        let mut at = request.sector;
        let stale = |extent: &_| is_stale(engine, extent);
        index.lookup(request.device, request.sector, request.sectors, stale, |sectors, extent| {
            if let Some(extent) = extent {
                hit_sectors += sectors;
                found.add(extent.bucket());
            } else if let Some((first, length)) = &mut gap {
                // The first gap goes on in the next chunk.
                if *first + *length == at {
                    *length += sectors;
                }
            } else {
                gap = Some((at, sectors));
            }
            at += sectors;
        });
        for bucket in found.iter() {
            engine.hit(bucket)?;
        }
        let sectors = u64::from(request.sectors);
        let stats = &mut self.cache.stats;
        stats.reads.add(sectors);
        stats.read_hit_sectors += hit_sectors;
        stats.backing_read_sectors += sectors - hit_sectors;
        let whole = hit_sectors == sectors;
        *match (whole, bypass) {
            (true, false) => &mut stats.cache_hits,
            (false, false) => &mut stats.cache_misses,
            (true, true) => &mut stats.cache_bypass_hits,
            (false, true) => &mut stats.cache_bypass_misses,
        } += 1;
        stats.partial_hits += u64::from(!whole && hit_sectors > 0);
        let Some((first, length)) = gap.filter(|_| !bypass) else { return Ok(()) };
        let length = u32::try_from(length.min(PROMOTION_SECTORS_MAX)).unwrap_or(u32::MAX);
        let placed = self.insert(request, first, length, false)?;
        self.cache.stats.promoted_sectors += u64::from(placed);
        Ok(())
    }

    fn write(&mut self, request: &Request, bypass: bool) -> Result<(), AllocError> {
        let sectors = u64::from(request.sectors);
        self.cache.stats.writes.add(sectors);
        let writeback = self.should_write_back(request, bypass);
        if !writeback {
            self.cache.stats.backing_write_sectors += sectors;
        }
        if bypass {
            self.drop_range(request.device, request.sector, request.sectors);
            return Ok(());
        }
        let placed = self.insert(request, request.sector, request.sectors, writeback)?;
        self.cache.stats.written_sectors += u64::from(placed);
        if placed < request.sectors {
            let rest = request.sectors - placed;
            // What the cache has of it is old now.
            self.drop_range(request.device, request.sector + u64::from(placed), rest);
            if writeback {
                self.cache.stats.backing_write_sectors += u64::from(rest);
            }
        }
        Ok(())
    }

    /// Whether a write is kept dirty (`should_writeback`).
    fn should_write_back(&self, request: &Request, bypass: bool) -> bool {
        let in_use = self.cache.engine.in_use_percent();
        self.config.mode == Mode::Writeback
            && in_use <= CUTOFF_WRITEBACK_SYNC
            && !bypass
            && (request.flags.intersects(Flags::SYNC.with(Flags::META).with(Flags::PRIO))
                || in_use <= CUTOFF_WRITEBACK)
    }

    /// Puts a range into the cache, as much as buckets are ready for; how many sectors that was.
    fn insert(
        &mut self,
        request: &Request,
        first: u64,
        sectors: u32,
        dirty: bool,
    ) -> Result<u32, AllocError> {
        self.cache.before_insertion(sectors)?;
        let inode = request.device;
        // One task stands for all whose task is unknown.
        let write_point = request.process.unwrap_or(u32::MAX);
        let mut done = 0;
        while done < sectors {
            let at = first + u64::from(done);
            let mut space = self.cache.alloc_sectors(inode, at, sectors - done, write_point)?;
            if space.is_none() && dirty {
                self.cache.wait_for_chain()?;
                space = self.cache.alloc_sectors(inode, at, sectors - done, write_point)?;
            }
            if space.is_none() && dirty {
                self.make_room()?;
                space = self.cache.alloc_sectors(inode, at, sectors - done, write_point)?;
            }
            let Some(space) = space else { break };
            if dirty {
                self.cache.engine.mark_dirty(space.bucket)?;
                ExtentIndex::chunk_ids(inode, at, space.sectors)
                    .for_each(|chunk| self.writeback.add(chunk));
                self.dirty_sectors += u64::from(space.sectors);
            }
            let placed = Placed {
                bucket: space.bucket,
                bucket_gen: space.bucket_gen,
                offset: space.offset,
                dirty,
            };
            let replaced = self.cache.index.insert(inode, at, space.sectors, &placed);
            self.dirty_sectors = self.dirty_sectors.saturating_sub(replaced);
            self.cache.engine.unpin(space.bucket)?;
            done += space.sectors;
        }
        let stats = &mut self.cache.stats;
        stats.unplaced_sectors += u64::from(sectors - done);
        stats.dirty_sectors_max = stats.dirty_sectors_max.max(self.dirty_sectors);
        Ok(done)
    }

    fn drop_range(&mut self, inode: u16, sector: u64, sectors: u32) {
        let dropped = self.cache.index.remove(inode, sector, sectors);
        self.dirty_sectors = self.dirty_sectors.saturating_sub(dropped);
    }

    /// A dirty write waits for a bucket until writeback and a GC have freed one.
    fn make_room(&mut self) -> Result<(), AllocError> {
        self.cache.collect()?;
        self.cache.run_thread()?;
        self.cache.wait_for_chain()?;
        let bucket = self.cache.geometry().bucket_size().0;
        self.write_back(bucket.saturating_mul(8))?;
        self.cache.collect()?;
        self.cache.run_thread()?;
        self.cache.wait_for_chain()
    }

    fn facts(&self) -> Facts {
        let geometry = self.cache.geometry();
        Facts {
            dirty_sectors: self.dirty_sectors,
            cache_sectors: geometry.size().0,
            bucket_sectors: geometry.bucket_size().0,
            in_use_percent: self.cache.engine.in_use_percent(),
            in_use_buckets: self.cache.engine.in_use_buckets(),
            writeback_percent: self.config.writeback_percent,
        }
    }

    /// Background writeback up to a moment.
    fn write_back_until(&mut self, now_ns: u64) -> Result<(), AllocError> {
        while let Due::Sectors(sectors) = self.writeback.step(now_ns, &self.facts()) {
            self.write_back(sectors)?;
        }
        Ok(())
    }

    /// Writes back up to so many sectors, in the order of the index.
    fn write_back(&mut self, sectors: u64) -> Result<(), AllocError> {
        let mut left = sectors;
        while left > 0 {
            let Some(chunk) = self.writeback.next_chunk(self.config.writeback_delay_seconds) else {
                break;
            };
            let (cleaned, more) = self.cache.index.clean_chunk(chunk, left);
            if !more {
                self.writeback.forget(chunk);
            }
            left = left.saturating_sub(cleaned);
            self.dirty_sectors = self.dirty_sectors.saturating_sub(cleaned);
            self.cache.stats.writeback_sectors += cleaned;
            self.cache.stats.backing_write_sectors += cleaned;
        }
        // Everything bypasses, and nothing is left to wait for: only a GC shows what is free.
        if self.dirty_sectors == 0 && self.cache.engine.in_use_percent() > CUTOFF_CACHE_ADD {
            self.cache.collect()?;
        }
        Ok(())
    }

    /// Size of the cache.
    pub fn cache_size(&self) -> Sectors {
        self.cache.geometry().size()
    }
}

/// The buckets that a lookup found, in order, one after the other only once.
#[derive(Default)]
struct FoundBuckets {
    few: [u64; 8],
    count: usize,
    more: Vec<u64>,
    last: Option<u64>,
}

impl FoundBuckets {
    fn add(&mut self, bucket: crate::units::BucketIndex) {
        if self.last == Some(bucket.0) {
            return;
        }
        self.last = Some(bucket.0);
        if let Some(place) = self.few.get_mut(self.count) {
            *place = bucket.0;
            self.count += 1;
        } else {
            self.more.push(bucket.0);
        }
    }

    fn iter(&self) -> impl Iterator<Item = crate::units::BucketIndex> + '_ {
        self.few.iter().take(self.count).chain(&self.more).map(|at| crate::units::BucketIndex(*at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A write of eight buckets, of which a cache this small has one ready and three in `free_inc`.
    fn unplaced(chain_ns: u64, mode: Mode) -> u64 {
        let config = Config {
            mode,
            chain_ns,
            sequential_cutoff_bytes: 0,
            ..Config::new(Sectors(600 * 256), Sectors(256))
        };
        let mut cache = CacheModel::new(config).unwrap();
        let flags = Flags::SYNC;
        let write = Request { sectors: 2048, op: Op::Write, flags, ..Request::default() };
        for at in 0..20 {
            let time_ns = at * 1_000_000_000;
            cache.request(&Request { sector: at * 2048, time_ns, ..write }).unwrap();
        }
        cache.stats().unplaced_sectors
    }

    #[test]
    fn only_dirty_writes_wait_for_a_chain() {
        assert_eq!(unplaced(0, Mode::Writethrough), 0);
        let late = unplaced(1_000_000, Mode::Writethrough);
        // Half of each write, more or less.
        assert!((20 * 2048 / 4..20 * 2048 * 3 / 4).contains(&late), "{late}");
        assert_eq!(unplaced(1_000_000, Mode::Writeback), 0);
    }

    #[test]
    fn a_chain_is_done_when_its_time_has_passed() {
        let config =
            Config { chain_ns: 10_000_000, ..Config::new(Sectors(600 * 256), Sectors(256)) };
        let kept = |apart_ns: u64| {
            let mut cache = CacheModel::new(config).unwrap();
            for at in 0..100 {
                let (sector, time_ns) = (at * 1024, at * apart_ns);
                let read = Request { sector, sectors: 256, time_ns, ..Request::default() };
                cache.request(&read).unwrap();
            }
            cache.stats().promoted_sectors / 256
        };
        assert_eq!(kept(10_000_000), 100);
        assert!(kept(2_000_000) < 80, "{}", kept(2_000_000));
        // Requests of one moment are made one after the other.
        assert!(kept(0) > 5, "{}", kept(0));
    }
}
