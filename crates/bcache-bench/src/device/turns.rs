//! The allocator and the same writes without one, in turns: first one, the other, the other again, and
//! the first. A device that becomes slower or faster meanwhile does so for both.
//!
//! Each turn ends when what was written in it is on the device, so that none pays for another's writes.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Result;
use rand::{Rng, SeedableRng};
use rand_pcg::Pcg64;

use super::plan::Length;
use crate::num::float;
use crate::report::InTurns;

/// How long a turn is, about: short, so that there are many pairs. Runs of half a minute on a loop device
/// gave intervals of 0.02 with 250 ms, and of 0.03 with 500 ms and 1 s (docs/allocator.md).
const TURN: Duration = Duration::from_millis(250);

/// One of the two.
pub trait Side {
    /// Writes for `time`, and on to the end of what is due where this is the `last` turn.
    fn turn(&mut self, time: Duration, last: bool) -> Result<Turn>;

    /// Whether it has written all that it was to.
    fn is_over(&self) -> bool;
}

/// What one of them did in a turn.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Turn {
    /// Bytes that it wrote as data.
    pub written_bytes: u64,
    /// How long that took, until they were on the device.
    pub elapsed: Duration,
    /// All writers wrote all the time.
    pub whole: bool,
}

/// Turns of both, one after the other.
pub type Pair = [Turn; 2];

/// Lets `sides` write in turns, each for `length`, or until `stop`. One alone has one turn.
///
/// The pairs of whole turns, where there are two.
pub fn take_turns(
    sides: &mut [&mut dyn Side],
    length: Length,
    stop: &AtomicBool,
) -> Result<Vec<Pair>> {
    let turn = if sides.len() > 1 { TURN } else { Duration::MAX };
    let (time, turns) = match length {
        Length::Elapsed(time) => {
            let turns = time.as_nanos().div_ceil(turn.as_nanos()).max(1);
            let turns = u32::try_from(turns).unwrap_or(u32::MAX);
            (time / turns, turns)
        }
        Length::Bytes(_) => (turn, u32::MAX),
    };
    let mut pairs = Vec::new();
    for number in 1..=turns {
        let mut took = Vec::new();
        for side in sides.iter_mut().filter(|side| !side.is_over()) {
            took.push(side.turn(time, number == turns)?);
        }
        let stopped = stop.load(Ordering::Relaxed);
        let first_is_last = number % 2 == 0;
        if let Ok([a, b]) = Pair::try_from(took) {
            if a.whole && b.whole && !stopped {
                pairs.push(if first_is_last { [b, a] } else { [a, b] });
            }
        }
        if stopped || sides.iter().all(|side| side.is_over()) {
            break;
        }
        sides.reverse();
    }
    Ok(pairs)
}

/// Pairs that an interval takes: of fewer, resampling makes it too narrow.
const PAIRS_NEEDED: usize = 20;
/// How often pairs are drawn.
const RESAMPLES: usize = 2_000;
/// The share of the ratios so drawn that is left out below the interval, and above it.
const TAIL: f64 = 0.025;

/// Bytes a second of each side in `pairs`; `None` where there is none, or nothing was written.
pub fn bandwidths<'a>(pairs: impl IntoIterator<Item = &'a Pair>) -> Option<[f64; 2]> {
    let mut sums = [(0, Duration::ZERO); 2];
    for pair in pairs {
        for ((bytes, time), turn) in sums.iter_mut().zip(pair) {
            *bytes += turn.written_bytes;
            *time += turn.elapsed;
        }
    }
    let bandwidths = sums.map(|(bytes, time)| float(bytes) / time.as_secs_f64());
    bandwidths.iter().all(|it| it.is_normal()).then_some(bandwidths)
}

/// How sure the ratio of the bandwidths in `pairs` is: the 95 % interval of the bootstrap's percentiles,
/// the same for the same pairs.
pub fn interval(pairs: &[Pair]) -> InTurns {
    let mut random = Pcg64::seed_from_u64(0);
    let mut draw = || pairs.get(random.random_range(0..pairs.len()));
    let mut ratios: Vec<f64> = (0..RESAMPLES)
        .filter(|_| pairs.len() >= PAIRS_NEEDED)
        .filter_map(|_| bandwidths((0..pairs.len()).filter_map(|_| draw())))
        .map(|[allocator, other]| allocator / other)
        .collect();
    ratios.sort_unstable_by(f64::total_cmp);
    let beyond = crate::num::whole(float(ratios.len() as u64) * TAIL);
    let beyond = usize::try_from(beyond).unwrap_or(0);
    InTurns {
        pairs: pairs.len() as u64,
        ratio_low: ratios.get(beyond).copied(),
        ratio_high: ratios.iter().rev().nth(beyond).copied(),
    }
}

#[cfg(test)]
mod tests;
