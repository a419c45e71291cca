//! Why I/O goes past the cache: the kernel's tests in their order (docs/running.md §5).

use bcache_core::running::{Backing, IN_USE_MAX_PERCENT, Set};
use bcache_core::units::format_bytes;

/// Which tests send I/O past the cache now, and which would.
pub(super) fn reasons(backing: &Backing, set: Option<&Set>) -> Vec<String> {
    let Some(set) = set else { return vec!["everything: it has no cache".to_owned()] };
    let mut why = Vec::new();
    if let Some(available) = set.available_percent {
        if available < 100 - IN_USE_MAX_PERCENT {
            why.push(format!(
                "everything new: {} % of the cache is in use, the limit is {IN_USE_MAX_PERCENT}",
                100u64.saturating_sub(available)
            ));
        }
        let in_use = 100u64.saturating_sub(available);
        if backing.cache_mode.as_deref() == Some("writeback") {
            for (limit, which) in [
                (set.cutoff_writeback_sync, "synchronous writes"),
                (set.cutoff_writeback, "other writes"),
            ] {
                if let Some(limit) = limit.filter(|limit| in_use > *limit) {
                    why.push(format!(
                        "{which} are written through: {in_use} % of the cache is in use, \
                         writeback ends at {limit}"
                    ));
                }
            }
        }
    }
    match backing.cache_mode.as_deref() {
        Some("none") => why.push("everything: the cache mode is none".to_owned()),
        Some("writearound") => why.push("all writes: the cache mode is writearound".to_owned()),
        _ => {}
    }
    if backing.readahead_policy.as_deref() == Some("meta-only") {
        why.push(
            "reads ahead and in the background, but for metadata: readahead_cache_policy is \
             meta-only"
                .to_owned(),
        );
    }
    if let Some(block) = set.block_size {
        why.push(format!(
            "I/O that is not aligned to the set's blocks of {}",
            format_bytes(block.at_least())
        ));
    }
    match backing.sequential_cutoff {
        Some(cutoff) if !cutoff.is_zero() => why.push(format!(
            "streams, once they are longer than about {} (sequential_cutoff)",
            format_bytes(cutoff.at_least())
        )),
        _ => {}
    }
    match set.congested {
        Some(size) if !size.is_zero() => why.push(format!(
            "I/O longer than about {}: the cache is congested now",
            format_bytes(size.at_least())
        )),
        _ => {
            let off = |name: &str| set.attributes.number(name) == Some(0);
            if !off("congested_read_threshold_us") || !off("congested_write_threshold_us") {
                why.push("long I/O while the cache is congested; it is not now".to_owned());
            }
        }
    }
    why
}
