//! The two words that make up a bucket in memory: eight bytes, packed by hand.
//!
//! [`Hot`] is all that choosing a victim reads; [`Cold`] is what says whether a bucket may be
//! invalidated and what its pointers must carry. Fields as in on-disk-format.md §6.1.

use crate::units::{BUCKET_GC_GEN_MAX, Gen, Prio};

use super::mark::Mark;

/// Prio, sectors used, mark, and whether the bucket is unreclaimable.
///
/// | bits | field |
/// |---|---|
/// | 16..32 | prio |
/// | 15 | low bit of `GC_MARK` |
/// | 14 | high bit of `GC_MARK`: Dirty or Metadata |
/// | 13 | unreclaimable: pinned, free, or its gen may not rise, or a GC runs that it was not reclaimable before |
/// | 0..13 | `GC_SECTORS_USED` |
///
/// The unreclaimable bit repeats what [`Cold`] says, so that one word tells a sweep all it needs. The two
/// bits that exclude a bucket are just above the sectors, so that to the sweep's multiplication such
/// a bucket has more sectors than any can have, and ranks behind the others by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Hot(pub(crate) u32);

impl Hot {
    pub(crate) const PRIO_SHIFT: u32 = 16;
    pub(crate) const SECTORS_MASK: u32 = 0x1fff;
    pub(crate) const UNRECLAIMABLE: u32 = 1 << 13;
    const MARK_HIGH: u32 = 1 << 14;
    const MARK_LOW: u32 = 1 << 15;
    /// Bits that keep a bucket from being a victim.
    pub(crate) const EXCLUDED: u32 = Self::UNRECLAIMABLE | Self::MARK_HIGH;

    pub(crate) const fn prio(self) -> Prio {
        let [_, _, low, high] = self.0.to_le_bytes();
        Prio(u16::from_le_bytes([low, high]))
    }

    /// 0 to 8191.
    pub(crate) const fn sectors_used(self) -> u16 {
        let [low, high, _, _] = (self.0 & Self::SECTORS_MASK).to_le_bytes();
        u16::from_le_bytes([low, high])
    }

    pub(crate) const fn mark(self) -> Mark {
        match (self.0 & Self::MARK_HIGH != 0, self.0 & Self::MARK_LOW != 0) {
            (false, false) => Mark::None,
            (false, true) => Mark::Reclaimable,
            (true, false) => Mark::Dirty,
            (true, true) => Mark::Metadata,
        }
    }

    pub(crate) const fn unreclaimable(self) -> bool {
        self.0 & Self::UNRECLAIMABLE != 0
    }

    pub(crate) const fn excluded(self) -> bool {
        self.0 & Self::EXCLUDED != 0
    }

    #[must_use]
    pub(crate) fn with_prio(self, prio: Prio) -> Self {
        Self((self.0 & 0xffff) | (u32::from(prio.0) << Self::PRIO_SHIFT))
    }

    /// As the kernel's 13-bit field: higher bits of `sectors` are lost (on-disk-format.md §10.7).
    #[must_use]
    pub(crate) fn with_sectors_used(self, sectors: u16) -> Self {
        Self((self.0 & !Self::SECTORS_MASK) | (u32::from(sectors) & Self::SECTORS_MASK))
    }

    #[must_use]
    pub(crate) const fn with_mark(self, mark: Mark) -> Self {
        let field = match mark {
            Mark::None => 0,
            Mark::Reclaimable => Self::MARK_LOW,
            Mark::Dirty => Self::MARK_HIGH,
            Mark::Metadata => Self::MARK_HIGH | Self::MARK_LOW,
        };
        Self((self.0 & !(Self::MARK_HIGH | Self::MARK_LOW)) | field)
    }

    #[must_use]
    pub(crate) const fn with_unreclaimable(self, unreclaimable: bool) -> Self {
        Self(if unreclaimable {
            self.0 | Self::UNRECLAIMABLE
        } else {
            self.0 & !Self::UNRECLAIMABLE
        })
    }
}

/// Gen, `last_gc`, pins and two flags.
///
/// | bits | field |
/// |---|---|
/// | 0..8 | gen |
/// | 8..16 | `last_gc` |
/// | 16..30 | pins; all ones: the bucket is free |
/// | 30 | `GC_MOVE` |
/// | 31 | `reclaimable_in_gc` |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cold(pub(crate) u32);

impl Cold {
    const PIN_ONE: u32 = 1 << 16;
    /// The field of the pins. All ones: the bucket is in `free_inc` or in a reserve.
    pub(crate) const PINS: u32 = 0x3fff << 16;
    const FREE: u32 = Self::PINS;
    /// As many pins as can be counted.
    const PINS_MAX: u32 = Self::PINS - Self::PIN_ONE;
    const GC_MOVE: u32 = 1 << 30;
    const RECLAIMABLE: u32 = 1 << 31;

    pub(crate) const fn bucket_gen(self) -> Gen {
        let [bucket_gen, ..] = self.0.to_le_bytes();
        Gen(bucket_gen)
    }

    pub(crate) const fn last_gc(self) -> Gen {
        let [_, last_gc, ..] = self.0.to_le_bytes();
        Gen(last_gc)
    }

    /// `bucket_gc_gen`: how far the gen has risen since the last GC.
    pub(crate) const fn gc_gen(self) -> u8 {
        self.bucket_gen().distance_from(self.last_gc())
    }

    /// A free bucket has one: that of the list it is in.
    pub(crate) const fn pins(self) -> u16 {
        if self.is_free() {
            return 1;
        }
        let [_, _, low, high] = self.0.to_le_bytes();
        u16::from_le_bytes([low, high]) & 0x3fff
    }

    /// Whether the bucket is in `free_inc` or in a reserve.
    pub(crate) const fn is_free(self) -> bool {
        self.0 & Self::PINS == Self::FREE
    }

    /// Invalidated: nobody can pin it before it is allocated.
    #[must_use]
    pub(crate) const fn freed(self) -> Self {
        Self(self.0 | Self::FREE)
    }

    /// Taken out of a reserve: the list's pin is its owner's now. `None` if it was not free.
    pub(crate) const fn allocated(self) -> Option<Self> {
        if self.is_free() { Some(Self((self.0 & !Self::PINS) | Self::PIN_ONE)) } else { None }
    }

    pub(crate) const fn gc_move(self) -> bool {
        self.0 & Self::GC_MOVE != 0
    }

    pub(crate) const fn reclaimable_in_gc(self) -> bool {
        self.0 & Self::RECLAIMABLE != 0
    }

    /// Everything of `bch_can_invalidate_bucket` but the mark (on-disk-format.md §6.5).
    pub(crate) const fn unreclaimable(self, gc_mark_valid: bool) -> bool {
        self.0 & Self::PINS != 0
            || self.gc_gen() >= BUCKET_GC_GEN_MAX
            || !(gc_mark_valid || self.reclaimable_in_gc())
    }

    #[must_use]
    pub(crate) fn with_gen(self, bucket_gen: Gen) -> Self {
        Self((self.0 & !0xff) | u32::from(bucket_gen.0))
    }

    #[must_use]
    pub(crate) fn with_last_gc(self, last_gc: Gen) -> Self {
        Self((self.0 & !0xff00) | (u32::from(last_gc.0) << 8))
    }

    #[must_use]
    pub(crate) const fn with_gc_move(self, gc_move: bool) -> Self {
        if gc_move { Self(self.0 | Self::GC_MOVE) } else { Self(self.0 & !Self::GC_MOVE) }
    }

    #[must_use]
    pub(crate) const fn with_reclaimable_in_gc(self, reclaimable: bool) -> Self {
        if reclaimable {
            Self(self.0 | Self::RECLAIMABLE)
        } else {
            Self(self.0 & !Self::RECLAIMABLE)
        }
    }

    /// One pin more, or `None` when the bucket is free or has as many as can be counted.
    pub(crate) const fn pinned(self) -> Option<Self> {
        if self.0 & Self::PINS >= Self::PINS_MAX {
            None
        } else {
            Some(Self(self.0 + Self::PIN_ONE))
        }
    }

    /// One pin less, or `None` when there is none that could be dropped.
    pub(crate) const fn unpinned(self) -> Option<Self> {
        if self.0 & Self::PINS == 0 || self.is_free() {
            None
        } else {
            Some(Self(self.0 - Self::PIN_ONE))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each bit alone and all but it, and gens at the limit.
    fn words() -> impl Iterator<Item = u32> {
        let limits = [0x5f, 0x60, 0x8000_005f, 0x8000_0060, 0xfa03, 0x03fa];
        (0..32).flat_map(|bit| [1 << bit, !(1 << bit)]).chain(limits).chain([0, u32::MAX])
    }

    // The bits are written out here as in the tables above: the code has names for them.

    #[test]
    fn a_hot_word_has_each_field_in_its_bits() {
        let marks = [Mark::None, Mark::Dirty, Mark::Reclaimable, Mark::Metadata];
        for word in words() {
            let hot = Hot(word);
            assert_eq!(u32::from(hot.prio().0), word >> 16, "{word:x}");
            assert_eq!(hot.mark(), marks[(word >> 14 & 3) as usize], "{word:x}");
            assert_eq!(hot.unreclaimable(), word >> 13 & 1 == 1, "{word:x}");
            assert_eq!(hot.excluded(), word & 0x6000 != 0, "{word:x}");
            assert_eq!(u32::from(hot.sectors_used()), word & 8191, "{word:x}");

            assert_eq!(hot.with_prio(Prio(0x1234)).0, word & 0xffff | 0x1234_0000, "{word:x}");
            for (mark, bits) in marks.into_iter().zip(0..) {
                assert_eq!(hot.with_mark(mark).0, word & !0xc000 | bits << 14, "{word:x}");
            }
            assert_eq!(hot.with_unreclaimable(true).0, word | 0x2000, "{word:x}");
            assert_eq!(hot.with_unreclaimable(false).0, word & !0x2000, "{word:x}");
            // Of 16 bits the field has 13.
            assert_eq!(hot.with_sectors_used(0xfabc).0, word & !0x1fff | 0x1abc, "{word:x}");
        }
    }

    #[test]
    fn a_cold_word_has_each_field_in_its_bits() {
        for word in words() {
            let cold = Cold(word);
            let (bucket_gen, last_gc, pins) = (word & 255, word >> 8 & 255, word >> 16 & 0x3fff);
            let is_free = pins == 0x3fff;
            let gc_gen = (bucket_gen + 256 - last_gc) % 256;
            assert_eq!(u32::from(cold.bucket_gen().0), bucket_gen, "{word:x}");
            assert_eq!(u32::from(cold.last_gc().0), last_gc, "{word:x}");
            assert_eq!(u32::from(cold.gc_gen()), gc_gen, "{word:x}");
            assert_eq!(cold.is_free(), is_free, "{word:x}");
            assert_eq!(u32::from(cold.pins()), if is_free { 1 } else { pins }, "{word:x}");
            assert_eq!(cold.gc_move(), word >> 30 & 1 == 1, "{word:x}");
            assert_eq!(cold.reclaimable_in_gc(), word >> 31 == 1, "{word:x}");
            let kept = pins != 0 || gc_gen >= 96;
            assert_eq!(cold.unreclaimable(true), kept, "{word:x}");
            assert_eq!(cold.unreclaimable(false), kept || word >> 31 == 0, "{word:x}");

            assert_eq!(cold.with_gen(Gen(0x5a)).0, word & !0xff | 0x5a, "{word:x}");
            assert_eq!(cold.with_last_gc(Gen(0x5a)).0, word & !0xff00 | 0x5a00, "{word:x}");
            assert_eq!(cold.with_gc_move(true).0, word | 1 << 30, "{word:x}");
            assert_eq!(cold.with_gc_move(false).0, word & !(1 << 30), "{word:x}");
            assert_eq!(cold.with_reclaimable_in_gc(true).0, word | 1 << 31, "{word:x}");
            assert_eq!(cold.with_reclaimable_in_gc(false).0, word & !(1 << 31), "{word:x}");

            assert_eq!(cold.freed().0, word | 0x3fff_0000, "{word:x}");
            let allocated = is_free.then_some(word & !0x3fff_0000 | 0x1_0000);
            assert_eq!(cold.allocated().map(|it| it.0), allocated, "{word:x}");
            // 0x3ffe is as many as can be counted.
            let pinned = (pins < 0x3ffe).then(|| word + 0x1_0000);
            assert_eq!(cold.pinned().map(|it| it.0), pinned, "{word:x}");
            let unpinned = (pins != 0 && !is_free).then(|| word - 0x1_0000);
            assert_eq!(cold.unpinned().map(|it| it.0), unpinned, "{word:x}");
        }
    }

    #[test]
    fn a_free_bucket_has_the_pin_of_its_list_and_takes_no_other() {
        let free = Cold(0).with_gen(Gen(7)).freed();
        assert_eq!((free.pins(), free.is_free(), free.unreclaimable(true)), (1, true, true));
        assert!(free.pinned().is_none() && free.unpinned().is_none());
        let owned = free.allocated().unwrap();
        assert_eq!((owned.pins(), owned.is_free(), owned.bucket_gen()), (1, false, Gen(7)));
        assert!(owned.allocated().is_none());
        assert_eq!(owned.unpinned().map(Cold::pins), Some(0));
    }
}
