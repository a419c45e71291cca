//! Formats an image file that is new, allocates space in it for a stream of writes, and writes it.
//!
//! ```text
//! cargo run -p bcache-core --example allocate -- new.img
//! ```

use std::error::Error;
use std::sync::{Arc, mpsc};
use std::thread;

use bcache_core::allocator::{AllocatorThread, BucketSource as _, SectorAllocator, SectorRequest};
use bcache_core::device::{AlignedBuf, BlockDevice, create_image};
use bcache_core::layout::superblock::{
    CacheParams, Label, Replacement, SB_OFFSET_BYTES, Superblock,
};
use bcache_core::ops::start::{Member, RunningSet};
use bcache_core::units::Sectors;
use uuid::Uuid;

const NBUCKETS: u64 = 1024;
const BUCKET_SIZE: Sectors = Sectors(128);
/// Sectors of one write: a bucket and a half, so that each is split over two.
const WRITE_SECTORS: u32 = 192;

fn main() -> Result<(), Box<dyn Error>> {
    let path = std::env::args().nth(1).ok_or("name an image file that is not there yet")?;
    let device: Arc<dyn BlockDevice> =
        Arc::new(create_image(path, NBUCKETS * BUCKET_SIZE.bytes())?);
    let superblock = Superblock::new_cache(&CacheParams {
        uuid: Uuid::new_v4(),
        set_uuid: Uuid::new_v4(),
        label: Label::default(),
        nbuckets: NBUCKETS,
        bucket_size: BUCKET_SIZE,
        block_size: 8,
        replacement: Replacement::Fifo,
        discard: false,
    });
    device.write_at(SB_OFFSET_BYTES, superblock.as_bytes())?;
    device.flush()?;

    let member = Member { device: Arc::clone(&device), superblock };
    let set = Arc::new(RunningSet::start(vec![member], |_| {}, &mut rand::random)?);
    // Garbage collection marks what is in use: here nothing but the metadata.
    let (wake, woken) = mpsc::channel();
    let of_collector = Arc::clone(&set);
    thread::spawn(move || {
        while woken.recv().is_ok() {
            of_collector.allocator().gc_start();
            of_collector
                .allocator()
                .gc_finish(&of_collector.metadata_marks())
                .expect("its own marks");
        }
    });
    let io = set.io(0, Arc::new(move || wake.send(()).unwrap_or(())));
    let io = io.ok_or("a set without a cache")?;
    let cache = set.allocator().caches().first().ok_or("a set without a cache")?;
    let allocator_thread = AllocatorThread::start(cache, io)?;
    let geometry = *set.caches().first().ok_or("a set without a cache")?.geometry();
    let sectors = SectorAllocator::new(Arc::clone(set.allocator()), &geometry, 1);

    let mut offset = 0;
    for _ in 0..4 {
        let mut left = WRITE_SECTORS;
        while left > 0 {
            let request = SectorRequest {
                inode: 0,
                offset,
                sectors: left,
                write_point: 1,
                moving_gc: false,
                wait: true,
            };
            let space = sectors.alloc_sectors(0, &request)?;
            let bytes = Sectors(space.sectors.into()).bytes();
            let data = AlignedBuf::zeroed(usize::try_from(bytes)?);
            device.write_at(space.sector.bytes(), &data)?;
            println!(
                "sectors {offset}+{} of the volume: bucket {}, sector {} of the cache",
                space.sectors, space.pointer.bucket, space.sector.0
            );
            // A cache set would insert a key now; without one, the space is free again.
            set.allocator().unpin(&space.pointer)?;
            offset += u64::from(space.sectors);
            left -= space.sectors;
        }
    }
    sectors.close()?;
    allocator_thread.stop().map_err(|(_, error)| error)?;
    Ok(())
}
