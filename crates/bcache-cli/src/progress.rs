//! Progress on a terminal, for what takes longer than a second.

use std::io::IsTerminal;
use std::time::{Duration, Instant};

use bcache_core::cache_set;
use indicatif::{ProgressBar, ProgressStyle};

/// How long something may take in silence.
const SILENCE: Duration = Duration::from_secs(1);

/// A bar on standard error that appears after a second, if that is a terminal.
#[derive(Debug)]
pub struct Progress {
    started: Instant,
    bar: Option<ProgressBar>,
    terminal: bool,
    prefix: String,
}

impl Progress {
    /// Starts counting; `prefix` says of what.
    pub fn new(prefix: impl Into<String>) -> Self {
        Self {
            started: Instant::now(),
            bar: None,
            terminal: std::io::stderr().is_terminal(),
            prefix: prefix.into(),
        }
    }

    /// `done` of `total` units of `what`.
    pub fn set(&mut self, what: &'static str, done: u64, total: u64) {
        if !self.terminal || (self.bar.is_none() && self.started.elapsed() < SILENCE) {
            return;
        }
        let prefix = &self.prefix;
        let bar = self.bar.get_or_insert_with(|| {
            let style = ProgressStyle::with_template(
                "{prefix} {msg} {wide_bar} {human_pos}/{human_len}, {eta} left",
            )
            .unwrap_or_else(|_| ProgressStyle::default_bar());
            ProgressBar::new(total).with_style(style).with_prefix(prefix.clone())
        });
        bar.set_message(what);
        bar.set_length(total);
        bar.set_position(done);
    }

    /// How far a cache set is read.
    pub fn reading(&mut self, progress: cache_set::Progress) {
        let (what, done, total) = match progress {
            cache_set::Progress::Journal { done, total } => ("journal", done, total),
            cache_set::Progress::Prios { done, total } => ("prios", done, total),
            cache_set::Progress::Btree { done, known } => ("btree nodes", done, known),
            cache_set::Progress::Search { done, total } => ("buckets searched", done, total),
        };
        self.set(what, done, total);
    }

    /// Takes the bar away.
    pub fn finish(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.finish();
    }
}
