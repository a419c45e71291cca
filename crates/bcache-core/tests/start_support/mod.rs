//! What tests of running sets do with them.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, mpsc};

use bcache_core::allocator::{
    AllocError, AllocatorThread, BucketSource, Mark, Reserve, SetPointer, ThreadError,
};
use bcache_core::device::BlockDevice;
use bcache_core::layout::superblock::Replacement;
use bcache_core::ops::start::RunningSet;
use bcache_core::units::Sectors;

pub(crate) const BUCKET_SIZE: Sectors = Sectors(8);

/// What kind of caches a run is on, and what it does with them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    pub(crate) nbuckets: u64,
    pub(crate) replacement: Replacement,
    pub(crate) discard: bool,
    pub(crate) reclaim_in_gc: bool,
    /// Caches of the set. Each allocation takes a bucket on each.
    pub(crate) caches: usize,
    /// How many of the newest allocations keep their keys, for a GC to find.
    pub(crate) keys: usize,
    pub(crate) allocations: usize,
}

pub(crate) type Devices = Vec<Arc<dyn BlockDevice>>;

/// What a run did before it ended.
#[derive(Debug, Default)]
pub(crate) struct Ran {
    /// Buckets that were handed out, with their gens.
    pub(crate) handed_out: Vec<SetPointer>,
    pub(crate) start_failed: bool,
    pub(crate) thread_failed: bool,
    pub(crate) alloc_failed: bool,
    /// A journal entry failed that may be durable all the same.
    pub(crate) in_doubt: bool,
    pub(crate) prio_writes: u64,
}

/// The keys of the data that is kept, oldest first.
pub(crate) type Keys = Mutex<VecDeque<SetPointer>>;

/// A GC: marks what keys point to, and forgets those that are stale.
pub(crate) fn collect(set: &RunningSet, keys: &Keys) {
    let allocator = set.allocator();
    allocator.gc_start();
    keys.lock().unwrap().retain(|key| {
        let table = allocator.cache(key.device).unwrap().core().table();
        !allocator.is_stale(key)
            && table.mark_key(key.bucket, key.bucket_gen, Mark::Reclaimable, 8) == Ok(0)
    });
    allocator.gc_finish(&set.metadata_marks()).unwrap();
}

/// Starts the threads and allocates until the shape's number of times or an error.
pub(crate) fn allocate(
    set: &Arc<RunningSet>,
    devices: &Devices,
    shape: Shape,
    keys: &Arc<Keys>,
    ran: &mut Ran,
) {
    let (wake, woken) = mpsc::channel();
    let (of_collector, collected) = (Arc::clone(set), Arc::clone(keys));
    let collector = std::thread::spawn(move || {
        while woken.recv().is_ok() {
            collect(&of_collector, &collected);
        }
    });
    let caches = set.allocator().caches();
    let start = |(device, cache)| {
        let wake = wake.clone();
        let io = set.io(device, Arc::new(move || wake.send(()).unwrap_or(()))).unwrap();
        AllocatorThread::start(cache, io).unwrap()
    };
    let threads: Vec<_> = caches.iter().enumerate().map(start).collect();
    drop(wake);
    for _ in 0..shape.allocations {
        match set.allocator().bucket_alloc_set(Reserve::None, shape.caches, true) {
            Ok(pointers) => {
                ran.handed_out.extend(&pointers);
                let wrote = pointers.iter().all(|pointer| {
                    let byte = pointer.bucket.0 * BUCKET_SIZE.bytes();
                    devices[usize::from(pointer.device)].write_at(byte, &[0xda; 512]).is_ok()
                });
                if shape.keys == 0 {
                    set.allocator().release_set(&pointers).unwrap();
                } else {
                    let mut keys = keys.lock().unwrap();
                    keys.extend(&pointers);
                    while keys.len() > shape.keys {
                        keys.pop_front();
                    }
                    drop(keys);
                    pointers.iter().try_for_each(|key| set.allocator().unpin(key)).unwrap();
                }
                if !wrote {
                    break;
                }
            }
            // Of two caches that each request wants one is left.
            Err(AllocError::Failed | AllocError::TooFewHealthyCaches { .. }) => {
                ran.alloc_failed = true;
                break;
            }
            Err(error) => panic!("{error:?}"),
        }
    }
    for (thread, cache) in threads.into_iter().zip(caches) {
        match thread.stop() {
            Ok(_) => {}
            Err((_, ThreadError::Io(_))) => {
                // Nobody gets anything any more, and nobody waits.
                assert_eq!(cache.bucket_alloc(Reserve::None, true), Err(AllocError::Failed));
                ran.thread_failed = true;
            }
            Err((_, error)) => panic!("{error:?}"),
        }
        let chain = cache.core().prio_chains();
        ran.in_doubt |= chain.in_doubt().is_some();
        ran.prio_writes = chain.seq();
    }
    collector.join().unwrap();
    caches.iter().try_for_each(|cache| cache.core().check()).unwrap();
}
