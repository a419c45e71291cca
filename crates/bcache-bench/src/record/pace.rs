//! When operations are meant to begin.
//!
//! In a *closed loop* an operation begins when the one before it has ended, and its latency counts
//! from there. In an *open loop* operation `k` is meant to begin at `k / rate`, whatever the ones
//! before it do: an operation that begins late, because the one before took long, is still carried
//! out, at once, and its latency counts from when it was meant to begin. Ticks are never skipped, so
//! that a stall shows in every operation that it held up.
//!
//! Waiting for a tick sleeps until [`SPIN_NS`] before it and then spins, because a sleep ends tens of
//! microseconds late. The price: a thread whose ticks are closer together than that never sleeps and
//! keeps a CPU busy; [`PaceCounts::spun_ns`] says how long it did. A machine needs as many CPUs as
//! it has such threads, and one for the allocator's.

use std::num::NonZeroU64;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::Clock;

/// How long before a tick waiting turns from sleeping into spinning, in ns.
pub const SPIN_NS: u64 = 100_000;

/// Longest sleep in one piece, so that a run that is told to stop does so soon.
const SLEEP_NS_MAX: u64 = 50_000_000;

const NS_PER_SECOND: u128 = 1_000_000_000;

/// How operations follow each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Pace {
    /// Each begins when the one before it has ended.
    Closed,
    /// So many a second begin, over all threads.
    Open {
        /// Operations a second, all threads together.
        per_second: NonZeroU64,
    },
}

/// What one thread's pacing came to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PaceCounts {
    /// Operations that began later than they were meant to, by more than a microsecond.
    pub late: u64,
    /// The latest that one began after it was meant to, in ns.
    pub late_ns_max: u64,
    /// Time spent spinning before ticks, in ns.
    pub spun_ns: u64,
}

/// Beginning later than this counts as late, in ns.
const LATE_NS: u64 = 1_000;

impl PaceCounts {
    /// Adds another thread's.
    pub fn add(&mut self, other: &Self) {
        self.late += other.late;
        self.late_ns_max = self.late_ns_max.max(other.late_ns_max);
        self.spun_ns += other.spun_ns;
    }
}

/// An operation's turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tick {
    /// The thread's operations before this one.
    pub index: u64,
    /// When the operation is meant to begin, in ns of the clock: its latency counts from here.
    pub intended_ns: u64,
}

impl Tick {
    /// Latency of the operation if it ends now, in ns.
    pub fn latency_ns(&self, clock: &Clock) -> u64 {
        clock.now_ns().saturating_sub(self.intended_ns)
    }
}

/// One thread's ticks.
#[derive(Clone, Debug)]
pub struct Pacer {
    clock: Clock,
    schedule: Option<Schedule>,
    next: u64,
    counts: PaceCounts,
}

/// The ticks of an open loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Schedule {
    begin_ns: u64,
    per_second: NonZeroU64,
    thread: u64,
    threads: u64,
}

impl Schedule {
    /// When operation `index` of this thread is meant to begin. The threads take turns, so that all
    /// ticks together are evenly spaced. Computed from the start each time: a step that is no whole
    /// number of ns adds up to no drift.
    fn intended_ns(&self, index: u64) -> u64 {
        let turn = u128::from(index) * u128::from(self.threads) + u128::from(self.thread);
        let after = turn * NS_PER_SECOND / u128::from(self.per_second.get());
        self.begin_ns.saturating_add(u64::try_from(after).unwrap_or(u64::MAX))
    }
}

impl Pacer {
    /// The ticks of thread `thread` of `threads`.
    pub fn new(clock: Clock, pace: Pace, thread: u64, threads: u64) -> Self {
        let schedule = match pace {
            Pace::Closed => None,
            Pace::Open { per_second } => {
                Some(Schedule { begin_ns: 0, per_second, thread, threads: threads.max(1) })
            }
        };
        Self { clock, schedule, next: 0, counts: PaceCounts::default() }
    }

    /// Begins, or goes on after a pause, in the thread that waits: as if the first tick had been at
    /// `begin_ns` or soon after.
    pub fn begin(&mut self, begin_ns: u64) {
        if let Some(schedule) = &mut self.schedule {
            schedule.begin_ns = begin_ns;
            // Failing to get a finer timer costs precision that the spinning makes good.
            let _ = nix::sys::prctl::set_timerslack(1);
        }
    }

    /// Waits for the next tick. `None`, possibly before the tick, once `stopped` says so; and at `end_ns`,
    /// where the tick would not come before, or is late and not to be made up for (`late` is false).
    pub fn tick(&mut self, end_ns: u64, late: bool, stopped: impl Fn() -> bool) -> Option<Tick> {
        let index = self.next;
        let intended_ns = match self.schedule {
            None if stopped() => return None,
            None => self.clock.now_ns(),
            Some(schedule) => schedule.intended_ns(index),
        };
        if intended_ns >= end_ns {
            // The rest of the time belongs to the run, too: its rate would be too high without.
            if self.clock.now_ns() < end_ns {
                self.wait_until(end_ns, stopped);
            }
            return None;
        }
        if self.schedule.is_some() {
            if !late && self.clock.now_ns() >= end_ns {
                return None;
            }
            self.wait_until(intended_ns, stopped)?;
        }
        self.next += 1;
        Some(Tick { index, intended_ns })
    }

    fn wait_until(&mut self, intended_ns: u64, stopped: impl Fn() -> bool) -> Option<()> {
        let mut now_ns = self.clock.now_ns();
        let late_ns = now_ns.saturating_sub(intended_ns);
        if late_ns > LATE_NS {
            self.counts.late += 1;
            self.counts.late_ns_max = self.counts.late_ns_max.max(late_ns);
        }
        loop {
            if stopped() {
                return None;
            }
            let left_ns = intended_ns.saturating_sub(now_ns);
            if left_ns <= SPIN_NS {
                break;
            }
            self.clock.sleep(Duration::from_nanos((left_ns - SPIN_NS).min(SLEEP_NS_MAX)));
            now_ns = self.clock.now_ns();
        }
        let spins_from_ns = now_ns;
        while now_ns < intended_ns {
            std::hint::spin_loop();
            now_ns = self.clock.now_ns();
        }
        self.counts.spun_ns += now_ns - spins_from_ns;
        Some(())
    }

    /// What the pacing came to so far.
    pub fn counts(&self) -> PaceCounts {
        self.counts
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn open(per_second: u64) -> Pace {
        Pace::Open { per_second: NonZeroU64::new(per_second).unwrap() }
    }

    fn begun(clock: Clock, pace: Pace, begin_ns: u64) -> Pacer {
        let mut pacer = Pacer::new(clock, pace, 0, 1);
        pacer.begin(begin_ns);
        pacer
    }

    proptest! {
        /// The ticks of all threads together are those of one thread at the whole rate.
        #[test]
        fn threads_share_the_rate(rate in 1u64..10_000_000, threads in 1u64..9, begin in 0u64..1 << 40) {
            let per_second = NonZeroU64::new(rate).unwrap();
            let one = Schedule { begin_ns: begin, per_second, thread: 0, threads: 1 };
            for turn in (0..1000).chain([rate * 3600, u64::from(u32::MAX)]) {
                let of_thread = Schedule { thread: turn % threads, threads, ..one };
                prop_assert_eq!(of_thread.intended_ns(turn / threads), one.intended_ns(turn));
            }
            // No drift: after an hour of operations it is an hour.
            prop_assert_eq!(one.intended_ns(rate * 3600), begin + 3_600_000_000_000);
        }
    }

    /// What a few readings take at most.
    const SOON_NS: u64 = 10 * Clock::READING_NS;

    #[test]
    fn a_stall_is_charged_to_every_operation_it_held_up() {
        let clock = Clock::by_hand(0);
        // A tick each millisecond; the first operation takes 20 ms.
        let mut pacer = begun(clock, open(1000), 0);
        for index in 0..30 {
            let tick = pacer.tick(u64::MAX, true, || false).unwrap();
            assert_eq!((tick.index, tick.intended_ns), (index, index * 1_000_000));
            if index == 0 {
                clock.sleep(Duration::from_millis(20));
            }
            let least = 20_u64.saturating_sub(index) * 1_000_000;
            let latency = tick.latency_ns(&clock);
            assert!((least..least + 50 * SOON_NS).contains(&latency), "{index}: {latency}");
        }
        // The 20th tick came when the stall was over.
        let counts = pacer.counts();
        assert!((19..=20).contains(&counts.late), "{counts:?}");
        assert!(
            (19_000_000..19_000_000 + 10 * SOON_NS).contains(&counts.late_ns_max),
            "{counts:?}"
        );
    }

    #[test]
    fn it_sleeps_until_shortly_before_a_tick_and_spins_from_there() {
        for oversleeps_ns in [0, 60_000, 99_000, 300_000] {
            let clock = Clock::by_hand(oversleeps_ns);
            let mut pacer = begun(clock, open(2000), 0);
            for _ in 0..20 {
                let tick = pacer.tick(u64::MAX, true, || false).unwrap();
                let late_ns = clock.now_ns().checked_sub(tick.intended_ns).expect("not early");
                assert!(late_ns < oversleeps_ns.saturating_sub(SPIN_NS) + SOON_NS, "{late_ns}");
            }
            // The first tick is at once. A sleep that is longer than what is left leaves nothing to spin.
            let spun_ns = 19 * SPIN_NS.saturating_sub(oversleeps_ns);
            let counts = pacer.counts();
            assert!(counts.spun_ns.abs_diff(spun_ns) < 20 * SOON_NS, "{oversleeps_ns}: {counts:?}");
        }
    }

    #[test]
    fn ticks_closer_together_than_the_spinning_leave_no_sleep() {
        // A sleep would be noticed by how late it makes the next tick.
        let clock = Clock::by_hand(1_000_000_000);
        let mut pacer = begun(clock, open(20_000), 0);
        for index in 0..20 {
            let tick = pacer.tick(u64::MAX, true, || false).unwrap();
            assert_eq!(tick.intended_ns, index * 50_000);
        }
        assert!(clock.now_ns() < 20 * 50_000 + SOON_NS);
        assert_eq!(pacer.counts().late, 0);
    }

    #[test]
    fn a_closed_loop_counts_from_the_beginning_of_the_operation() {
        let clock = Clock::by_hand(0);
        let mut pacer = begun(clock, Pace::Closed, 0);
        for index in 0..3 {
            let before = clock.now_ns();
            let tick = pacer.tick(u64::MAX, true, || false).unwrap();
            assert_eq!(tick.index, index);
            assert!((before..=clock.now_ns()).contains(&tick.intended_ns));
            clock.sleep(Duration::from_millis(1));
        }
        assert_eq!(pacer.tick(u64::MAX, true, || true), None);
        assert_eq!(pacer.counts(), PaceCounts::default());
    }

    #[test]
    fn no_tick_comes_at_the_end_or_after_it() {
        let clock = Clock::by_hand(0);
        let end_ns = 30_000_000;
        // The second of its ticks is meant to come long after the end.
        let mut pacer = begun(clock, open(1), 0);
        assert!(pacer.tick(end_ns, true, || false).is_some());
        assert_eq!(pacer.tick(end_ns, true, || false), None);
        // It waited for the end, and for no more.
        let ended_ns = clock.now_ns();
        assert!((end_ns..end_ns + SOON_NS).contains(&ended_ns), "{ended_ns}");
        assert_eq!(pacer.counts().late, 0);
        let mut closed = begun(clock, Pace::Closed, 0);
        assert_eq!(closed.tick(end_ns, true, || false), None);
        assert!(clock.now_ns() < end_ns + 2 * SOON_NS);
    }

    #[test]
    fn what_is_late_at_the_end_is_made_up_for_only_where_told() {
        let clock = Clock::by_hand(0);
        let mut pacer = begun(clock, open(1000), 0);
        clock.sleep(Duration::from_millis(5));
        let end_ns = 2_500_000;
        assert_eq!(pacer.tick(end_ns, false, || false), None);
        for index in 0..3 {
            assert_eq!(pacer.tick(end_ns, true, || false).map(|tick| tick.index), Some(index));
        }
        assert_eq!(pacer.tick(end_ns, true, || false), None);
    }

    #[test]
    fn a_wait_ends_when_told_to_stop() {
        let clock = Clock::by_hand(0);
        let mut pacer = begun(clock, open(1), 3_600_000_000_000);
        let stop_at = 120_000_000;
        assert_eq!(pacer.tick(u64::MAX, true, || clock.now_ns() >= stop_at), None);
        // Soon: after the sleep in which it was told.
        assert!(clock.now_ns() < stop_at + SLEEP_NS_MAX + SOON_NS);
    }
}
