//! The walk over a whole btree, in the order of its keys.
//!
//! Worker threads read and sort nodes ahead of the walk; the handler sees them one after the other
//! on the calling thread, a node before its children, as the kernel's check of the btree does. What
//! is in memory at once is bounded: the interior nodes on the path, and [`WalkOptions::read_ahead_bytes`]
//! of nodes at each of their levels.

use std::collections::{HashMap, VecDeque};
use std::ops::ControlFlow;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, mpsc};

use crate::cache_set::CacheDevice;
use crate::cache_set::btree::node::{LoadedNode, NodeReadError, read_node};
use crate::device::AlignedBuf;
use crate::layout::bkey::Bkey;

/// How a walk reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WalkOptions {
    /// Threads that read nodes; at least 1.
    pub threads: usize,
    /// Bytes of nodes read ahead at each level.
    pub read_ahead_bytes: u64,
}

impl Default for WalkOptions {
    /// A thread more than there are processors, so that one can wait for the device, and 16 MiB
    /// ahead.
    fn default() -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self { threads: (processors + 1).min(8), read_ahead_bytes: 16 << 20 }
    }
}

/// A node as a walk tells it, or why it could not be read.
pub type ReadNode<'a> = Result<&'a LoadedNode, NodeReadError>;

/// What a walk tells.
pub trait WalkHandler {
    /// A node was read, or could not be. Breaking ends the walk: nothing more is read but what was
    /// asked for ahead.
    fn node(&mut self, key: &Bkey, level: u16, node: ReadNode<'_>) -> ControlFlow<()>;

    /// Whether to go on to the child that `key` of the node just told points to.
    fn follow(&mut self, key: &Bkey, child_level: u16) -> bool;
}

/// Fewest nodes read ahead, however large they are.
const AHEAD_MIN: u64 = 4;

/// Most nodes read ahead, however small.
const AHEAD_MAX: u64 = 256;

struct Job {
    id: u64,
    key: Bkey,
    level: u16,
}

#[derive(Default)]
struct Queue {
    jobs: VecDeque<Job>,
    closed: bool,
}

/// What the walk and its workers share.
#[derive(Default)]
struct Shared {
    queue: Mutex<Queue>,
    wake: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, job: Job) {
        self.lock().jobs.push_back(job);
        self.wake.notify_one();
    }

    fn close(&self) {
        let mut queue = self.lock();
        queue.closed = true;
        queue.jobs.clear();
        self.wake.notify_all();
    }

    fn pop(&self) -> Option<Job> {
        let mut queue = self.lock();
        loop {
            if let Some(job) = queue.jobs.pop_front() {
                return Some(job);
            }
            if queue.closed {
                return None;
            }
            queue = self.wake.wait(queue).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Ends the workers also when the handler panics.
struct CloseOnDrop<'s>(&'s Shared);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

type Read = Result<LoadedNode, NodeReadError>;

/// The children of one interior node that are still to be visited.
struct Frame {
    level: u16,
    ahead: u64,
    keys: std::vec::IntoIter<Bkey>,
    issued: VecDeque<(u64, Bkey)>,
}

impl Frame {
    fn new(level: u16, keys: Vec<Bkey>, options: &WalkOptions) -> Self {
        let largest = keys.iter().map(|key| key.size().bytes()).max().unwrap_or(1);
        let ahead = (options.read_ahead_bytes / largest.max(1)).clamp(AHEAD_MIN, AHEAD_MAX);
        Self { level, ahead, keys: keys.into_iter(), issued: VecDeque::new() }
    }
}

/// Visits the node that `root`, a valid btree pointer, points to, and all below it that `handler`
/// follows, until it breaks.
pub fn walk(
    cache: &CacheDevice<'_>,
    root: &Bkey,
    level: u16,
    options: &WalkOptions,
    handler: &mut dyn WalkHandler,
) {
    let shared = Shared::default();
    let (send, receive) = mpsc::channel();
    std::thread::scope(|scope| {
        let _close = CloseOnDrop(&shared);
        for _ in 0..options.threads.max(1) {
            let (shared, send) = (&shared, send.clone());
            scope.spawn(move || work(cache, shared, &send));
        }
        drop(send);
        let mut walker = Walker { shared: &shared, receive, arrived: HashMap::new(), next_id: 0 };
        let mut frames = vec![Frame::new(level, vec![*root], options)];
        while let Some(frame) = frames.last_mut() {
            walker.issue(frame);
            let Some((id, key)) = frame.issued.pop_front() else {
                frames.pop();
                continue;
            };
            let level = frame.level;
            let Some(read) = walker.wait_for(id) else { return };
            match read {
                Ok(node) => {
                    if handler.node(&key, level, Ok(&node)).is_break() {
                        return;
                    }
                    if let Some(child_level) = level.checked_sub(1) {
                        let children = node
                            .keys
                            .iter()
                            .filter(|child| handler.follow(child, child_level))
                            .collect();
                        frames.push(Frame::new(child_level, children, options));
                    }
                }
                Err(error) => {
                    if handler.node(&key, level, Err(error)).is_break() {
                        return;
                    }
                }
            }
        }
    });
}

fn work(cache: &CacheDevice<'_>, shared: &Shared, send: &mpsc::Sender<(u64, Read)>) {
    let mut scratch = AlignedBuf::zeroed(0);
    while let Some(job) = shared.pop() {
        let read = read_node(cache, &job.key, job.level, &mut scratch);
        if send.send((job.id, read)).is_err() {
            return;
        }
    }
}

struct Walker<'s> {
    shared: &'s Shared,
    receive: mpsc::Receiver<(u64, Read)>,
    arrived: HashMap<u64, Read>,
    next_id: u64,
}

impl Walker<'_> {
    fn issue(&mut self, frame: &mut Frame) {
        while (frame.issued.len() as u64) < frame.ahead {
            let Some(key) = frame.keys.next() else { return };
            let id = self.next_id;
            self.next_id = self.next_id.wrapping_add(1);
            frame.issued.push_back((id, key));
            self.shared.push(Job { id, key, level: frame.level });
        }
    }

    /// The node with `id`; `None` when the workers are gone.
    fn wait_for(&mut self, id: u64) -> Option<Read> {
        loop {
            if let Some(read) = self.arrived.remove(&id) {
                return Some(read);
            }
            let (arrived, read) = self.receive.recv().ok()?;
            self.arrived.insert(arrived, read);
        }
    }
}
