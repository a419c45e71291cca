//! Which caches to try.

use bcache_core::allocator::Policy;
use bcache_core::model::Mode;

use super::cells::Cell;
use crate::num::{float, whole};

/// A size of a cache: bytes, or a share of the trace's footprint.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum CacheSize {
    /// Bytes.
    Bytes(u64),
    /// Percent of the footprint.
    Percent(f64),
}

/// What to try; an empty list stands for the default.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    /// Sizes of the cache.
    pub cache_sizes: Vec<CacheSize>,
    /// Sizes of buckets in bytes.
    pub buckets: Vec<u64>,
    /// Policies.
    pub policies: Vec<Policy>,
    /// Modes.
    pub modes: Vec<Mode>,
    /// Cutoffs in bytes.
    pub cutoffs: Vec<u64>,
}

/// What make-bcache and the kernel take when nothing is said.
pub const BUCKET_DEFAULT: u64 = 512 << 10;
/// See [`BUCKET_DEFAULT`].
pub const CUTOFF_DEFAULT: u64 = 4 << 20;

/// Most sizes that are tried by default.
const SIZES_MAX: u32 = 8;
/// No cache is smaller by default: a kernel would refuse it with all buckets that are tried.
const SIZE_MIN: u64 = 128 << 20;

/// Sizes from about 1 % of the footprint to all of it, each twice the one before.
fn default_sizes(footprint_bytes: u64) -> Vec<u64> {
    // Prio sets, journal and open buckets take some of it: all of the footprint fits the last.
    let largest = (footprint_bytes + footprint_bytes / 16).next_power_of_two().max(SIZE_MIN);
    let mut sizes: Vec<u64> = (0..SIZES_MAX)
        .map(|halvings| largest >> halvings)
        .take_while(|size| *size >= SIZE_MIN && *size >= footprint_bytes / 128)
        .collect();
    sizes.reverse();
    sizes
}

fn or_default<T: Clone + PartialEq>(given: &[T], default: &[T]) -> Vec<T> {
    let mut list: Vec<T> = Vec::new();
    for item in if given.is_empty() { default } else { given } {
        if !list.contains(item) {
            list.push(item.clone());
        }
    }
    list
}

/// All cells, in the order of the table.
pub fn cells(wanted: &Wanted, footprint_bytes: u64) -> Vec<Cell> {
    let mut sizes: Vec<u64> = wanted
        .cache_sizes
        .iter()
        .map(|size| match size {
            CacheSize::Bytes(bytes) => *bytes,
            // In whole MiB, and of bytes there are less than 2^53.
            CacheSize::Percent(percent) => {
                whole(float(footprint_bytes) * percent / 100.0).div_ceil(1 << 20) << 20
            }
        })
        .collect();
    if sizes.is_empty() {
        sizes = default_sizes(footprint_bytes);
    }
    sizes.sort_unstable();
    sizes.dedup();
    let buckets = or_default(&wanted.buckets, &[128 << 10, BUCKET_DEFAULT, 2 << 20]);
    let policies = or_default(&wanted.policies, &[Policy::Lru, Policy::Fifo]);
    let modes = or_default(&wanted.modes, &[Mode::Writethrough]);
    let cutoffs = or_default(&wanted.cutoffs, &[CUTOFF_DEFAULT, 0]);
    let mut cells = Vec::new();
    for &cache_bytes in &sizes {
        for &bucket_bytes in &buckets {
            for &policy in &policies {
                for &mode in &modes {
                    for &sequential_cutoff_bytes in &cutoffs {
                        cells.push(Cell {
                            cache_bytes,
                            bucket_bytes,
                            policy,
                            mode,
                            sequential_cutoff_bytes,
                        });
                    }
                }
            }
        }
    }
    cells
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_go_from_a_part_to_all_of_the_footprint() {
        let gib = 1 << 30;
        assert_eq!(default_sizes(gib), [128, 256, 512, 1024, 2048].map(|mib: u64| mib << 20));
        assert_eq!(default_sizes(1 << 20), [SIZE_MIN]);
        let large = default_sizes(10 << 40);
        assert_eq!((large.len(), large.last()), (8, Some(&(16 << 40))));
    }

    #[test]
    fn every_combination_is_a_cell() {
        let wanted = Wanted {
            cache_sizes: vec![CacheSize::Percent(50.0), CacheSize::Bytes(1 << 30)],
            policies: vec![Policy::Lru, Policy::Random, Policy::Lru],
            ..Wanted::default()
        };
        let cells = cells(&wanted, 512 << 20);
        assert_eq!(cells.len(), 2 * 3 * 2 * 2);
        assert_eq!(cells[0].cache_bytes, 256 << 20);
    }
}
