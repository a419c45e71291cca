//! Bucket sets: one bucket on each of several caches (`bch_bucket_alloc_set`).

use crate::allocator::Reserve;

use super::Reference;

/// The caches of a set. What a set counts together each of them counts for itself here.
#[derive(Debug)]
pub struct ReferenceSet {
    /// The caches.
    pub caches: Vec<Reference>,
}

impl ReferenceSet {
    /// The order in which caches are asked: most free buckets first, then oldest data first, then as
    /// they come.
    fn by_alloc(&self, reserve: Reserve) -> Vec<usize> {
        let free = |device: usize| {
            let cache = &self.caches[device];
            let none = cache.reserve(Reserve::None).len();
            let own = cache.reserve(reserve).len();
            if reserve == Reserve::None { none } else { none + own }
        };
        let mut order: Vec<_> = (0..self.caches.len()).collect();
        for end in (1..order.len()).rev() {
            for at in 0..end {
                let (one, next) = (order[at], order[at + 1]);
                let older = self.caches[next].min_prio < self.caches[one].min_prio;
                if free(next) > free(one) || (free(next) == free(one) && older) {
                    order.swap(at, at + 1);
                }
            }
        }
        order
    }

    /// A bucket on each of `count` caches, or none at all.
    pub fn bucket_alloc_set(
        &mut self,
        reserve: Reserve,
        count: usize,
    ) -> Option<Vec<(usize, usize)>> {
        let mut taken = Vec::new();
        for device in self.by_alloc(reserve).into_iter().take(count) {
            if let Some(b) = self.caches[device].bucket_alloc(reserve) {
                taken.push((device, b));
            } else {
                self.release_set(&taken);
                return None;
            }
        }
        Some(taken)
    }

    /// Frees buckets and drops the pins that came with them.
    pub fn release_set(&mut self, buckets: &[(usize, usize)]) {
        for &(device, b) in buckets {
            self.caches[device].bucket_free(b);
            self.caches[device].buckets[b].pin -= 1;
        }
    }
}
