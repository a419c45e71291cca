use std::cell::Cell;
use std::num::NonZeroU64;

use rand_distr::LogNormal;

use super::*;

static GO: AtomicBool = AtomicBool::new(false);

/// A device whose speed changes with time, in bytes a ms by ms.
struct Device {
    now_ms: Cell<u32>,
    speed: fn(f64) -> f64,
}

/// Writes with a share of its speed.
struct Writer<'a> {
    device: &'a Device,
    share: f64,
    left: u64,
    turns: Vec<u32>,
}

impl<'a> Writer<'a> {
    fn new(device: &'a Device, share: f64) -> Self {
        Self { device, share, left: u64::MAX, turns: Vec::new() }
    }
}

impl Side for Writer<'_> {
    fn turn(&mut self, time: Duration, _: bool) -> Result<Turn> {
        let began_ms = self.device.now_ms.get();
        self.turns.push(began_ms);
        let mut turn = Turn { written_bytes: 0, elapsed: Duration::ZERO, whole: true };
        while turn.elapsed < time {
            if self.left == 0 {
                turn.whole = false;
                break;
            }
            let now_ms = self.device.now_ms.get();
            let speed = (self.device.speed)(f64::from(now_ms) / 1000.0);
            let bytes = crate::num::whole(speed * self.share).min(self.left);
            self.left -= bytes;
            turn.written_bytes += bytes;
            turn.elapsed += Duration::from_millis(1);
            self.device.now_ms.set(now_ms + 1);
        }
        Ok(turn)
    }

    fn is_over(&self) -> bool {
        self.left == 0
    }
}

const HALF_A_MINUTE: Length = Length::Elapsed(Duration::from_secs(30));

fn ratio(pairs: &[Pair]) -> f64 {
    let [allocator, other] = bandwidths(pairs).unwrap();
    allocator / other
}

/// Over the minute that both take together: slower and slower; slower once; up and down.
const SPEEDS: [fn(f64) -> f64; 3] = [
    |s| 1e6 * (1.0 - s / 120.0),
    |s| if s < 25.0 { 1e6 } else { 0.8e6 },
    |s| 1e6 * (1.0 + 0.2 * (s / 9.0).sin()),
];

#[test]
fn a_device_that_changes_does_so_for_both() {
    for (number, speed) in SPEEDS.into_iter().enumerate() {
        for share in [1.0, 0.95] {
            let device = Device { now_ms: Cell::new(0), speed };
            let (mut allocator, mut other) =
                (Writer::new(&device, share), Writer::new(&device, 1.0));
            let pairs = take_turns(&mut [&mut allocator, &mut other], HALF_A_MINUTE, &GO).unwrap();
            let InTurns { pairs: count, ratio_low, ratio_high } = interval(&pairs);
            assert_eq!(count, 120);
            assert!((ratio(&pairs) - share).abs() < 0.002, "{number}: {}", ratio(&pairs));
            let (low, high) = (ratio_low.unwrap(), ratio_high.unwrap());
            assert!(low <= share && share <= high && high - low < 0.01, "{number}: {low} {high}");
        }
        // Half of the other before, half of it after: fair where the change is steady, and only there.
        let device = Device { now_ms: Cell::new(0), speed };
        let mut writer = Writer::new(&device, 1.0);
        let mut bytes =
            |seconds| writer.turn(Duration::from_secs(seconds), true).unwrap().written_bytes;
        let (before, allocator, after) = (bytes(15), bytes(30), bytes(15));
        let off = float(allocator) / float(before + after) - 1.0;
        assert_eq!(off.abs() > 0.03, number > 0, "{number}: {off}");
    }
}

#[test]
fn the_first_of_a_pair_is_the_last_of_the_next() {
    let device = Device { now_ms: Cell::new(0), speed: |_| 1e6 };
    let (mut allocator, mut other) = (Writer::new(&device, 1.0), Writer::new(&device, 1.0));
    let length = Length::Elapsed(4 * TURN);
    take_turns(&mut [&mut allocator, &mut other], length, &GO).unwrap();
    assert_eq!(allocator.turns, [0, 3, 4, 7].map(|turn| turn * 250));
    assert_eq!(other.turns, [1, 2, 5, 6].map(|turn| turn * 250));
    // A length that is no multiple of a turn is cut into equal ones.
    let mut pairs = |ms| {
        let length = Length::Elapsed(Duration::from_millis(ms));
        take_turns(&mut [&mut allocator, &mut other], length, &GO).unwrap()
    };
    assert_eq!(pairs(260)[1][0].elapsed, Duration::from_millis(130));
    assert_eq!(pairs(3).len(), 1);
    // One alone has one turn.
    let mut alone = Writer::new(&device, 1.0);
    assert!(take_turns(&mut [&mut alone], HALF_A_MINUTE, &GO).unwrap().is_empty());
    assert_eq!(alone.turns.len(), 1);
}

#[test]
fn who_has_written_its_amount_waits_for_the_other_and_is_not_compared() {
    let device = Device { now_ms: Cell::new(0), speed: |_| 1e6 };
    let amount = Length::Bytes(NonZeroU64::MIN);
    let with = |share, left| Writer { left, ..Writer::new(&device, share) };
    let (mut allocator, mut other) = (with(0.5, 1_000_000_000), with(1.0, 1_000_000_000));
    let pairs = take_turns(&mut [&mut allocator, &mut other], amount, &GO).unwrap();
    assert_eq!((allocator.turns.len(), other.turns.len(), pairs.len()), (8, 4, 4));
    assert_eq!((allocator.left, other.left), (0, 0));
    assert!((ratio(&pairs) - 0.5).abs() < 1e-9);
    // Both end in their first turn.
    let (mut allocator, mut other) = (with(1.0, 1_000_000), with(1.0, 1_000_000));
    let pairs = take_turns(&mut [&mut allocator, &mut other], amount, &GO).unwrap();
    assert!(pairs.is_empty() && bandwidths(&pairs).is_none());
    // Ctrl-C: what it cut short is none.
    let pairs = take_turns(
        &mut [&mut Writer::new(&device, 1.0), &mut Writer::new(&device, 1.0)],
        HALF_A_MINUTE,
        &AtomicBool::new(true),
    );
    assert!(pairs.unwrap().is_empty());
}

/// Pairs of turns of 1 s with a true ratio of 0.96, on a device that is slow for a while and whose turns
/// differ by 5 %; one in thirty is half as long again.
fn noisy(count: u32, random: &mut Pcg64) -> Vec<Pair> {
    let noise = LogNormal::new(0.0, 0.05).unwrap();
    let mut turn = |speed: f64| {
        let stalls = random.random_ratio(1, 30);
        let elapsed = random.sample(noise) * if stalls { 1.5 } else { 1.0 };
        let elapsed = Duration::from_secs_f64(elapsed);
        Turn { written_bytes: crate::num::whole(speed), elapsed, whole: true }
    };
    let speed = |number| if number < count / 3 { 1e9 } else { 0.7e9 };
    (0..count).map(|number| [turn(0.96 * speed(number)), turn(speed(number))]).collect()
}

#[test]
fn intervals_hold_the_true_ratio() {
    let mut random = Pcg64::seed_from_u64(7);
    for (count, widest) in [(20, 0.35), (120, 0.1)] {
        let held = (0..200)
            .filter(|_| {
                let InTurns { ratio_low, ratio_high, .. } = interval(&noisy(count, &mut random));
                let (low, high) = (ratio_low.unwrap(), ratio_high.unwrap());
                assert!(high - low < widest, "{low} {high}");
                low <= 0.96 && 0.96 <= high
            })
            .count();
        // 190, give or take 3 to a standard deviation; resampling few makes them a little narrow.
        assert!((170..200).contains(&held), "{count}: {held}");
    }
}

#[test]
fn too_few_pairs_have_no_interval() {
    let pairs = noisy(19, &mut Pcg64::seed_from_u64(1));
    assert_eq!(interval(&pairs), InTurns { pairs: 19, ..InTurns::default() });
    assert!(interval(&[]).ratio_low.is_none());
}
