//! A cache set read with all that was found wrong on the way.

use anyhow::Result;
use bcache_cli::progress::Progress;
use bcache_core::cache_set::{
    self, CacheDevice, CacheSet, Problem, ReadError, ReadOptions, SetRefusal, Visitor,
};
use bcache_core::units::BucketIndex;

/// Most problems that are kept; the rest is counted.
const PROBLEMS_MAX: usize = 200;

/// A cache set and what is wrong with it.
pub struct Reading<'d> {
    /// The set.
    pub set: CacheSet<'d>,
    /// What is wrong, the first ones.
    pub problems: Vec<String>,
    /// Problems beyond those.
    pub more_problems: u64,
    /// What the kernel would say instead of bringing up the set.
    pub refusal: Option<SetRefusal>,
    /// Whether keys or gens may be missing, so that figures are a lower bound.
    pub incomplete: bool,
}

/// How a cache device could be read.
pub enum Outcome<'d> {
    /// There is a set.
    Read(Box<Reading<'d>>),
    /// There is none yet: the kernel would start the device afresh.
    Unsynced,
    /// The kernel finds no set on it, and neither do we.
    Nothing {
        /// Why, in words.
        error: String,
        /// What the kernel would say, where that is known.
        refusal: Option<SetRefusal>,
    },
}

struct Collector {
    progress: Progress,
    problems: Vec<Problem>,
    more: u64,
    /// Of the problems beyond the kept ones, the kernel's first objection.
    more_refusal: Option<SetRefusal>,
    incomplete: bool,
    root: Option<BucketIndex>,
}

impl Visitor for Collector {
    fn wants_keys(&self) -> bool {
        false
    }

    fn progress(&mut self, progress: cache_set::Progress) {
        let (what, done, total) = match progress {
            cache_set::Progress::Journal { done, total } => ("journal", done, total),
            cache_set::Progress::Prios { done, total } => ("prios", done, total),
            cache_set::Progress::Btree { done, known } => ("btree nodes", done, known),
        };
        self.progress.set(what, done, total);
    }

    fn node(&mut self, place: cache_set::NodePlace, _node: &cache_set::LoadedNode) {
        self.root.get_or_insert(place.bucket);
    }

    fn problem(&mut self, problem: Problem) {
        self.incomplete |= problem.hides_keys();
        if self.problems.len() < PROBLEMS_MAX {
            self.problems.push(problem);
        } else {
            self.more += 1;
            let refusal = SetRefusal::of(&problem, self.root);
            self.more_refusal = earliest(self.more_refusal, refusal);
        }
    }
}

fn earliest(a: Option<SetRefusal>, b: Option<SetRefusal>) -> Option<SetRefusal> {
    a.into_iter().chain(b).min()
}

/// Reads all of the cache set on `cache`.
pub fn read(cache: CacheDevice<'_>) -> Result<Outcome<'_>> {
    let mut collector = Collector {
        progress: Progress::new(cache.device().info().path.display().to_string()),
        problems: Vec::new(),
        more: 0,
        more_refusal: None,
        incomplete: false,
        root: None,
    };
    let set = match CacheSet::read(cache, &ReadOptions::default(), &mut collector) {
        Ok(set) => set,
        Err(ReadError::Unsynced) => return Ok(Outcome::Unsynced),
        Err(error @ ReadError::NoJournal) => {
            let refusal = Some(SetRefusal::NoJournal);
            return Ok(Outcome::Nothing { error: error.to_string(), refusal });
        }
        Err(error) => return Err(error.into()),
    };
    collector.progress.finish();
    let root = set.root.ptrs().first().map(|ptr| ptr.bucket(set.geometry()));
    let refusal =
        collector.problems.iter().filter_map(|problem| SetRefusal::of(problem, root)).min();
    Ok(Outcome::Read(Box::new(Reading {
        refusal: earliest(refusal, collector.more_refusal),
        problems: collector.problems.iter().map(with_causes).collect(),
        more_problems: collector.more,
        incomplete: collector.incomplete,
        set,
    })))
}

/// A problem and what the device said, in one line.
fn with_causes(problem: &Problem) -> String {
    let mut text = problem.to_string();
    let mut cause = std::error::Error::source(problem);
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.ends_with(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
