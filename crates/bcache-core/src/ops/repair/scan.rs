//! A look at the start of every bucket, for what no pointer leads to any more.

use std::collections::HashSet;
use std::panic::resume_unwind;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use crate::cache_set::{CacheDevice, Progress};
use crate::device::AlignedBuf;
use crate::units::BucketIndex;

/// Bytes of a bucket's start; a block of a cache has no more.
const START_BYTES: usize = 4096;

/// Threads, each with one read at work: they wait for the device, not for a processor.
const THREADS: usize = 16;

/// Buckets that a thread takes at a time.
const CHUNK: u64 = 1024;

/// What `look` finds in the starts of the buckets that are `wanted`, ascending. Buckets of the journal, and
/// those that cannot be read, are left out.
pub(super) fn scan<T: Send>(
    cache: &CacheDevice<'_>,
    progress: &mut dyn FnMut(Progress),
    wanted: &(dyn Fn(BucketIndex) -> bool + Sync),
    look: &(dyn Fn(BucketIndex, &[u8]) -> Option<T> + Sync),
) -> Vec<(BucketIndex, T)> {
    let geometry = cache.geometry();
    let (first, end) = (geometry.first_bucket().0, geometry.nbuckets());
    let journal: HashSet<BucketIndex> = cache.journal_buckets().into_iter().collect();
    let bytes = usize::try_from(geometry.meta_bucket_bytes()).unwrap_or(usize::MAX);
    let bytes = START_BYTES.min(bytes);
    let next = AtomicU64::new(first);
    // Whether there was anything left.
    let look_at_some = |start: &mut [u8], found: &mut Vec<(BucketIndex, T)>| {
        let from = next.fetch_add(CHUNK, Ordering::Relaxed);
        for bucket in (from..from.saturating_add(CHUNK).min(end)).map(BucketIndex) {
            if !journal.contains(&bucket)
                && wanted(bucket)
                && cache.read_bucket(bucket, 0, start).is_ok()
            {
                found.extend(look(bucket, start).map(|it| (bucket, it)));
            }
        }
        from < end
    };
    let mut all = thread::scope(|scope| {
        let workers: Vec<_> = (1..THREADS)
            .map(|_| {
                scope.spawn(|| {
                    let (mut start, mut found) = (AlignedBuf::zeroed(bytes), Vec::new());
                    while look_at_some(&mut start, &mut found) {}
                    found
                })
            })
            .collect();
        let (mut start, mut all) = (AlignedBuf::zeroed(bytes), Vec::new());
        while look_at_some(&mut start, &mut all) {
            let done = next.load(Ordering::Relaxed).min(end).saturating_sub(first);
            progress(Progress::Search { done, total: end.saturating_sub(first) });
        }
        for worker in workers {
            all.extend(worker.join().unwrap_or_else(|panic| resume_unwind(panic)));
        }
        all
    });
    all.sort_unstable_by_key(|(bucket, _)| *bucket);
    all
}
