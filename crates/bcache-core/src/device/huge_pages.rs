//! Huge pages under tables that are touched all over.

/// Asks for huge pages under memory that `words` has reserved and not touched yet.
///
/// Where single words all over a table are touched, finding the page costs as much as the word with
/// small pages. Without huge pages everything works the same, only slower.
pub(crate) fn advise_huge_pages<T>(words: &mut Vec<T>) {
    #[cfg(all(target_os = "linux", not(miri), not(feature = "model")))]
    {
        use nix::sys::mman::{MmapAdvise, madvise};
        const PAGE: usize = 4096;
        let bytes = words.capacity().saturating_mul(size_of::<T>());
        let start = words.as_mut_ptr().addr().next_multiple_of(PAGE);
        let skipped = start - words.as_mut_ptr().addr();
        let Some(len) = bytes.checked_sub(skipped).map(|len| len / PAGE * PAGE) else { return };
        let place = words.as_mut_ptr().cast::<u8>().wrapping_add(skipped).cast();
        if let Some(place) = std::ptr::NonNull::new(place) {
            // SAFETY: whole pages inside memory that the vector owns; this advice changes nothing
            // that a program can see. That the kernel may refuse it does not matter.
            let _ = unsafe { madvise(place, len, MmapAdvise::MADV_HUGEPAGE) };
        }
    }
    #[cfg(not(all(target_os = "linux", not(miri), not(feature = "model"))))]
    let _ = words;
}
