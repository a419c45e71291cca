//! In which order open buckets of several writers were used.

/// A number that rises with time, for all threads alike: only compared, never added to anything.
///
/// Where the processor has no such counter, or the order must follow from the schedule, as under the
/// model checker, the calls themselves are counted.
#[cfg(all(target_arch = "x86_64", not(miri), not(feature = "model")))]
pub(crate) fn timestamp() -> u64 {
    // SAFETY: every x86-64 processor has the instruction; it touches no memory.
    unsafe { std::arch::x86_64::_rdtsc() }
}

#[cfg(not(all(target_arch = "x86_64", not(miri), not(feature = "model"))))]
pub(crate) fn timestamp() -> u64 {
    use std::sync::atomic::{AtomicU64, Ordering};

    static CALLS: AtomicU64 = AtomicU64::new(1);
    CALLS.fetch_add(1, Ordering::Relaxed)
}
