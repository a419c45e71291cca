//! Stretches of the btree whose keys are missing or in doubt.

use std::ops::ControlFlow;

use crate::cache_set::{CacheSet, Found, MissingError, WalkOptions};
use crate::layout::bkey::{Bkey, Pos};
use crate::layout::bset::NodeError;
use crate::ops::rebuild::ExtentsError;
use crate::ops::repair::reason::NotAnew;
use crate::ops::repair::region::Lost;
use crate::units::BucketIndex;

/// A stretch of which keys are missing, and whether nodes below the lost one are damaged, too.
pub(super) type Missed = (Lost, bool);

/// All of them in order. None overlaps with another.
pub(super) fn missed(set: &CacheSet<'_>, walk: WalkOptions) -> Result<Vec<Missed>, NotAnew> {
    if !set.root.is_valid_btree_ptr(set.geometry()) {
        let level = set.btree.depth.max(1);
        let lost = Lost { from: Pos::ZERO, to: Pos::MAX, level, bucket: BucketIndex(0) };
        return Ok(vec![(lost, false)]);
    }
    // Each with whether a node is damaged, rather than in doubt.
    let suspects: Vec<Lost> = set.suspects.iter().map(|suspect| (*suspect).into()).collect();
    let mut found: Vec<(Lost, bool)> = suspects.iter().map(|suspect| (*suspect, false)).collect();
    let mut out_of_order = None;
    set.for_each_extent(&walk, &mut |it| match it {
        Found::Extent { .. } => ControlFlow::Continue(()),
        Found::Missing(missing) => {
            // Of these, the node above is in doubt already.
            let is_suspect = match &missing.error {
                MissingError::Revisited => true,
                MissingError::Damaged(error) => error.error == NodeError::ShortKey,
                MissingError::Unreadable(_) => false,
            };
            if !is_suspect {
                found.push(((&missing).into(), true));
            }
            ControlFlow::Continue(())
        }
        Found::OutOfOrder { key, end } => {
            out_of_order = Some((*key, end)).filter(|(key, _)| !is_within(key, &suspects));
            if out_of_order.is_some() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        }
    });
    match out_of_order {
        Some((key, end)) => Err(ExtentsError::OutOfOrder { key, end }.into()),
        None => Ok(joined(found)),
    }
}

/// Whether all of `key` lies in one of the stretches.
pub(super) fn is_within(key: &Bkey, lost: &[Lost]) -> bool {
    lost.iter().any(|lost| lost.from <= key.start_pos() && key.pos() <= lost.to)
}

/// Stretches that overlap become one, that of the highest node. A node below it is within it.
fn joined(mut found: Vec<(Lost, bool)>) -> Vec<Missed> {
    found.sort_by_key(|(lost, _)| (lost.from, std::cmp::Reverse((lost.to, lost.level))));
    let mut joined: Vec<(Lost, Vec<u16>)> = Vec::new();
    for (lost, damaged) in found {
        let levels = damaged.then_some(lost.level);
        match joined.last_mut().filter(|(last, _)| lost.from < last.to) {
            Some((last, damaged_levels)) => {
                last.to = last.to.max(lost.to);
                if lost.level > last.level {
                    (last.level, last.bucket) = (lost.level, lost.bucket);
                }
                damaged_levels.extend(levels);
            }
            None => joined.push((lost, levels.into_iter().collect())),
        }
    }
    joined
        .into_iter()
        .map(|(lost, damaged)| (lost, damaged.iter().any(|level| *level < lost.level)))
        .collect()
}
