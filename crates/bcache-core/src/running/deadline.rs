//! Reading and writing with a limit of time.
//!
//! bcache's files take one lock of the kernel, which is held while a cache is registered: minutes for
//! a large one (docs/running.md §3). A read in that time cannot be interrupted, so it runs in a thread
//! of its own that is left behind when time is over.

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn work_that_is_late_is_left_behind() {
        let (release, wait) = channel::<u32>();
        let mut late = Late::default();
        assert_eq!(late.ask(Duration::from_millis(20), move || wait.recv().ok()), None);
        release.send(7).unwrap();
        // The first answer, not that of the second question.
        assert_eq!(late.ask(Duration::from_secs(60), || Some(8)), Some(Some(7)));
    }
}
