//! An estimate of background writeback: what the kernel's controller would do at the trace's times.
//!
//! The rate follows the error from the target (`writeback_percent` of the cache), as
//! `__update_writeback_rate` has it; data goes in the order of the index, and after a whole scan the
//! thread sleeps. How long a write takes is not known here, so this is an estimate.

use std::collections::BTreeSet;

/// `writeback_rate_update_seconds`.
const UPDATE_NS: u64 = 5_000_000_000;
/// Without requests for so long, the rate is unlimited.
const IDLE_NS: u64 = 30_000_000_000;
/// `writeback_rate_minimum`, sectors a second.
const RATE_MINIMUM: i64 = 8;
/// `writeback_rate_p_term_inverse`.
const P_TERM_INVERSE: i64 = 40;
/// `writeback_rate_i_term_inverse`.
const I_TERM_INVERSE: i64 = 10_000;
/// Fragmentation counts from so many buckets for the data of one.
const FRAGMENT: i64 = 3;

/// What the controller looks at.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts {
    pub(super) dirty_sectors: u64,
    pub(super) cache_sectors: u64,
    pub(super) bucket_sectors: u64,
    pub(super) in_use_percent: u8,
    pub(super) in_use_buckets: u64,
    pub(super) writeback_percent: u8,
}

/// What is to be done at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Due {
    /// Nothing before the time that was asked about.
    Nothing,
    /// Write back up to so many sectors.
    Sectors(u64),
}

/// The controller and what is dirty.
#[derive(Clone, Debug, Default)]
pub(super) struct Writeback {
    /// Chunks of the index with dirty extents, and perhaps some without.
    chunks: BTreeSet<u64>,
    /// The scan goes on here.
    cursor: u64,
    integral: i64,
    /// Until when everything up to now has been done.
    now_ns: u64,
    sleeps_until_ns: u64,
    last_request_ns: u64,
}

impl Writeback {
    /// A request is made.
    pub(super) fn note_request(&mut self, now_ns: u64) {
        self.last_request_ns = now_ns;
    }

    /// A chunk has dirty extents.
    pub(super) fn add(&mut self, chunk: u64) {
        self.chunks.insert(chunk);
    }

    /// A chunk has none any more.
    pub(super) fn forget(&mut self, chunk: u64) {
        self.chunks.remove(&chunk);
    }

    /// The next step of the controller before `until_ns`.
    pub(super) fn step(&mut self, until_ns: u64, facts: &Facts) -> Due {
        let next = self.now_ns.max(self.sleeps_until_ns).saturating_add(UPDATE_NS);
        if facts.dirty_sectors == 0 {
            self.now_ns = self.now_ns.max(until_ns);
            return Due::Nothing;
        }
        if next > until_ns {
            return Due::Nothing;
        }
        self.now_ns = next;
        if next.saturating_sub(self.last_request_ns) >= IDLE_NS {
            return Due::Sectors(u64::MAX);
        }
        let rate = self.rate(facts);
        Due::Sectors(rate.saturating_mul(UPDATE_NS / 1_000_000_000))
    }

    /// Sectors a second.
    fn rate(&mut self, facts: &Facts) -> u64 {
        let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        let target = facts.cache_sectors / 100 * u64::from(facts.writeback_percent);
        let dirty = signed(facts.dirty_sectors);
        let error = dirty.saturating_sub(signed(target));
        let mut proportional = error / P_TERM_INVERSE;
        if facts.in_use_percent > 50 {
            let buckets = signed(facts.in_use_buckets);
            let fragment = buckets.saturating_mul(signed(facts.bucket_sectors)) / dirty.max(1);
            let over = |from: u8| i64::from(facts.in_use_percent.saturating_sub(from));
            let term = match facts.in_use_percent {
                ..=57 => over(50),
                58..=64 => 10 * over(57),
                65.. => 1000 * over(64),
            };
            let wanted = (dirty / buckets.max(1)).saturating_mul(term);
            if fragment > FRAGMENT && wanted > proportional {
                proportional = wanted;
            }
        }
        if error > 0 || self.integral > 0 {
            self.integral = self.integral.saturating_add(error.saturating_mul(5));
        }
        let rate = proportional.saturating_add(self.integral / I_TERM_INVERSE).max(RATE_MINIMUM);
        u64::try_from(rate).unwrap_or(0)
    }

    /// The next chunk to write back from; `None` at the end of a scan, after which the thread sleeps.
    pub(super) fn next_chunk(&mut self, delay_seconds: u32) -> Option<u64> {
        if let Some(chunk) = self.chunks.range(self.cursor..).next() {
            self.cursor = *chunk;
            return Some(*chunk);
        }
        self.cursor = 0;
        self.sleeps_until_ns =
            self.now_ns.saturating_add(u64::from(delay_seconds).saturating_mul(1_000_000_000));
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FACTS: Facts = Facts {
        dirty_sectors: 0,
        cache_sectors: 2_000_000,
        bucket_sectors: 1024,
        in_use_percent: 30,
        in_use_buckets: 600,
        writeback_percent: 10,
    };
    const SECOND: u64 = 1_000_000_000;

    #[test]
    fn the_rate_follows_the_error() {
        let mut writeback = Writeback::default();
        writeback.note_request(4 * SECOND);
        let dirty = |dirty_sectors| Facts { dirty_sectors, ..FACTS };
        assert_eq!(writeback.step(4 * SECOND, &dirty(200_000)), Due::Nothing);
        // On target: the least.
        assert_eq!(writeback.step(6 * SECOND, &dirty(200_000)), Due::Sectors(40));
        // 40,000 above it: a 40th a second, and the integral.
        writeback.note_request(9 * SECOND);
        assert_eq!(writeback.step(10 * SECOND, &dirty(240_000)), Due::Sectors((1000 + 20) * 5));
        // Nobody asks for anything.
        assert_eq!(writeback.step(15 * SECOND, &dirty(1)), Due::Sectors(40));
        assert_eq!(writeback.step(39 * SECOND, &dirty(1)), Due::Sectors(40));
        for _ in 0..3 {
            writeback.step(39 * SECOND, &dirty(1));
        }
        assert_eq!(writeback.step(40 * SECOND, &dirty(1)), Due::Sectors(u64::MAX));
    }

    #[test]
    fn fragmentation_makes_haste() {
        let mut writeback = Writeback::default();
        let facts = Facts { dirty_sectors: 60_000, in_use_percent: 66, ..FACTS };
        writeback.note_request(4 * SECOND);
        // 100 sectors in each of 600 buckets, 2 points above 64.
        assert_eq!(writeback.step(5 * SECOND, &facts), Due::Sectors(100 * 2000 * 5));
    }

    #[test]
    fn a_scan_goes_round_with_a_pause() {
        let mut writeback = Writeback::default();
        for chunk in [5, 3, 9] {
            writeback.add(chunk);
        }
        let mut seen = Vec::new();
        while let Some(chunk) = writeback.next_chunk(30) {
            seen.push(chunk);
            writeback.forget(chunk);
        }
        assert_eq!(seen, [3, 5, 9]);
        writeback.add(1);
        let facts = Facts { dirty_sectors: 9, ..FACTS };
        writeback.note_request(29 * SECOND);
        assert_eq!(writeback.step(34 * SECOND, &facts), Due::Nothing, "asleep");
        assert_eq!(writeback.step(35 * SECOND, &facts), Due::Sectors(40));
        assert_eq!(writeback.next_chunk(30), Some(1));
    }
}
