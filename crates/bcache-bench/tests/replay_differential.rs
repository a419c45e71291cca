//! The model over bcache-core's allocator and over its plain transcription: the same requests, step by
//! step the same.
//!
//! `BCACHE_REPLAY_EVENTS` is how many requests are replayed in all.

use std::path::PathBuf;

use bcache_bench::trace::{LoadOptions, Source, Trace, load, open};
use bcache_core::allocator::testkit::{OpenBuckets, Reference};
use bcache_core::allocator::{AllocError, BtreeReserve, Mark, Policy, Reserve, Sizes};
use bcache_core::model::{Allocator, CacheModel, Config, Engine, Mode, PassFound, Refill, Space};
use bcache_core::units::{BucketIndex, Gen, Geometry, Sectors};

/// The reference engine, with what the model asks of an allocator.
struct Plain {
    engine: Reference,
    open: OpenBuckets,
    block_size: u64,
    bucket_size: u64,
    free_inc: u64,
}

fn at(bucket: BucketIndex) -> usize {
    usize::try_from(bucket.0).unwrap()
}

impl Plain {
    fn new(geometry: Geometry, policy: Policy, seed: u64) -> Self {
        let sizes = Sizes::new(&geometry, BtreeReserve::Clamped).unwrap();
        Self {
            engine: Reference::new(&geometry, policy, seed, true),
            open: OpenBuckets::default(),
            block_size: geometry.block_size().0,
            bucket_size: geometry.bucket_size().0,
            free_inc: sizes.free_inc as u64,
        }
    }
}

impl Engine for Plain {
    fn alloc_sectors(
        &mut self,
        inode: u16,
        sector: u64,
        sectors: u32,
        write_point: u32,
    ) -> Result<Option<Space>, AllocError> {
        let piece = self.open.alloc_sectors(
            &mut self.engine,
            u32::from(inode),
            sector,
            u64::from(sectors),
            write_point,
            false,
            self.block_size,
        );
        Ok(piece.map(|piece| Space {
            bucket: BucketIndex(piece.bucket as u64),
            bucket_gen: Gen(piece.bucket_gen),
            offset: u32::try_from(piece.sector - piece.bucket as u64 * self.bucket_size).unwrap(),
            sectors: u32::try_from(piece.sectors).unwrap(),
        }))
    }

    fn alloc_metadata(&mut self) -> Result<Option<BucketIndex>, AllocError> {
        let bucket = self.engine.bucket_alloc(Reserve::Btree);
        if let Some(bucket) = bucket {
            self.engine.buckets[bucket].pin -= 1;
        }
        Ok(bucket.map(|bucket| BucketIndex(bucket as u64)))
    }

    fn free(&mut self, bucket: BucketIndex) -> Result<(), AllocError> {
        self.engine.bucket_free(at(bucket));
        Ok(())
    }

    fn unpin(&mut self, bucket: BucketIndex) -> Result<(), AllocError> {
        self.engine.buckets[at(bucket)].pin -= 1;
        Ok(())
    }

    fn mark_dirty(&mut self, bucket: BucketIndex) -> Result<(), AllocError> {
        self.engine.buckets[at(bucket)].mark = Mark::Dirty;
        Ok(())
    }

    fn hit(&mut self, bucket: BucketIndex) -> Result<(), AllocError> {
        self.engine.buckets[at(bucket)].prio = 32768;
        Ok(())
    }

    fn bucket_gen(&self, bucket: BucketIndex) -> Option<Gen> {
        self.engine.buckets.get(at(bucket)).map(|bucket| Gen(bucket.bucket_gen))
    }

    fn rescale(&mut self, sectors: u32) -> bool {
        self.engine.rescale_priorities(sectors)
    }

    fn in_use_percent(&self) -> u8 {
        u8::try_from(self.in_use_buckets() * 100 / self.engine.buckets.len() as u64).unwrap()
    }

    fn in_use_buckets(&self) -> u64 {
        self.engine.buckets.len() as u64 - self.engine.avail_nbuckets
    }

    fn gc_start(&mut self) {
        self.engine.gc_start();
    }

    fn mark_key(
        &mut self,
        bucket: BucketIndex,
        ptr_gen: Gen,
        mark: Mark,
        sectors: u16,
    ) -> Result<(), AllocError> {
        self.engine.mark_key(at(bucket), ptr_gen, mark, sectors).expect("consistent marks");
        Ok(())
    }

    fn gc_finish(&mut self, metadata: &[BucketIndex]) -> Result<(), AllocError> {
        let marks: Vec<_> = metadata.iter().map(|bucket| (*bucket, Mark::Metadata)).collect();
        self.engine.gc_finish(&marks);
        Ok(())
    }

    fn initial_fill(&mut self) {
        self.engine.initial_fill();
    }

    fn free_inc_capacity(&self) -> u64 {
        self.free_inc
    }

    fn hand_out(&mut self) -> Refill {
        if self.engine.free_inc.items.is_empty() {
            return Refill::Empty;
        }
        if self.engine.push_one().is_some() { Refill::Pushed } else { Refill::Full }
    }

    fn needs_gc(&self) -> bool {
        self.engine.invalidate_needs_gc
    }

    fn invalidate(&mut self) -> PassFound {
        let before = self.engine.free_inc.items.len();
        self.engine.invalidate_buckets();
        let taken = || {
            self.engine
                .free_inc
                .items
                .iter()
                .skip(before)
                .map(|bucket| self.engine.buckets[*bucket])
        };
        PassFound {
            invalidated: taken().count() as u64,
            held_data: taken().filter(|bucket| bucket.sectors_used != 0).count() as u64,
            gc_gen_max: taken()
                .map(|bucket| bucket.bucket_gen.wrapping_sub(bucket.last_gc))
                .max()
                .unwrap_or(0),
        }
    }

    fn prio_write_begin(&mut self) -> Result<bool, AllocError> {
        let engine = &mut self.engine;
        let count = engine.prio_buckets.len();
        let ready = engine.reserve(Reserve::Prio).len() + engine.reserve(Reserve::None).len();
        if ready < count {
            return Ok(false);
        }
        for at in (0..count).rev() {
            let bucket = engine.bucket_alloc(Reserve::Prio).expect("counted before");
            engine.prio_buckets[at] = bucket;
            engine.buckets[bucket].pin -= 1;
        }
        Ok(true)
    }

    fn prio_write_end(&mut self) -> Result<(), AllocError> {
        let engine = &mut self.engine;
        for at in 0..engine.prio_buckets.len() {
            let old = std::mem::replace(&mut engine.prio_last_buckets[at], engine.prio_buckets[at]);
            if old != 0 {
                engine.bucket_free(old);
            }
        }
        Ok(())
    }

    fn make_ready_unsynced(&mut self) -> Result<(), AllocError> {
        Ok(())
    }

    fn prio_buckets(&self) -> u64 {
        self.engine.prio_buckets.len() as u64
    }

    fn gc_gens(&self) -> (u8, u64) {
        let distances = self.engine.buckets[self.engine.first..]
            .iter()
            .map(|bucket| bucket.bucket_gen.wrapping_sub(bucket.last_gc));
        distances.fold((0, 0), |(max, many), it| (max.max(it), many + u64::from(it >= 64)))
    }
}

fn trace() -> Trace {
    let path =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/fixtures/traces/dev-server.iolog.zst");
    let source = Source { paths: vec![PathBuf::from(path)], ..Source::default() };
    load(open(&source).unwrap(), &LoadOptions::default()).unwrap()
}

/// Every bucket of both.
fn assert_same_buckets(fast: &CacheModel<Allocator>, plain: &CacheModel<Plain>, when: &str) {
    let table = fast.engine().core().table();
    let buckets = plain.engine().engine.buckets.iter().enumerate();
    for (at, wanted) in buckets.skip(plain.engine().engine.first) {
        let is = table.bucket(BucketIndex(at as u64)).unwrap();
        let ours = (
            is.bucket_gen.0,
            is.last_gc.0,
            is.prio.0,
            is.mark,
            is.sectors_used,
            u32::from(is.pins),
        );
        let theirs = (
            wanted.bucket_gen,
            wanted.last_gc,
            wanted.prio,
            wanted.mark,
            wanted.sectors_used,
            wanted.pin,
        );
        assert_eq!(ours, theirs, "bucket {at} {when}");
    }
}

/// Replays the trace over and over, moved a little each time, until so many requests were made.
fn compare(trace: &Trace, config: Config, events: u64) {
    let geometry = config.geometry().unwrap();
    let fast =
        Allocator::with_btree_reserve(geometry, config.policy, config.seed, BtreeReserve::Clamped);
    let mut fast = CacheModel::with_engine(config, fast.unwrap()).unwrap();
    let plain = Plain::new(geometry, config.policy, config.seed);
    let mut plain = CacheModel::with_engine(config, plain).unwrap();
    let mut made = 0;
    for round in 0.. {
        for request in &trace.requests {
            let mut request = *request;
            request.sector += round * 40_000;
            request.time_ns += round * (trace.summary.duration_ns + 1_000_000);
            // A few tasks, so that several buckets are open.
            request.process = Some(u32::try_from(request.sector >> 20 & 7).unwrap());
            fast.request(&request).unwrap();
            plain.request(&request).unwrap();
            made += 1;
            if made < 64 {
                assert_same_buckets(&fast, &plain, &format!("after request {made} of {config:?}"));
            }
            assert_eq!(fast.counters(), plain.counters(), "request {made} of {config:?}");
            if made % 4096 == 0 {
                assert_same_buckets(&fast, &plain, &format!("after request {made} of {config:?}"));
            }
            if made == events {
                assert_same_buckets(&fast, &plain, "at the end");
                assert_eq!(fast.stats(), plain.stats());
                assert!(fast.stats().invalidations_of_data > 0, "{config:?}: nothing was evicted");
                return;
            }
        }
    }
}

#[test]
fn the_model_does_the_same_over_the_reference_engine() {
    let trace = trace();
    let events = std::env::var("BCACHE_REPLAY_EVENTS")
        .map_or(900_000, |text| text.parse().expect("a number of requests"));
    let mut cells = Vec::new();
    for policy in [Policy::Lru, Policy::Fifo, Policy::Random] {
        for (mode, cache_mib, bucket) in [
            (Mode::Writethrough, 160, 256),
            (Mode::Writeback, 288, 1024),
            (Mode::Writearound, 64, 64),
        ] {
            cells.push(Config {
                policy,
                mode,
                sequential_cutoff_bytes: if bucket == 256 { 4 << 20 } else { 0 },
                seed: 7,
                ..Config::new(Sectors(cache_mib << 11), Sectors(bucket))
            });
        }
    }
    let each = events / cells.len() as u64;
    for config in cells {
        compare(&trace, config, each);
    }
}
