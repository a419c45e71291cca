//! Metrics in Prometheus' text format. Names are node_exporter's where the meaning is the same.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use bcache_core::running::{Attributes, DeviceState, Rounded, Stats, View};

/// Metrics by name, each with its type, help and samples.
struct Metrics(BTreeMap<&'static str, (&'static str, &'static str, Vec<String>)>);

impl Metrics {
    fn add(&mut self, metric: Metric, labels: &str, value: impl std::fmt::Display) {
        let Metric(name, kind, help) = metric;
        let (_, _, samples) = self.0.entry(name).or_insert((kind, help, Vec::new()));
        samples.push(format!("{name}{{{labels}}} {value}"));
    }

    fn maybe(&mut self, metric: Metric, labels: &str, value: Option<impl std::fmt::Display>) {
        if let Some(value) = value {
            self.add(metric, labels, value);
        }
    }
}

/// Name, type and help.
#[derive(Clone, Copy)]
struct Metric(&'static str, &'static str, &'static str);

/// A label's value as the format wants it.
fn quoted(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// The middle of what a rounded number can be, which is off by least. What is counted in sectors is
/// exactly none where it reads so.
fn middle(value: Rounded) -> i64 {
    if value.is_zero() { 0 } else { value.low() + (value.high() - value.low()) / 2 }
}

fn flag(value: bool) -> u8 {
    u8::from(value)
}

/// All metrics of `view`.
pub(super) fn metrics(view: &View) -> String {
    let mut all = Metrics(BTreeMap::new());
    for set in &view.sets {
        let labels = format!("uuid=\"{}\"", set.uuid);
        all.maybe(
            Metric(
                "node_bcache_average_key_size_bytes",
                "gauge",
                "Mean size of an extent, from the last garbage collection.",
            ),
            &labels,
            set.average_key_size.map(middle),
        );
        all.maybe(
            Metric(
                "node_bcache_btree_cache_size_bytes",
                "gauge",
                "Memory that the btree cache takes.",
            ),
            &labels,
            set.btree_cache_size.map(middle),
        );
        all.maybe(
            Metric(
                "node_bcache_cache_available_percent",
                "gauge",
                "Share of the cache that is free or clean.",
            ),
            &labels,
            set.available_percent,
        );
        all.maybe(
            Metric("node_bcache_congested", "gauge", "I/Os longer than this many bytes bypass the congested cache; 0 when it is not congested."),
            &labels,
            set.congested.map(middle),
        );
        all.maybe(
            Metric("node_bcache_root_usage_percent", "gauge", "How full the root of the btree is."),
            &labels,
            set.root_usage_percent,
        );
        all.maybe(
            Metric("node_bcache_tree_depth", "gauge", "Levels of the btree above its leaves."),
            &labels,
            set.tree_depth,
        );
        all.maybe(
            Metric(
                "node_bcache_active_journal_entries",
                "gauge",
                "Journal entries newer than the index.",
            ),
            &labels,
            set.active_journal_entries,
        );
        all.maybe(
            Metric(
                "node_bcache_btree_nodes",
                "gauge",
                "Nodes of the btree, from the last garbage collection.",
            ),
            &labels,
            set.btree_nodes,
        );
        all.maybe(
            Metric(
                "node_bcache_cache_read_races_total",
                "counter",
                "Reads that raced with the reuse of their bucket.",
            ),
            &labels,
            set.cache_read_races,
        );
        all.maybe(
            Metric("bcache_set_synchronous", "gauge", "Whether the cache survives a registration."),
            &labels,
            set.synchronous.map(flag),
        );
        if let Some(cache) = &set.cache {
            let labels = format!("uuid=\"{}\",cache_device=\"cache0\"", set.uuid);
            all.maybe(
                Metric("node_bcache_io_errors", "gauge", "Errors of the cache device, decaying."),
                &labels,
                cache.io_errors,
            );
            all.maybe(
                Metric(
                    "node_bcache_written_bytes_total",
                    "counter",
                    "Bytes written to the cache device, data and metadata.",
                ),
                &labels,
                cache.written.map(middle),
            );
            all.maybe(
                Metric(
                    "node_bcache_metadata_written_bytes_total",
                    "counter",
                    "Bytes of metadata written to the cache device.",
                ),
                &labels,
                cache.metadata_written.map(middle),
            );
            let info = format!("{labels},device=\"{}\"", quoted(&cache.name));
            all.add(Metric("bcache_cache_info", "gauge", "Which device is the cache."), &info, 1);
        }
        for attached in &set.attached {
            let Some(backing) = view.backing_device(&attached.device) else { continue };
            let labels = format!("uuid=\"{}\",backing_device=\"bdev{}\"", set.uuid, attached.slot);
            all.maybe(
                Metric("node_bcache_dirty_data_bytes", "gauge", "Dirty data of the device."),
                &labels,
                backing.dirty.map(middle),
            );
            all.maybe(
                Metric(
                    "node_bcache_writeback_rate",
                    "gauge",
                    "Rate of writeback in bytes a second.",
                ),
                &labels,
                backing.writeback_rate.map(middle),
            );
            debug_metrics(&mut all, &labels, &backing.attributes);
            if let Some(stats) = &backing.stats {
                stats_metrics(&mut all, &labels, stats);
            }
        }
    }
    for backing in &view.backing {
        let text = |value: Option<&String>| quoted(value.map_or("", String::as_str));
        let info = format!(
            "device=\"{}\",bcache=\"{}\",label=\"{}\",backing_uuid=\"{}\",uuid=\"{}\"",
            quoted(&backing.name),
            text(backing.bcache.as_ref()),
            text(backing.label.as_ref()),
            backing.uuid.map(|it| it.to_string()).unwrap_or_default(),
            backing.set.map(|it| it.to_string()).unwrap_or_default(),
        );
        all.add(
            Metric("bcache_backing_info", "gauge", "Names of a backing device and its set."),
            &info,
            1,
        );
        let now = DeviceState::of(backing);
        for state in DeviceState::ALL {
            let labels = format!("device=\"{}\",state=\"{state}\"", quoted(&backing.name));
            all.add(
                Metric("bcache_backing_state", "gauge", "1 for the state that the device is in."),
                &labels,
                flag(state == now),
            );
        }
    }
    let mut text = String::new();
    for (name, (kind, help, samples)) in &all.0 {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
        for sample in samples {
            let _ = writeln!(text, "{sample}");
        }
    }
    text
}

fn debug_metrics(all: &mut Metrics, labels: &str, at: &Attributes) {
    let of = |key: &str| {
        let text = at.line("writeback_rate_debug", key)?;
        text.trim_end_matches("/sec").parse::<Rounded>().ok().map(middle)
    };
    for (metric, key) in [
        (
            Metric(
                "node_bcache_dirty_target_bytes",
                "gauge",
                "Dirty data that writeback steers for.",
            ),
            "target",
        ),
        (
            Metric(
                "node_bcache_writeback_rate_proportional_term",
                "gauge",
                "Proportional term of writeback's controller.",
            ),
            "proportional",
        ),
        (
            Metric(
                "node_bcache_writeback_rate_integral_term",
                "gauge",
                "Integral term of writeback's controller.",
            ),
            "integral",
        ),
        (
            Metric(
                "node_bcache_writeback_change",
                "gauge",
                "Last change of writeback's rate in bytes a second.",
            ),
            "change",
        ),
    ] {
        all.maybe(metric, labels, of(key));
    }
}

fn stats_metrics(all: &mut Metrics, labels: &str, stats: &Stats) {
    for (metric, value) in [
        (
            Metric(
                "node_bcache_cache_hits_total",
                "counter",
                "Reads found whole in the cache; wraps above 4,800 a second.",
            ),
            stats.cache_hits,
        ),
        (
            Metric(
                "node_bcache_cache_misses_total",
                "counter",
                "Reads not found whole in the cache; wraps above 4,800 a second.",
            ),
            stats.cache_misses,
        ),
        (
            Metric(
                "node_bcache_cache_bypass_hits_total",
                "counter",
                "Reads past the cache that would have been hits.",
            ),
            stats.cache_bypass_hits,
        ),
        (
            Metric(
                "node_bcache_cache_bypass_misses_total",
                "counter",
                "Reads past the cache that would have been misses.",
            ),
            stats.cache_bypass_misses,
        ),
        (
            Metric(
                "node_bcache_cache_miss_collisions_total",
                "counter",
                "Misses that were not cached because of a write meanwhile.",
            ),
            stats.cache_miss_collisions,
        ),
    ] {
        all.maybe(metric, labels, value);
    }
    all.maybe(
        Metric("node_bcache_bypassed_bytes_total", "counter", "Bytes that went past the cache: a lower bound, for the kernel's count wraps above 2.35 MiB/s."),
        labels,
        stats.bypassed_bytes.map(middle),
    );
}
