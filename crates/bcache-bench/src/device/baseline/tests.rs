use std::num::NonZeroU32;
use std::time::Duration;

use bcache_core::device::testkit::{
    Fault, FaultDevice, MemoryDevice, TraceDevice, TraceOp, Trigger,
};

use super::*;
use crate::device::turns::take_turns;
use crate::workload::ReadShare;

static GO: AtomicBool = AtomicBool::new(false);

fn workload(blocks: &str, reads: f64) -> Workload {
    Workload {
        working_set: Sectors(1 << 20),
        access: "zipf".parse().unwrap(),
        block_sizes: blocks.parse().unwrap(),
        read_share: ReadShare::from_percent(reads).unwrap(),
        streams: NonZeroU32::new(2).unwrap(),
        writers: NonZeroU32::new(2).unwrap(),
        seed: 3,
    }
}

fn amount(bytes: u64) -> Length {
    Length::Bytes(NonZeroU64::new(bytes).unwrap())
}

const AREA: Area = Area { start: Sectors(2048), size: Sectors(16384) };

const BUCKET: Sectors = Sectors(256);

const PLACES: Places = Places { area: AREA, bucket: BUCKET, policy: Policy::Fifo };

/// The whole of it in one turn.
fn fixed_addresses(
    device: &dyn BlockDevice,
    places: &Places,
    workload: &Workload,
    terms: &Terms<'_>,
) -> anyhow::Result<Run> {
    let mut fixed = FixedAddresses::new(device, places, workload, terms)?;
    take_turns(&mut [&mut fixed], terms.length, terms.stop)?;
    Ok(fixed.finish())
}

/// The writes of a run: offset and length in sectors.
fn writes(device: &TraceDevice<MemoryDevice>) -> Vec<(u64, u64)> {
    device
        .changes()
        .iter()
        .filter_map(|event| match &event.op {
            TraceOp::Write { offset, len, .. } => Some((offset / 512, len / 512)),
            _ => None,
        })
        .collect()
}

#[test]
fn an_amount_is_written_within_the_area_extent_after_extent() {
    let device = TraceDevice::new(MemoryDevice::new(32 << 20));
    let live = Live::new(2);
    let terms = Terms { pace: Pace::Closed, length: amount(12 << 20), stop: &GO, live: &live };
    let run = fixed_addresses(&device, &PLACES, &workload("4k", 0.0), &terms).unwrap();
    assert_eq!(run.counters.written_bytes, 12 << 20);
    assert_eq!(run.operations, 3072);
    assert_eq!(run.measured(Measure::DataWrite).unwrap().histogram.len(), 3072);
    assert_eq!(run.measured(Measure::Operation).unwrap().histogram.len(), 3072);
    assert!(run.measured(Measure::DataRead).is_none());
    assert_eq!(live.sums().written_bytes, 12 << 20);
    // Each of the four streams fills its extent, then the one four behind it, and at last the first.
    let extents = AREA.size.0 / BUCKET.0;
    let mut next = [0, 1, 2, 3].map(|stream| stream * BUCKET.0);
    for (offset, size) in writes(&device) {
        let at = offset - AREA.start.0;
        let stream = usize::try_from(at / BUCKET.0 % 4).unwrap();
        assert_eq!(at, next[stream]);
        next[stream] = at + size;
        if next[stream] % BUCKET.0 == 0 {
            next[stream] = (next[stream] + 3 * BUCKET.0) % (extents * BUCKET.0);
        }
    }
}

/// The extents that one stream fills, in order, within the area.
fn extents_filled(policy: Policy, bytes: u64) -> Vec<u64> {
    let device = TraceDevice::new(MemoryDevice::new(32 << 20));
    let live = Live::new(1);
    let terms = Terms { pace: Pace::Closed, length: amount(bytes), stop: &GO, live: &live };
    let one = NonZeroU32::MIN;
    let workload = Workload { streams: one, writers: one, ..workload("128k", 0.0) };
    let places = Places { policy, ..PLACES };
    fixed_addresses(&device, &places, &workload, &terms).unwrap();
    writes(&device).iter().map(|(at, _)| (at - AREA.start.0) / BUCKET.0).collect()
}

#[test]
fn extents_are_taken_as_the_policy_takes_buckets() {
    let area_bytes = AREA.size.bytes();
    let in_turn: Vec<u64> = (0..64).collect();
    let twice = in_turn.repeat(2);
    assert_eq!(extents_filled(Policy::Fifo, 2 * area_bytes), twice);
    let lru = extents_filled(Policy::Lru, 2 * area_bytes);
    assert_eq!(lru[..64], in_turn);
    // Each once, and none beside the one before.
    let scattered = &lru[64..];
    assert_eq!(extents_filled(Policy::Random, area_bytes), scattered);
    assert!(scattered.windows(2).all(|pair| pair[0].abs_diff(pair[1]) > 8), "{scattered:?}");
    let mut each = scattered.to_vec();
    each.sort_unstable();
    assert_eq!(each, in_turn);
}

#[test]
fn a_turn_goes_on_where_the_last_one_ended_and_ends_on_the_device() {
    let device = TraceDevice::new(MemoryDevice::new(32 << 20));
    let live = Live::new(2);
    let terms = Terms { pace: Pace::Closed, length: amount(1 << 30), stop: &GO, live: &live };
    let one = NonZeroU32::MIN;
    let workload = Workload { streams: one, writers: one, ..workload("4k", 0.0) };
    let mut fixed = FixedAddresses::new(&device, &PLACES, &workload, &terms).unwrap();
    let turns: Vec<Turn> =
        (0..3).map(|_| fixed.turn(Duration::from_millis(5), false).unwrap()).collect();
    let at = |number: u64| AREA.start.0 + number * 8 % AREA.size.0;
    let offsets = writes(&device).into_iter().map(|(offset, _)| offset);
    assert!(offsets.enumerate().all(|(number, offset)| offset == at(number as u64)));
    let flushes = device.changes().iter().filter(|it| matches!(it.op, TraceOp::Flush)).count();
    assert_eq!(flushes, 3);
    let run = fixed.finish();
    assert!(turns.iter().all(|turn| turn.whole && turn.elapsed >= Duration::from_millis(5)));
    assert_eq!(turns.iter().map(|turn| turn.elapsed).sum::<Duration>(), run.elapsed);
    let written: u64 = turns.iter().map(|turn| turn.written_bytes).sum();
    assert_eq!((written, run.operations * 4096), (run.counters.written_bytes, written));
}

#[test]
fn what_goes_over_the_end_of_an_extent_is_two_writes() {
    let device = TraceDevice::new(MemoryDevice::new(32 << 20));
    let live = Live::new(1);
    let terms = Terms { pace: Pace::Closed, length: amount(384 << 10), stop: &GO, live: &live };
    let one = NonZeroU32::MIN;
    let workload = Workload { streams: one, writers: one, ..workload("96k", 0.0) };
    let run = fixed_addresses(&device, &PLACES, &workload, &terms).unwrap();
    assert_eq!((run.operations, run.counters.written_bytes), (4, 384 << 10));
    let expected = [(0, 192), (192, 64), (256, 128), (384, 128), (512, 64), (576, 192)];
    assert_eq!(writes(&device), expected.map(|(at, size)| (AREA.start.0 + at, size)));
    assert_eq!(run.measured(Measure::DataWrite).unwrap().histogram.len(), 6);
}

#[test]
fn a_small_area_has_a_smaller_extent_for_each_stream() {
    let device = TraceDevice::new(MemoryDevice::new(32 << 20));
    let live = Live::new(2);
    let terms = Terms { pace: Pace::Closed, length: amount(4 << 20), stop: &GO, live: &live };
    let area = Area { size: Sectors(203), ..AREA };
    fixed_addresses(&device, &Places { area, ..PLACES }, &workload("8k", 0.0), &terms).unwrap();
    let ends = writes(&device).into_iter().map(|(offset, size)| offset + size - area.start.0);
    assert_eq!(ends.max(), Some(4 * 48));
}

#[test]
fn reads_stay_within_the_area_too() {
    // A device that ends with the area: a read past it would fail.
    let device = MemoryDevice::new((AREA.start + AREA.size).bytes());
    let live = Live::new(2);
    let terms = Terms { pace: Pace::Closed, length: amount(64 << 20), stop: &GO, live: &live };
    let workload = workload("4k=1,12k=1,64k=1", 50.0);
    let run = fixed_addresses(&device, &PLACES, &workload, &terms).unwrap();
    assert!(run.counters.read_bytes > 0 && run.counters.written_bytes > 0);
    let reads = run.measured(Measure::DataRead).unwrap().histogram.len();
    assert!(reads > 0);
    // There is no cache that could be hit.
    assert_eq!((run.counters.hits, run.figures().hit_ratio), (0, None));
    // One for each write, and another where it went over the end of an extent.
    let pieces = run.measured(Measure::DataWrite).unwrap().histogram.len();
    let extents = run.counters.written_bytes / BUCKET.bytes();
    let written = run.operations - reads;
    assert!((written..=written + extents).contains(&pieces), "{pieces} of {written}");
}

#[test]
fn an_area_without_room_is_refused() {
    let device = MemoryDevice::new(32 << 20);
    let live = Live::new(2);
    let terms = Terms { pace: Pace::Closed, length: amount(1), stop: &GO, live: &live };
    // An operation, and of each stream a piece: those end at multiples of what is common to the sizes
    // of operations and of a bucket.
    for (sectors, blocks) in [(127, "64k"), (31, "12k")] {
        let area = Area { size: Sectors(sectors), ..AREA };
        let workload = workload(blocks, 0.0);
        let error =
            fixed_addresses(&device, &Places { area, ..PLACES }, &workload, &terms).unwrap_err();
        let error = error.downcast().unwrap();
        assert!(matches!(error, BaselineError::AreaTooSmall { streams: 4, .. }), "{error}");
    }
    let area = Area { size: Sectors(511), ..AREA };
    let error = sequential_write(&device, area, Sectors(512), NonZeroU64::MIN, &GO, &Live::new(1))
        .unwrap_err();
    assert!(matches!(error, BaselineError::AreaTooSmall { streams: 1, .. }), "{error}");
}

#[test]
fn device_errors_end_it() {
    let device = FaultDevice::new(MemoryDevice::new(32 << 20)).with(Fault::new(Trigger::NthOp(20)));
    let live = Live::new(2);
    let length = Length::Elapsed(Duration::from_secs(600));
    let terms = Terms { pace: Pace::Closed, length, stop: &GO, live: &live };
    let error = fixed_addresses(&device, &PLACES, &workload("4k", 0.0), &terms).unwrap_err();
    let error = error.downcast().unwrap();
    assert!(matches!(error, BaselineError::Device(DeviceError::Io { .. })), "{error}");
}

#[test]
fn a_sequential_write_goes_round_and_flushes_once() {
    let device = TraceDevice::new(MemoryDevice::new(32 << 20));
    let area = Area { start: Sectors(8), size: Sectors(64) };
    let bytes = NonZeroU64::new(40 << 10).unwrap();
    let run = sequential_write(&device, area, Sectors(16), bytes, &GO, &Live::new(1)).unwrap();
    let offsets: Vec<u64> = writes(&device).iter().map(|(offset, _)| *offset).collect();
    assert_eq!(offsets, [8, 24, 40, 56, 8]);
    assert_eq!(run.counters.written_bytes, 40 << 10);
    assert_eq!(run.operations, 5);
    let events = device.changes();
    let flushes = events.iter().filter(|event| matches!(event.op, TraceOp::Flush)).count();
    assert_eq!(flushes, 1);
    assert!(matches!(events.last().unwrap().op, TraceOp::Flush));
}

#[test]
fn noise_is_not_compressible_by_being_the_same() {
    let buffer = noise(8192, 1);
    let values: std::collections::HashSet<u8> = buffer.iter().copied().collect();
    assert_eq!(values.len(), 256);
    assert_ne!(&buffer[..4096], &buffer[4096..]);
    assert_ne!(&*noise(8192, 2), &*buffer);
}
