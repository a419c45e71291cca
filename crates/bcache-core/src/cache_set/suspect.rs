//! Stretches of the btree whose nodes are whole by their checksums, and contradict themselves or each other.
//!
//! What such nodes tell may be wrong, and what they do not tell may be somewhere else. Keys of a leaf that
//! no kernel writes cast doubt on the leaf. Where it is the keys above that may be wrong, all that the node
//! above covers is in doubt: which of its children belongs where is not certain.

use std::collections::BTreeMap;

use crate::cache_set::btree::{FaultKind, LoadedNode};
use crate::layout::bkey::Pos;
use crate::layout::bset::NodeError;
use crate::units::BucketIndex;

/// Stretches that are kept one by one.
const SUSPECTS_MAX: usize = 4096;

/// A stretch in doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Suspect {
    /// Keys that end after this position,
    pub from: Pos,
    /// up to this one.
    pub to: Pos,
    /// Level of the node that covers it; 0 for a leaf.
    pub level: u16,
    /// Bucket of that node.
    pub bucket: BucketIndex,
}

/// Finds them on the way through a btree, a node before its children.
#[derive(Debug)]
pub(super) struct Suspects {
    depth: u16,
    /// By level: the node that the walk is in, and the one ahead of it.
    current: BTreeMap<u16, Suspect>,
    ahead: BTreeMap<u16, Suspect>,
    found: Vec<Suspect>,
}

impl Suspects {
    pub(super) const fn new(depth: u16) -> Self {
        Self { depth, current: BTreeMap::new(), ahead: BTreeMap::new(), found: Vec::new() }
    }

    /// The walk comes to a node, which ends at `to`.
    pub(super) fn enter(&mut self, level: u16, to: Pos, bucket: BucketIndex) {
        let from = self.current.get(&level).map_or(Pos::ZERO, |node| node.to);
        let before = self.current.insert(level, Suspect { from, to, level, bucket });
        if let Some(before) = before {
            self.ahead.insert(level, before);
        }
    }

    /// Judges the keys of the node that the walk is in.
    pub(super) fn judge(&mut self, node: &LoadedNode) {
        let short = node.error.is_some_and(|error| error.error == NodeError::ShortKey);
        let is_past = |kind: FaultKind| kind == FaultKind::PastNode;
        if short || node.faults.iter().any(|fault| is_past(fault.kind())) {
            self.above(node.level);
        }
        if node.faults.iter().any(|fault| !is_past(fault.kind())) {
            self.node(node.level);
        }
    }

    /// The node of this level that the walk is in is in doubt.
    pub(super) fn node(&mut self, level: u16) {
        if let Some(node) = self.current.get(&level) {
            self.add(*node);
        }
    }

    /// Which children the node above this level has is in doubt.
    pub(super) fn above(&mut self, level: u16) {
        let above = level.saturating_add(1);
        if self.current.contains_key(&above) {
            self.node(above);
        } else {
            self.add(self.whole());
        }
    }

    /// Which keys are the node's of this level, and which those of the node ahead of it, is in doubt.
    pub(super) fn above_both(&mut self, level: u16) {
        let above = level.saturating_add(1);
        let (Some(node), Some(before)) = (self.current.get(&above), self.ahead.get(&level)) else {
            self.add(self.whole());
            return;
        };
        let mut both = *node;
        if before.from < node.from {
            both.from = self.ahead.get(&above).map_or(Pos::ZERO, |ahead| ahead.from);
        }
        self.add(both);
    }

    const fn whole(&self) -> Suspect {
        // Whatever it is called: what is below it has to be searched for.
        let level = if self.depth == 0 { 1 } else { self.depth };
        Suspect { from: Pos::ZERO, to: Pos::MAX, level, bucket: BucketIndex(0) }
    }

    fn add(&mut self, suspect: Suspect) {
        if self.found.last() == Some(&suspect) {
            return;
        }
        if self.found.len() >= SUSPECTS_MAX {
            self.found = vec![self.whole()];
        }
        self.found.push(suspect);
    }

    /// All of them.
    pub(super) fn into_found(self) -> Vec<Suspect> {
        self.found
    }
}
