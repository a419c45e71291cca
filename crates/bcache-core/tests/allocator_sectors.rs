//! The sector allocator over a source of buckets that counts.
#![cfg(not(feature = "model"))]

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, Weak};

use bcache_core::allocator::{
    AllocError, BucketSource, Reserve, SectorAllocator, SectorRequest, SetPointer, TableError,
};
use bcache_core::units::{BucketIndex, Gen, Geometry, Sectors};

/// Sectors of a bucket.
const BUCKET: u64 = 1024;

fn geometry() -> Geometry {
    Geometry::new(1 << 20, 1, Sectors(BUCKET), Sectors(8)).unwrap()
}

type Sectored = SectorAllocator<Arc<Source>>;

/// Buckets without end, in turn on each of some devices.
#[derive(Default)]
struct Source {
    devices: u16,
    next: AtomicU64,
    pins: Mutex<BTreeMap<u64, i64>>,
    /// More pins than these are refused.
    pins_max: Option<i64>,
    failed: Mutex<HashSet<u16>>,
    /// What the first allocation does before it gives a bucket.
    in_first: OnceLock<Box<dyn Fn() + Send + Sync>>,
}

impl Source {
    fn new() -> Arc<Self> {
        Arc::new(Self { devices: 1, ..Self::default() })
    }

    fn allocated(&self) -> u64 {
        self.next.load(Ordering::SeqCst)
    }

    /// Pins of all buckets together.
    fn pins(&self) -> i64 {
        self.pins.lock().unwrap().values().sum()
    }

    fn pins_of(&self, pointer: &SetPointer) -> i64 {
        self.pins.lock().unwrap().get(&pointer.bucket.0).copied().unwrap_or(0)
    }
}

impl BucketSource for Source {
    fn alloc(&self, _: Reserve, _: bool) -> Result<SetPointer, AllocError> {
        let number = self.next.fetch_add(1, Ordering::SeqCst);
        if number == 0 {
            if let Some(first) = self.in_first.get() {
                first();
            }
        }
        let failed = self.failed.lock().unwrap();
        let healthy: Vec<_> = (0..self.devices).filter(|it| !failed.contains(it)).collect();
        let turn = usize::try_from(number).unwrap() % healthy.len().max(1);
        let device = *healthy.get(turn).ok_or(AllocError::Failed)?;
        *self.pins.lock().unwrap().entry(number + 1).or_default() += 1;
        Ok(SetPointer { device, bucket: BucketIndex(number + 1), bucket_gen: Gen(1) })
    }

    fn pin(&self, pointer: &SetPointer) -> Result<(), AllocError> {
        if self.failed.lock().unwrap().contains(&pointer.device) {
            return Err(AllocError::Failed);
        }
        let mut pins = self.pins.lock().unwrap();
        let pins = pins.get_mut(&pointer.bucket.0).expect("a bucket from here");
        if self.pins_max == Some(*pins) {
            return Err(TableError::PinOverflow { bucket: pointer.bucket }.into());
        }
        *pins += 1;
        Ok(())
    }

    fn unpin(&self, pointer: &SetPointer) -> Result<(), AllocError> {
        let mut pins = self.pins.lock().unwrap();
        let pins = pins.get_mut(&pointer.bucket.0).expect("a bucket from here");
        assert!(*pins > 0, "{pointer:?} is not pinned");
        *pins -= 1;
        Ok(())
    }
}

fn request(stream: u32, offset: u64, sectors: u32) -> SectorRequest {
    SectorRequest {
        inode: stream % 64,
        offset,
        sectors,
        write_point: stream,
        moving_gc: false,
        wait: false,
    }
}

/// Writes 60,000 times 64 sectors to some streams, each of which stays with one writer; buckets that
/// were allocated, and that the data needs.
fn buckets_used(writers: usize, streams: u32, streams_end: bool) -> (u64, u64) {
    let source = Source::new();
    let sectors = SectorAllocator::new(Arc::clone(&source), &geometry(), writers);
    let mut at = vec![0u64; usize::try_from(streams).unwrap()];
    let mut points: Vec<u32> = (0..streams).collect();
    let (mut random, mut total) = (88_172_645_463_325_252u64, 0);
    for write in 0..60_000u32 {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        let stream = usize::try_from(random % u64::from(streams)).unwrap();
        if streams_end && write % 40 == 0 {
            // A stream ends, and another task begins one elsewhere.
            at[stream] = u64::from(write) * 1_000_000;
            points[stream] = 1000 + write;
        }
        let mut left = 64;
        while left > 0 {
            let inode = u32::try_from(stream).unwrap() % 64;
            let write_point = points[stream];
            let request = SectorRequest { inode, write_point, ..request(0, at[stream], left) };
            let got = sectors.alloc_sectors(stream % writers, &request).unwrap();
            source.unpin(&got.pointer).unwrap();
            left -= got.sectors;
            at[stream] += u64::from(got.sectors);
            total += u64::from(got.sectors);
        }
    }
    let open = u64::try_from(source.pins()).unwrap();
    assert!(open <= 128, "{open} open buckets");
    // A bucket is full or open: none was given up.
    assert!((source.allocated() - open) * BUCKET <= total);
    assert_eq!(sectors.close().unwrap() as u64, open);
    assert_eq!(source.pins(), 0);
    (source.allocated(), total / BUCKET)
}

#[test]
fn several_writers_use_as_many_buckets_as_one_list_does() {
    for (streams, streams_end) in
        [(60, true), (100, true), (140, false), (200, false), (400, false)]
    {
        let (one, needed) = buckets_used(1, streams, streams_end);
        for writers in [2, 4] {
            let (several, _) = buckets_used(writers, streams, streams_end);
            println!("{streams} streams: {one} buckets, {writers} writers {several}, of {needed}");
            let differ = several.abs_diff(one);
            assert!(differ <= writers as u64, "{streams} streams, {writers} writers: {differ}");
        }
    }
}

/// 128 streams of writer 0, oldest first: their buckets.
fn open_128(sectors: &Sectored) -> Vec<SetPointer> {
    let open = |stream| sectors.alloc_sectors(0, &request(stream, 0, 8)).unwrap().pointer;
    (0..128).map(open).collect()
}

#[test]
fn a_writer_takes_over_what_was_used_least_recently_by_any() {
    let sectors = SectorAllocator::new(Source::new(), &geometry(), 2);
    let buckets = open_128(&sectors);
    let of =
        |writer, stream| sectors.alloc_sectors(writer, &request(stream, 0, 8)).unwrap().pointer;
    // Writer 1 has none of its own, and has not written yet.
    assert_eq!(of(1, 1000), buckets[0]);
    // That was later than all that writer 0 did.
    assert_eq!(of(0, 1001), buckets[1]);
    assert_eq!(of(1, 1002), buckets[2]);
    assert_eq!(of(0, 1003), buckets[3]);
    // Nobody needed a new one.
    assert_eq!(sectors.source().allocated(), 128);
}

/// What was taken over full is not the taker's most recent one before it is used.
#[test]
fn a_full_bucket_changes_its_writer_only_with_the_bucket_that_replaces_it() {
    let source = Source::new();
    let sectors = SectorAllocator::new(Arc::clone(&source), &geometry(), 2);
    for stream in 0..128 {
        let whole = u32::try_from(BUCKET).unwrap();
        sectors.alloc_sectors(0, &request(stream, 0, whole)).unwrap();
    }
    assert_eq!(source.allocated(), 128);
    for stream in 1000..1010 {
        sectors.alloc_sectors(1, &request(stream, 0, 8)).unwrap();
    }
    assert_eq!(source.allocated(), 138, "one bucket for each stream");
}

/// While a bucket is waited for another finds space for the same write point.
#[test]
fn a_bucket_that_is_not_needed_any_more_serves_the_next() {
    let source = Source::new();
    let sectors = Arc::new(SectorAllocator::new(Arc::clone(&source), &geometry(), 1));
    let of_source: Weak<Sectored> = Arc::downgrade(&sectors);
    let first = move || {
        let sectors = of_source.upgrade().unwrap();
        sectors.alloc_sectors(0, &request(7, 5000, 8)).unwrap();
    };
    assert!(source.in_first.set(Box::new(first)).is_ok());
    let piece = sectors.alloc_sectors(0, &request(7, 0, 8)).unwrap();
    assert_eq!(source.allocated(), 2);
    // The bucket that the other had opened.
    assert_eq!((piece.pointer.bucket, piece.sector.0 % BUCKET), (BucketIndex(2), 8));
    let next = sectors.alloc_sectors(0, &request(8, 0, 8)).unwrap();
    assert_eq!((next.pointer.bucket, source.allocated()), (BucketIndex(1), 2));
    // Two open buckets and three pieces under way.
    assert_eq!(source.pins(), 5);
    drop(sectors);
    assert_eq!(source.pins(), 3);
}

#[test]
fn a_bucket_with_as_many_pins_as_can_be_is_closed() {
    let source = Arc::new(Source { devices: 1, pins_max: Some(3), ..Source::default() });
    let sectors = SectorAllocator::new(Arc::clone(&source), &geometry(), 1);
    let pieces: Vec<_> =
        (0..5).map(|n| sectors.alloc_sectors(0, &request(1, n * 8, 8)).unwrap()).collect();
    // The third piece takes over the pin of the open bucket.
    let of = |bucket: u64| pieces.iter().filter(|piece| piece.pointer.bucket.0 == bucket).count();
    assert_eq!((of(1), of(2), source.allocated()), (3, 2, 2));
    assert_eq!((source.pins_of(&pieces[0].pointer), source.pins_of(&pieces[4].pointer)), (3, 3));
    for piece in &pieces {
        source.unpin(&piece.pointer).unwrap();
    }
    assert_eq!((source.pins(), sectors.close()), (1, Ok(1)));
}

#[test]
fn closing_drops_the_pins_of_open_buckets_and_what_was_left_of_them() {
    let source = Arc::new(Source { devices: 2, ..Source::default() });
    let sectors = SectorAllocator::new(Arc::clone(&source), &geometry(), 2);
    let first = sectors.alloc_sectors(0, &request(1, 0, 8)).unwrap().pointer;
    let second = sectors.alloc_sectors(1, &request(2, 0, 8)).unwrap().pointer;
    assert_eq!((first.device, second.device), (0, 1));
    assert_eq!(sectors.close_cache(1), Ok(1));
    assert_eq!((source.pins_of(&first), source.pins_of(&second)), (2, 1));
    let pointer =
        |writer, stream| sectors.alloc_sectors(writer, &request(stream, 8, 8)).unwrap().pointer;
    assert_eq!(pointer(0, 1), first, "the other cache's bucket is still open");
    assert_ne!(pointer(1, 2), second);
    assert_eq!(sectors.close(), Ok(2));
    assert_eq!(sectors.close(), Ok(0));
    assert_ne!(pointer(0, 1), first);
    // Five pieces are under way, and one bucket is open.
    assert_eq!(source.pins(), 6);
    drop(sectors);
    assert_eq!(source.pins(), 5);
}

#[test]
fn nothing_more_goes_to_a_cache_that_has_failed() {
    let source = Arc::new(Source { devices: 2, ..Source::default() });
    let sectors = SectorAllocator::new(Arc::clone(&source), &geometry(), 1);
    let before = sectors.alloc_sectors(0, &request(1, 0, 8)).unwrap();
    assert_eq!(before.pointer.device, 0);
    source.failed.lock().unwrap().insert(0);
    // Its open bucket is closed, whose pin is dropped.
    let after = sectors.alloc_sectors(0, &request(1, 8, 8)).unwrap();
    assert_eq!((after.pointer.device, source.pins_of(&before.pointer)), (1, 1));
    source.failed.lock().unwrap().insert(1);
    assert_eq!(sectors.alloc_sectors(0, &request(1, 16, 8)), Err(AllocError::Failed));
    assert_eq!(source.pins_of(&after.pointer), 1);
}
