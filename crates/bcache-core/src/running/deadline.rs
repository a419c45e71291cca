//! Reading and writing with a limit of time.
//!
//! bcache's files take one lock of the kernel, which is held while a cache is registered: minutes for
//! a large one (docs/running.md §3). A read in that time cannot be interrupted, so it runs in a thread
//! of its own that is left behind when time is over.

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// The kernel did not answer in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the kernel did not answer within {} s: bcache's lock is held, as it is while a cache device \
     is registered",
    after.as_secs()
)]
pub struct Blocked {
    /// How long was waited.
    pub after: Duration,
}

/// How long something may take before `slow` is called.
const SLOW: Duration = Duration::from_secs(1);

/// A question that may be answered late. As long as an answer is outstanding no other thread is
/// started.
#[derive(Debug)]
pub struct Late<T> {
    outstanding: Option<Receiver<T>>,
}

impl<T> Default for Late<T> {
    fn default() -> Self {
        Self { outstanding: None }
    }
}

impl<T: Send + 'static> Late<T> {
    /// Waits at most `limit` for the outstanding answer.
    pub fn wait(&mut self, limit: Duration) -> Option<T> {
        let receiver = self.outstanding.take()?;
        match receiver.recv_timeout(limit) {
            Ok(answer) => Some(answer),
            Err(RecvTimeoutError::Timeout) => {
                self.outstanding = Some(receiver);
                None
            }
            Err(RecvTimeoutError::Disconnected) => None,
        }
    }

    /// Begins `work`, unless an answer is outstanding.
    pub fn start(&mut self, work: impl FnOnce() -> T + Send + 'static) {
        if self.outstanding.is_none() {
            let (sender, receiver) = channel();
            std::thread::spawn(move || {
                // Nobody listens any more when time was over.
                let _ = sender.send(work());
            });
            self.outstanding = Some(receiver);
        }
    }

    /// Waits at most `limit` for the outstanding answer, or for that of `work` where there is none.
    pub fn ask(&mut self, limit: Duration, work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
        self.start(work);
        self.wait(limit)
    }
}

/// Runs `work` in a thread and waits at most `limit` for its result; `slow` is called once when it
/// takes longer than a second. Work that is late goes on alone, and its result is dropped.
///
/// # Errors
/// When time was over.
pub fn within<T: Send + 'static>(
    limit: Duration,
    slow: impl FnOnce(),
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, Blocked> {
    let started = Instant::now();
    let mut late = Late::default();
    let mut work = Some(work);
    let mut ask = |limit: Duration| match work.take() {
        Some(work) => late.ask(limit, work),
        None => late.wait(limit),
    };
    if let Some(answer) = ask(limit.min(SLOW)) {
        return Ok(answer);
    }
    slow();
    ask(limit.saturating_sub(started.elapsed())).ok_or(Blocked { after: started.elapsed() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_is_late_is_left_behind() {
        let (release, wait) = channel::<()>();
        let blocked = within(Duration::from_millis(20), || {}, move || wait.recv().is_ok());
        assert!(blocked.is_err());
        drop(release);
        let (release, wait) = channel::<u32>();
        let mut late = Late::default();
        assert_eq!(late.ask(Duration::from_millis(20), move || wait.recv().ok()), None);
        release.send(7).unwrap();
        // The first answer, not that of the second question.
        assert_eq!(late.ask(Duration::from_secs(60), || Some(8)), Some(Some(7)));
        assert_eq!(within(Duration::from_secs(60), || {}, || 5), Ok(5));
    }
}
