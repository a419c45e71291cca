//! The inner loops over hot words: the only `unsafe` of the allocator.
//!
//! A sweep reads words that other threads may be writing. Plain loads of shared memory would be a
//! data race, and the compiler does not vectorise atomic ones; so the vector loops load and store
//! through assembly, which is to the language what the same number of relaxed atomic accesses is.
//! Each 32-bit word is aligned, and x86 never tears an aligned word, whatever the width of the
//! access it is part of. Everywhere else (other processors, Miri, a model checker, x86 without
//! AVX2) the same loops run on relaxed atomics; tests hold both to the same results.

use std::num::NonZeroU16;

use crate::units::Prio;

use super::sync::{AtomicU32, Ordering};
use super::words::{Cold, Hot};

/// Words that one mask of [`victims`] covers.
pub(crate) const GROUP: usize = 64;

/// The inner part of `bucket_prio`, as long as nothing wraps: `(prio - base) * sectors_used`.
///
/// `base` is the kernel's `min_prio - (INITIAL_PRIO - min_prio) / 8`. A prio below it gives a key
/// over 2^31.
pub(crate) const fn key(word: u32, base: u32) -> u32 {
    (word >> Hot::PRIO_SHIFT).wrapping_sub(base).wrapping_mul(word & Hot::SECTORS_MASK)
}

/// Fetches the cache line of a word; a hint without effect on anything but time.
pub(crate) fn prefetch(word: &AtomicU32) {
    #[cfg(all(target_arch = "x86_64", not(miri), not(feature = "model")))]
    // SAFETY: a prefetch may name any address; this one is even valid.
    unsafe {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        _mm_prefetch::<_MM_HINT_T0>(std::ptr::from_ref(word).cast());
    }
    #[cfg(not(all(target_arch = "x86_64", not(miri), not(feature = "model"))))]
    let _ = word;
}

/// For each group of 64 words, a mask of candidates: all that may be invalidated and whose [`key`] is
/// at most `threshold`, and a few that are not and that the caller has to sort out. Words after the
/// last whole group are left to the caller.
pub(crate) fn victims(words: &[AtomicU32], base: u32, threshold: u32, masks: &mut [u64]) {
    #[cfg(all(target_arch = "x86_64", not(miri), not(feature = "model")))]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2, which is all that the function asks for.
        unsafe { x86::victims(words, base, threshold, masks) };
        return;
    }
    victims_portable(words, base, threshold, masks);
}

/// The mask of [`victims`] for one group of 64 words, without the few that are not: for groups where
/// those are many.
pub(crate) fn victims_exactly(group: &[AtomicU32], base: u32, threshold: u32) -> u64 {
    #[cfg(all(target_arch = "x86_64", not(miri), not(feature = "model")))]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2, which is all that the function asks for.
        return unsafe { x86::victims_exactly(group, base, threshold) };
    }
    let mut mask = [0];
    victims_portable(group, base, threshold, &mut mask);
    let [mask] = mask;
    mask
}

fn victims_portable(words: &[AtomicU32], base: u32, threshold: u32, masks: &mut [u64]) {
    for (group, mask) in words.chunks_exact(GROUP).zip(masks) {
        *mask = 0;
        for (bit, word) in group.iter().enumerate() {
            let word = word.load(Ordering::Relaxed);
            let hit = word & Hot::EXCLUDED == 0 && key(word, base) <= threshold;
            *mask |= u64::from(hit) << bit;
        }
    }
}

/// Ages the words of one chunk as `times` rescalings would, one after the other (on-disk-format.md §9.5); the
/// least prio that the last of them left, or 65535.
///
/// A prio stops at 0, and a rescaling that finds it there does not count it: so the least is that of
/// the buckets that had at least `times` to lose.
///
/// The caller holds the stripe lock of the chunk.
pub(crate) fn rescale(hot: &[AtomicU32], cold: &[AtomicU32], times: NonZeroU16) -> u16 {
    #[cfg(all(target_arch = "x86_64", not(miri), not(feature = "model")))]
    if std::arch::is_x86_feature_detected!("avx2") {
        // SAFETY: the processor has AVX2, which is all that the function asks for.
        return unsafe { x86::rescale(hot, cold, times) };
    }
    rescale_portable(hot, cold, times)
}

fn rescale_portable(hot: &[AtomicU32], cold: &[AtomicU32], times: NonZeroU16) -> u16 {
    let mut min_prio = u16::MAX;
    for (hot, cold) in hot.iter().zip(cold) {
        let word = hot.load(Ordering::Relaxed);
        let prio = Hot(word).prio().0;
        if prio == 0 || prio == u16::MAX {
            continue;
        }
        if Hot(word).unreclaimable() && Cold(cold.load(Ordering::SeqCst)).pins() != 0 {
            continue;
        }
        let aged = prio.saturating_sub(times.get());
        hot.store(Hot(word).with_prio(Prio(aged)).0, Ordering::Relaxed);
        if prio >= times.get() {
            min_prio = min_prio.min(aged);
        }
    }
    min_prio
}

#[cfg(all(target_arch = "x86_64", not(miri), not(feature = "model")))]
mod x86 {
    use std::arch::asm;
    use std::arch::x86_64::{
        __m256i, _MM_HINT_T0, _mm_prefetch, _mm256_and_si256, _mm256_andnot_si256,
        _mm256_castsi256_ps, _mm256_cmpeq_epi32, _mm256_cmpgt_epi32, _mm256_madd_epi16,
        _mm256_min_epu16, _mm256_min_epu32, _mm256_movemask_ps, _mm256_mullo_epi32,
        _mm256_or_si256, _mm256_set1_epi32, _mm256_setzero_si256, _mm256_slli_epi32,
        _mm256_srai_epi32, _mm256_srli_epi32, _mm256_storeu_si256, _mm256_sub_epi16,
        _mm256_sub_epi32, _mm256_subs_epu16,
    };

    use super::{AtomicU32, Cold, GROUP, Hot, NonZeroU16};

    const LANES: usize = 8;

    /// Words between what is read and what is prefetched.
    const AHEAD: usize = 768;

    /// The same for the rescaling, which writes too: less is under way for each line.
    const AGED_AHEAD: usize = 384;

    /// Brings the unreclaimable bit to where a lane's sign is.
    const UNRECLAIMABLE_TO_TOP: i32 = 18;
    const _: () = assert!(Hot::UNRECLAIMABLE << UNRECLAIMABLE_TO_TOP == 1 << 31);

    /// Eight relaxed loads at once.
    ///
    /// # Safety
    /// `words` must be valid for reading eight words; the processor must have AVX2.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn load(words: *const AtomicU32) -> __m256i {
        let loaded;
        // SAFETY: reads 32 bytes that the caller vouches for; no flags, no stack.
        unsafe {
            asm!(
                "vmovdqu {loaded}, ymmword ptr [{words}]",
                words = in(reg) words,
                loaded = out(ymm_reg) loaded,
                options(nostack, preserves_flags, readonly)
            );
        }
        loaded
    }

    /// Eight relaxed stores at once.
    ///
    /// # Safety
    /// `words` must be valid for writing eight words; the processor must have AVX2.
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn store(words: *const AtomicU32, values: __m256i) {
        // SAFETY: writes 32 bytes that the caller vouches for and that are atomics, so writable
        // through a shared reference; no flags, no stack.
        unsafe {
            asm!(
                "vmovdqu ymmword ptr [{words}], {values}",
                words = in(reg) words,
                values = in(ymm_reg) values,
                options(nostack, preserves_flags)
            );
        }
    }

    /// The top bits of the eight lanes.
    ///
    /// # Safety
    /// The processor must have AVX2.
    // The intrinsics are unsafe to call up to Rust 1.86 and safe since.
    #[allow(unused_unsafe)]
    #[inline]
    #[target_feature(enable = "avx2")]
    unsafe fn lanes(mask: __m256i) -> u32 {
        // SAFETY: the caller's processor has AVX2.
        let bits = unsafe { _mm256_movemask_ps(_mm256_castsi256_ps(mask)) };
        u32::from_ne_bytes(bits.to_ne_bytes())
    }

    /// See [`super::victims`].
    ///
    /// It compares a quarter of each key, rounded down, with a quarter of the threshold, because
    /// then a single 16-bit multiplication does: `prio / 4 - base / 4` fits 15 bits and a sign, and so
    /// do the sectors, with the two excluding bits above them.
    ///
    /// - It misses none: with `p = prio`, `floor(p / 4) - ceil(base / 4) <= (p - base) / 4`.
    /// - An excluded bucket has at least 8192 "sectors" and passes only if its quarter of a prio is
    ///   next to nothing.
    /// - A key that wraps is negative here, and passes.
    ///
    /// # Safety
    /// The processor must have AVX2.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn victims(
        words: &[AtomicU32],
        base: u32,
        threshold: u32,
        masks: &mut [u64],
    ) {
        const SECTORS_AND_EXCLUDED: u32 = Hot::SECTORS_MASK | Hot::EXCLUDED;
        // Rounded up: towards plus infinity, also for a negative base.
        let quarter_base = (base.cast_signed_portable() + 3) >> 2;
        let quarter_threshold = (threshold >> 2).cast_signed_portable();
        // SAFETY: all intrinsics are AVX2's or older. Each load is of the eight words that an
        // exact chunk of eight holds. A prefetch may name any address.
        unsafe {
            let base = _mm256_set1_epi32(quarter_base);
            let threshold = _mm256_set1_epi32(quarter_threshold);
            let sectors_mask = _mm256_set1_epi32(SECTORS_AND_EXCLUDED.cast_signed_portable());
            for (group, mask) in words.chunks_exact(GROUP).zip(masks) {
                // The arithmetic fills the processor's window before enough lines are under way.
                for line in (0..GROUP).step_by(16) {
                    _mm_prefetch::<_MM_HINT_T0>(group.as_ptr().wrapping_add(AHEAD + line).cast());
                }
                let mut above = 0;
                for eight in group.chunks_exact(LANES).rev() {
                    let word = load(eight.as_ptr());
                    let factor = _mm256_sub_epi32(_mm256_srli_epi32::<18>(word), base);
                    let sectors = _mm256_and_si256(word, sectors_mask);
                    let key = _mm256_madd_epi16(factor, sectors);
                    let lanes = lanes(_mm256_cmpgt_epi32(key, threshold));
                    above = (above << LANES) | u64::from(lanes);
                }
                *mask = !above;
            }
        }
    }

    /// See [`super::victims_exactly`].
    ///
    /// # Safety
    /// The processor must have AVX2.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn victims_exactly(group: &[AtomicU32], base: u32, threshold: u32) -> u64 {
        let mut mask = 0;
        // SAFETY: all intrinsics are AVX2's or older. Each load is of the eight words that an exact
        // chunk of eight holds.
        unsafe {
            let zero = _mm256_setzero_si256();
            let base = _mm256_set1_epi32(base.cast_signed_portable());
            let threshold = _mm256_set1_epi32(threshold.cast_signed_portable());
            let sectors_mask = _mm256_set1_epi32(Hot::SECTORS_MASK.cast_signed_portable());
            let excluded_mask = _mm256_set1_epi32(Hot::EXCLUDED.cast_signed_portable());
            for eight in group.chunks_exact(LANES).rev() {
                let word = load(eight.as_ptr());
                let prio = _mm256_srli_epi32::<16>(word);
                let sectors = _mm256_and_si256(word, sectors_mask);
                let key = _mm256_mullo_epi32(_mm256_sub_epi32(prio, base), sectors);
                let small = _mm256_cmpeq_epi32(_mm256_min_epu32(key, threshold), key);
                let may_go = _mm256_cmpeq_epi32(_mm256_and_si256(word, excluded_mask), zero);
                mask = (mask << LANES) | u64::from(lanes(_mm256_and_si256(small, may_go)));
            }
        }
        mask
    }

    /// See [`super::rescale`].
    ///
    /// A prio that has less to lose than is taken from it wraps in the copy that the least is taken
    /// of, to more than any that has not.
    ///
    /// # Safety
    /// The processor must have AVX2.
    #[target_feature(enable = "avx2")]
    pub(super) unsafe fn rescale(hot: &[AtomicU32], cold: &[AtomicU32], times: NonZeroU16) -> u16 {
        let (hot_eights, cold_eights) = (hot.chunks_exact(LANES), cold.chunks_exact(LANES));
        let rest = super::rescale_portable(hot_eights.remainder(), cold_eights.remainder(), times);
        let mut least = [0u32; LANES];
        // SAFETY: all intrinsics are AVX2's or older. Each load and store is of the eight words
        // that an exact chunk of eight holds; the last store is to eight words of our own. A prefetch
        // may name any address.
        unsafe {
            let zero = _mm256_setzero_si256();
            let ones = _mm256_cmpeq_epi32(zero, zero);
            let prio_mask = _mm256_set1_epi32(0xffff_0000u32.cast_signed_portable());
            // In the upper halves, so that a subtraction of 16-bit halves leaves the lower ones.
            let taken = u32::from(times.get()) << Hot::PRIO_SHIFT;
            let taken = _mm256_set1_epi32(taken.cast_signed_portable());
            let pin_bits = _mm256_set1_epi32(Cold::PINS.cast_signed_portable());
            let mut min = ones;
            for line in (0..hot.len()).step_by(16) {
                _mm_prefetch::<_MM_HINT_T0>(hot.as_ptr().wrapping_add(AGED_AHEAD + line).cast());
            }
            for (hot, cold) in hot_eights.zip(cold_eights) {
                let word = load(hot.as_ptr());
                let fixed = _mm256_cmpeq_epi32(_mm256_and_si256(word, prio_mask), prio_mask);
                let unreclaimable = _mm256_slli_epi32::<UNRECLAIMABLE_TO_TOP>(word);
                // Barred is pinned or gen too high, or a GC runs; only the cold words can tell.
                let kept = if lanes(unreclaimable) == 0 {
                    fixed
                } else {
                    let pins = _mm256_and_si256(load(cold.as_ptr()), pin_bits);
                    let unpinned = _mm256_cmpeq_epi32(pins, zero);
                    let unreclaimable = _mm256_srai_epi32::<31>(unreclaimable);
                    _mm256_or_si256(fixed, _mm256_andnot_si256(unpinned, unreclaimable))
                };
                let taken = _mm256_andnot_si256(kept, taken);
                store(hot.as_ptr(), _mm256_subs_epu16(word, taken));
                let wrapped = _mm256_sub_epi16(word, taken);
                min = _mm256_min_epu16(min, _mm256_or_si256(wrapped, kept));
            }
            _mm256_storeu_si256(least.as_mut_ptr().cast(), min);
        }
        let least = least.iter().map(|&word| Hot(word).prio().0).min().unwrap_or(u16::MAX);
        // What wrapped is at least this much.
        rest.min(if least > u16::MAX - times.get() { u16::MAX } else { least })
    }

    /// The bits of an unsigned word as the signed word that intrinsics take.
    trait CastSigned {
        fn cast_signed_portable(self) -> i32;
    }

    impl CastSigned for u32 {
        fn cast_signed_portable(self) -> i32 {
            i32::from_ne_bytes(self.to_ne_bytes())
        }
    }
}

#[cfg(all(test, not(feature = "model")))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_vector_loop_misses_no_victim(
            words in proptest::collection::vec(any::<u32>(), 0..700),
            min_prio in 0u32..=32768,
            threshold in prop_oneof![Just(0), 0u32..1 << 30, Just((1 << 30) - 1)],
        ) {
            let base = min_prio.wrapping_sub((32768 - min_prio) / 8);
            // Thresholds that some word just reaches are where rounding would show.
            let reached = words.first().map(|&word| key(word, base));
            let threshold = reached.filter(|&key| key < 1 << 30).unwrap_or(threshold);
            let words: Vec<_> = words.into_iter().map(AtomicU32::new).collect();
            let mut fast = vec![0; words.len() / GROUP];
            let mut plain = vec![0; words.len() / GROUP];
            victims(&words, base, threshold, &mut fast);
            victims_portable(&words, base, threshold, &mut plain);
            for (fast, plain) in fast.iter().zip(&plain) {
                prop_assert_eq!(plain & !fast, 0);
            }
        }

        #[test]
        fn the_exact_vector_loop_finds_what_the_portable_one_finds(
            words in proptest::collection::vec(any::<u32>(), GROUP),
            min_prio in 0u32..=32768,
            threshold in prop_oneof![Just(0), any::<u32>(), Just((1 << 30) - 1)],
            reached in any::<bool>(),
        ) {
            let base = min_prio.wrapping_sub((32768 - min_prio) / 8);
            let threshold = if reached { key(words[0], base) } else { threshold };
            let words: Vec<_> = words.into_iter().map(AtomicU32::new).collect();
            let mut plain = [0];
            victims_portable(&words, base, threshold, &mut plain);
            prop_assert_eq!(victims_exactly(&words, base, threshold), plain[0]);
        }

        #[test]
        fn vector_and_portable_loops_age_as_many_single_rescalings(
            words in proptest::collection::vec(
                (prop_oneof![
                    Just(0u32), Just(1 << 16), 0u32..12 << 16, Just(0xfffe_0000), Just(0xffff_0000),
                    any::<u32>(),
                ],
                 any::<u32>()),
                0..300,
            ),
            times in prop_oneof![4 => 1u16..12, 1 => any::<u16>(), 1 => Just(u16::MAX)],
        ) {
            let times = NonZeroU16::new(times).unwrap_or(NonZeroU16::MIN);
            let atomics = |words: &[u32]| -> Vec<AtomicU32> {
                words.iter().copied().map(AtomicU32::new).collect()
            };
            let (hot, cold): (Vec<u32>, Vec<u32>) = words.into_iter().unzip();
            let (fast, plain, cold) = (atomics(&hot), atomics(&hot), atomics(&cold));
            let min_prio = rescale(&fast, &cold, times);
            prop_assert_eq!(min_prio, rescale_portable(&plain, &cold, times));
            let values = |words: Vec<AtomicU32>| -> Vec<u32> {
                words.into_iter().map(AtomicU32::into_inner).collect()
            };
            let fast = values(fast);
            prop_assert_eq!(&fast, &values(plain));
            // Some hundreds are enough to compare with: more only take longer.
            if times.get() < 500 {
                let single = atomics(&hot);
                let one = NonZeroU16::MIN;
                let least = (0..times.get()).fold(0, |_, _| rescale_portable(&single, &cold, one));
                prop_assert_eq!(least, min_prio);
                prop_assert_eq!(values(single), fast);
            }
        }
    }
}
