//! A thread for each question, so that one that is never answered costs its own only.

use std::sync::mpsc::{self, Receiver};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

/// Threads that read at the same time, while they make progress.
const RUNNING_MAX: usize = 64;

/// How long to wait for one of them to end before one more is started all the same.
const PATIENCE: Duration = Duration::from_millis(10);

/// What the threads need of memory for their stacks.
const STACK_BYTES: usize = 256 << 10;

/// How often a thread that cannot be started is tried again.
const SPAWN_TRIES: u32 = 100;

/// The count of running threads.
#[derive(Default)]
struct Running {
    count: Mutex<usize>,
    ended: Condvar,
}

impl Running {
    fn enter(&self) {
        let count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.ended.wait_timeout_while(count, PATIENCE, |count| *count >= RUNNING_MAX);
        let (mut count, _) = waited.unwrap_or_else(PoisonError::into_inner);
        *count += 1;
    }

    fn leave(&self) {
        let mut count = self.count.lock().unwrap_or_else(PoisonError::into_inner);
        *count = count.saturating_sub(1);
        self.ended.notify_one();
    }
}

/// Answers all of `questions` in the background, each by its index. The receiver ends when all have
/// been answered.
pub(crate) fn answer_all<Q, A>(
    questions: Vec<Q>,
    answer: Arc<dyn Fn(&Q) -> A + Send + Sync>,
) -> Receiver<(usize, A)>
where
    Q: Send + Sync + 'static,
    A: Send + 'static,
{
    let (answers, receiver) = mpsc::channel();
    let running = Arc::new(Running::default());
    let start = move || {
        for (index, question) in questions.into_iter().enumerate() {
            running.enter();
            let question = Arc::new(question);
            let mut tries = 0;
            loop {
                let (answer, running, answers) = (answer.clone(), running.clone(), answers.clone());
                let question = question.clone();
                let one = move || {
                    let answer = answer(&question);
                    running.leave();
                    // Nobody listens any more where the time is up.
                    let _ = answers.send((index, answer));
                };
                tries += 1;
                match thread::Builder::new().stack_size(STACK_BYTES).spawn(one) {
                    Ok(_) => break,
                    // Too many processes; without a thread, there is no answer.
                    Err(_) if tries >= SPAWN_TRIES => break,
                    Err(_) => thread::sleep(PATIENCE),
                }
            }
        }
    };
    // The receiver ends at once where there can be no threads at all.
    drop(thread::Builder::new().stack_size(STACK_BYTES).spawn(start));
    receiver
}
