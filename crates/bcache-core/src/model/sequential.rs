//! What the kernel takes for sequential I/O (`check_should_bypass`).
//!
//! Each backing device remembers the ends of its last 128 streams. A request that begins where a
//! stream ended adds to it; any other starts a stream in place of the least recent one, and what the
//! task's stream had come to is folded into the task's average. A task that has streamed much is
//! therefore taken for sequential for a while, whatever it does.

use rustc_hash::FxHashMap;

/// `RECENT_IO`.
const STREAMS: usize = 128;

/// How long a stream may pause: 5 s.
const EXPIRES_NS: u64 = 5_000_000_000;

/// The streams of one backing device.
#[derive(Clone, Debug)]
pub(super) struct Streams {
    /// Sector after the last request. Apart from the rest: a search reads all of them.
    ends: [u64; STREAMS],
    rest: [Stream; STREAMS],
    clock: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct Stream {
    /// Rises with each use: the list's order.
    stamp: u64,
    expires_ns: u64,
    /// Bytes, 32 bits as the kernel has them.
    sequential: u32,
}

/// What the kernel keeps in a `task_struct`: bytes, 32 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Task {
    sequential_io: u32,
    sequential_io_avg: u32,
}

/// All tasks that have made requests.
#[derive(Clone, Debug, Default)]
pub(super) struct Tasks(FxHashMap<Option<u32>, Task>);

impl Tasks {
    /// A task; one of its own stands for all requests whose task is unknown.
    pub(super) fn of(&mut self, process: Option<u32>) -> &mut Task {
        self.0.entry(process).or_default()
    }
}

impl Default for Streams {
    fn default() -> Self {
        Self { ends: [u64::MAX; STREAMS], rest: [Stream::default(); STREAMS], clock: 0 }
    }
}

impl Streams {
    /// Counts a request; the bytes that its task counts as having streamed.
    pub(super) fn account(&mut self, task: &mut Task, now_ns: u64, sector: u64, bytes: u32) -> u32 {
        self.clock += 1;
        let clock = self.clock;
        let end = sector.saturating_add(u64::from(bytes) / 512);
        let streams = || self.ends.iter().zip(&self.rest).enumerate();
        let continued = streams()
            .filter(|(_, (end, stream))| **end == sector && now_ns < stream.expires_ns)
            .max_by_key(|(_, (_, stream))| stream.stamp)
            .map(|(at, _)| at);
        let at = continued.or_else(|| {
            let oldest = self.rest.iter().enumerate().min_by_key(|(_, stream)| stream.stamp);
            oldest.map(|(at, _)| at)
        });
        let slot = at.and_then(|at| Some((self.ends.get_mut(at)?, self.rest.get_mut(at)?)));
        let Some((ends_at, stream)) = slot else { return 0 };
        if continued.is_none() {
            let folded = task.sequential_io_avg.wrapping_mul(7).wrapping_add(task.sequential_io);
            task.sequential_io_avg = folded / 8;
            task.sequential_io = 0;
            stream.sequential = 0;
        }
        stream.sequential = stream.sequential.checked_add(bytes).unwrap_or(stream.sequential);
        stream.stamp = clock;
        stream.expires_ns = now_ns.saturating_add(EXPIRES_NS);
        *ends_at = end;
        task.sequential_io = stream.sequential;
        task.sequential_io.max(task.sequential_io_avg)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KIB: u32 = 1024;

    #[test]
    fn a_stream_adds_up_and_its_average_stays_with_the_task() {
        let (mut streams, mut task) = (Streams::default(), Task::default());
        let mut io = |at_s: u64, sector: u64, bytes| {
            streams.account(&mut task, at_s * 1_000_000_000, sector, bytes)
        };
        assert_eq!(io(0, 0, 64 * KIB), 64 * KIB, "sector 0 continues nothing");
        assert_eq!(io(0, 128, 64 * KIB), 128 * KIB);
        assert_eq!(io(4, 256, 896 * KIB), 1024 * KIB);
        // Random: an eighth of what was streamed is the average.
        assert_eq!(io(4, 99_999, 4 * KIB), 128 * KIB);
        assert_eq!(io(4, 5_000, 4 * KIB), (128 * 7 + 4) * KIB / 8);
        // The stream goes on until 5 s after its last request.
        assert_eq!(io(8, 2048, 64 * KIB), 1088 * KIB);
        assert!(io(13, 2176, 64 * KIB) < 1088 * KIB);
    }

    #[test]
    fn the_least_recent_of_128_streams_is_forgotten() {
        let (mut streams, mut task) = (Streams::default(), Task::default());
        streams.account(&mut task, 0, 0, 512 * KIB);
        for other in 1..128 {
            streams.account(&mut task, 0, other * 10_000_000, KIB);
        }
        assert_eq!(streams.clone().account(&mut task.clone(), 0, 1024, KIB), 513 * KIB);
        streams.account(&mut task, 0, 7, KIB);
        assert!(streams.account(&mut task, 0, 1024, KIB) < 513 * KIB);
    }

    #[test]
    fn tasks_are_told_apart() {
        let (mut streams, mut tasks) = (Streams::default(), Tasks::default());
        streams.account(tasks.of(Some(1)), 0, 0, 1024 * KIB);
        streams.account(tasks.of(Some(1)), 0, 90_000, KIB);
        assert_eq!(streams.account(tasks.of(Some(2)), 0, 50_000, KIB), KIB);
        assert_eq!(streams.account(tasks.of(None), 0, 70_000, KIB), KIB);
    }
}
