//! Every setting of a running device or set that may be changed: unit, range, default, whether it
//! survives a stop (docs/running.md §8).
//!
//! Left out on purpose are files that act rather than hold a value, and two others: the kernel
//! overwrites `writeback_rate` every few seconds, and `io_disable` kills the device for good.

use super::attributes::Attributes;
use super::rounded::Rounded;

/// What a setting belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// A backing device.
    Backing,
    /// A cache set.
    Set,
    /// A cache set, in its directory `internal`.
    Internal,
    /// The cache device of a set.
    Cache,
}

/// How a value reads, and what is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// 0 or 1.
    Flag,
    /// A plain number.
    Number,
    /// Per cent.
    Percent,
    /// Microseconds.
    Microseconds,
    /// Milliseconds.
    Milliseconds,
    /// Seconds.
    Seconds,
    /// Bytes, which read rounded and are written plainly.
    Bytes,
    /// Sectors of 512 bytes a second.
    SectorsPerSecond,
    /// One of these words.
    Choice(&'static [&'static str]),
}

/// A setting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunable {
    /// The name of its file.
    pub name: &'static str,
    /// What it belongs to.
    pub scope: Scope,
    /// Its unit.
    pub unit: Unit,
    /// The least and the most that the kernel takes; it changes anything else to one of them without
    /// a word.
    pub range: (u64, u64),
    /// What a new device has, as the kernel prints it.
    pub default: &'static str,
    /// Whether it is kept in a superblock; else it is lost when the device stops.
    pub persists: bool,
    /// A value that is dangerous, and why.
    pub danger: Option<(&'static str, &'static str)>,
}

const U32: u64 = u32::MAX as u64;
const I32: u64 = i32::MAX as u64;
const NO_RANGE: (u64, u64) = (0, u64::MAX);
const FLAG: (u64, u64) = (0, 1);

const fn tunable(
    scope: Scope,
    name: &'static str,
    unit: Unit,
    range: (u64, u64),
    default: &'static str,
) -> Tunable {
    Tunable { name, scope, unit, range, default, persists: false, danger: None }
}

const fn kept(tunable: Tunable) -> Tunable {
    Tunable { persists: true, ..tunable }
}

const fn dangerous(tunable: Tunable, value: &'static str, why: &'static str) -> Tunable {
    Tunable { danger: Some((value, why)), ..tunable }
}

use Scope::{Backing, Cache, Internal, Set};
use Unit::{
    Bytes, Choice, Flag, Microseconds, Milliseconds, Number, Percent, Seconds, SectorsPerSecond,
};

/// All of them. Those that limit each other stand in the order in which they are saved.
pub const TUNABLES: &[Tunable] = &[
    kept(tunable(
        Backing,
        "cache_mode",
        Choice(&["writethrough", "writeback", "writearound", "none"]),
        NO_RANGE,
        "writethrough",
    )),
    tunable(Backing, "readahead_cache_policy", Choice(&["all", "meta-only"]), NO_RANGE, "all"),
    tunable(Backing, "stop_when_cache_set_failed", Choice(&["auto", "always"]), NO_RANGE, "auto"),
    tunable(Backing, "sequential_cutoff", Bytes, (0, U32), "4.0M"),
    tunable(Backing, "writeback_running", Flag, FLAG, "1"),
    tunable(Backing, "writeback_metadata", Flag, FLAG, "1"),
    tunable(Backing, "writeback_consider_fragment", Flag, FLAG, "1"),
    tunable(Backing, "writeback_percent", Percent, (0, 40), "10"),
    tunable(Backing, "writeback_delay", Seconds, (0, U32), "30"),
    tunable(Backing, "writeback_rate_minimum", SectorsPerSecond, (1, U32), "8"),
    tunable(Backing, "writeback_rate_update_seconds", Seconds, (1, 60), "5"),
    tunable(Backing, "writeback_rate_p_term_inverse", Number, (1, U32), "40"),
    tunable(Backing, "writeback_rate_i_term_inverse", Number, (1, U32), "10000"),
    tunable(Backing, "writeback_rate_fp_term_high", Number, (2, U32), "1000"),
    tunable(Backing, "writeback_rate_fp_term_mid", Number, (2, U32), "10"),
    tunable(Backing, "writeback_rate_fp_term_low", Number, (1, U32), "1"),
    tunable(Backing, "io_error_limit", Number, (0, I32), "64"),
    dangerous(
        kept(tunable(Set, "synchronous", Flag, FLAG, "1")),
        "0",
        "the next registration of the set throws away all that is on its cache, dirty data too",
    ),
    dangerous(
        tunable(Set, "errors", Choice(&["unregister", "panic"]), NO_RANGE, "unregister"),
        "panic",
        "the kernel panics at the first fatal error of the set",
    ),
    tunable(Set, "journal_delay_ms", Milliseconds, (0, 65535), "100"),
    tunable(Set, "io_error_limit", Number, (0, U32), "8"),
    tunable(Set, "io_error_halflife", Number, (0, U32), "0"),
    tunable(Set, "congested_read_threshold_us", Microseconds, (0, U32), "2000"),
    tunable(Set, "congested_write_threshold_us", Microseconds, (0, U32), "20000"),
    tunable(Internal, "gc_always_rewrite", Flag, FLAG, "1"),
    tunable(Internal, "btree_shrinker_disabled", Flag, FLAG, "0"),
    tunable(Internal, "copy_gc_enabled", Flag, FLAG, "0"),
    tunable(Internal, "idle_max_writeback_rate", Flag, FLAG, "1"),
    tunable(Internal, "gc_after_writeback", Flag, FLAG, "0"),
    kept(tunable(
        Cache,
        "cache_replacement_policy",
        Choice(&["lru", "fifo", "random"]),
        NO_RANGE,
        "lru",
    )),
    kept(tunable(Cache, "discard", Flag, FLAG, "0")),
];

/// The three that limit each other: low < mid < high.
pub(crate) const FP_TERMS: [&str; 3] =
    ["writeback_rate_fp_term_low", "writeback_rate_fp_term_mid", "writeback_rate_fp_term_high"];

/// The kernel keeps a multiple of this for `io_error_halflife`.
pub(super) const HALFLIFE_STEP: u64 = 88;

/// Why a value is not for a setting.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ValueError {
    /// No such setting.
    #[error("there is no setting {name:?} for {}", scope_name(*.scope))]
    Unknown {
        /// The name.
        name: String,
        /// What it was looked for in.
        scope: Scope,
    },
    /// Not a value of the unit.
    #[error("{name}: {value:?} is no {expected}")]
    NotAValue {
        /// The setting.
        name: &'static str,
        /// What was given.
        value: String,
        /// What is expected.
        expected: String,
    },
    /// The kernel would change it without a word.
    #[error("{name}: {value} is out of range: {least} to {most}")]
    OutOfRange {
        /// The setting.
        name: &'static str,
        /// The value in the kernel's unit.
        value: u64,
        /// The least.
        least: u64,
        /// The most.
        most: u64,
    },
    /// The kernel would round it without a word.
    #[error("{name}: the kernel keeps multiples of {step} only: {below} or {above}")]
    NotAMultiple {
        /// The setting.
        name: &'static str,
        /// Of what.
        step: u64,
        /// The next below.
        below: u64,
        /// The next above.
        above: u64,
    },
    /// It is dangerous.
    #[error("{name}={value}: {why}")]
    Dangerous {
        /// The setting.
        name: &'static str,
        /// The value.
        value: String,
        /// Why.
        why: &'static str,
    },
}

const fn scope_name(scope: Scope) -> &'static str {
    match scope {
        Backing => "a backing device",
        Set | Internal | Cache => "a set",
    }
}

impl Tunable {
    /// The setting `name` of a backing device, or of a set with all that belongs to it.
    ///
    /// # Errors
    /// When there is none.
    pub fn find(name: &str, of_backing: bool) -> Result<&'static Self, ValueError> {
        let fits = |it: &&Self| it.name == name && (it.scope == Backing) == of_backing;
        TUNABLES.iter().find(fits).ok_or_else(|| ValueError::Unknown {
            name: name.to_owned(),
            scope: if of_backing { Backing } else { Set },
        })
    }

    /// The directory of its file, from that of the backing device or set.
    pub fn directory(&self, of: &Attributes) -> Attributes {
        match self.scope {
            Backing | Set => of.clone(),
            Internal => of.below("internal"),
            Cache => of.below("cache0"),
        }
    }

    /// Its value as the kernel prints it; a choice without the words that were not chosen.
    pub fn read(&self, of: &Attributes) -> Option<String> {
        let at = self.directory(of);
        match self.unit {
            Choice(_) => at.choice(self.name),
            _ => at.text(self.name),
        }
    }

    /// The kernel's value for what a person wrote: a number in the kernel's unit, or one with a unit of
    /// its own (`4M`, `30s`, `10%`, `on`). `most` lowers the top of the range, where the set has a
    /// lower one.
    ///
    /// # Errors
    /// When it is no such value, or the kernel would change it.
    pub fn parse(
        &self,
        value: &str,
        most: Option<u64>,
        allow_danger: bool,
    ) -> Result<String, ValueError> {
        let not_a_value = || ValueError::NotAValue {
            name: self.name,
            value: value.to_owned(),
            expected: self.expected(),
        };
        let text = match self.unit {
            Choice(words) => {
                if !words.contains(&value) {
                    return Err(not_a_value());
                }
                value.to_owned()
            }
            Flag => match value {
                "1" | "on" | "yes" | "true" => "1".to_owned(),
                "0" | "off" | "no" | "false" => "0".to_owned(),
                _ => return Err(not_a_value()),
            },
            _ => {
                let number = self.number(value).ok_or_else(not_a_value)?;
                let (least, top) = self.range;
                let most = most.map_or(top, |most| most.min(top));
                if number < least || number > most {
                    return Err(ValueError::OutOfRange {
                        name: self.name,
                        value: number,
                        least,
                        most,
                    });
                }
                if self.name == "io_error_halflife" && number % HALFLIFE_STEP != 0 {
                    let below = number / HALFLIFE_STEP * HALFLIFE_STEP;
                    return Err(ValueError::NotAMultiple {
                        name: self.name,
                        step: HALFLIFE_STEP,
                        below,
                        above: below.saturating_add(HALFLIFE_STEP),
                    });
                }
                number.to_string()
            }
        };
        match self.danger {
            Some((dangerous, why)) if dangerous == text && !allow_danger => {
                Err(ValueError::Dangerous { name: self.name, value: text, why })
            }
            _ => Ok(text),
        }
    }

    /// What is expected for a value.
    fn expected(&self) -> String {
        match self.unit {
            Flag => "flag: 0 or 1".to_owned(),
            Number => "whole number".to_owned(),
            Percent => "whole percentage".to_owned(),
            Microseconds => "time: microseconds, or with us, ms or s".to_owned(),
            Milliseconds => "time: milliseconds, or with ms or s".to_owned(),
            Seconds => "time: seconds, or with s, m or h".to_owned(),
            Bytes => "size: bytes, or with k, M or G".to_owned(),
            SectorsPerSecond => {
                "rate: sectors a second, or bytes a second with k, M or G".to_owned()
            }
            Choice(words) => format!("choice: {}", words.join(", ")),
        }
    }

    fn number(&self, value: &str) -> Option<u64> {
        let digits = value.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = value.split_at_checked(digits)?;
        let number: u64 = number.parse().ok()?;
        let factor = match (self.unit, unit) {
            (_, "") => return Some(number),
            (Percent, "%") | (Microseconds, "us") | (Milliseconds, "ms") | (Seconds, "s") => 1,
            (Microseconds, "ms") | (Milliseconds, "s") => 1000,
            (Microseconds, "s") => 1_000_000,
            (Seconds, "m") => 60,
            (Seconds, "h") => 3600,
            (Bytes | SectorsPerSecond, unit) => bytes_of(unit)?,
            _ => return None,
        };
        let number = number.checked_mul(factor)?;
        Some(if self.unit == SectorsPerSecond { number / 512 } else { number })
    }

    /// Whether `read`, as the kernel prints it, is what was `written`.
    pub fn is(&self, read: &str, written: &str) -> bool {
        match self.unit {
            Bytes => written.parse().is_ok_and(|written| {
                read.parse::<Rounded>().is_ok_and(|read| read.contains(written))
            }),
            _ => read == written,
        }
    }
}

fn bytes_of(unit: &str) -> Option<u64> {
    let unit = unit.trim_end_matches("/s").to_ascii_lowercase();
    let letter = unit.trim_end_matches("ib").trim_end_matches('b');
    Some(match letter {
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        "t" => 1 << 40,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backing(name: &str, value: &str) -> Result<String, ValueError> {
        Tunable::find(name, true).unwrap().parse(value, None, false)
    }

    #[test]
    fn values_become_the_kernels() {
        for (name, value, written) in [
            ("sequential_cutoff", "4M", "4194304"),
            ("sequential_cutoff", "1000", "1000"),
            ("sequential_cutoff", "0", "0"),
            ("writeback_percent", "10%", "10"),
            ("writeback_delay", "2m", "120"),
            ("writeback_rate_minimum", "1M", "2048"),
            ("writeback_rate_minimum", "16", "16"),
            ("writeback_running", "on", "1"),
            ("cache_mode", "writeback", "writeback"),
        ] {
            assert_eq!(backing(name, value).as_deref(), Ok(written), "{name}={value}");
        }
    }

    #[test]
    fn what_the_kernel_would_change_is_refused() {
        for (name, value) in [
            ("writeback_percent", "41"),
            ("sequential_cutoff", "4G"),
            ("writeback_rate_update_seconds", "0"),
            ("writeback_rate_update_seconds", "61"),
        ] {
            assert!(matches!(backing(name, value), Err(ValueError::OutOfRange { .. })), "{name}");
        }
        let halflife = Tunable::find("io_error_halflife", false).unwrap();
        assert!(matches!(
            halflife.parse("100", None, false),
            Err(ValueError::NotAMultiple { below: 88, above: 176, .. })
        ));
        // The set's own limit is lower than that of the table.
        let percent = Tunable::find("writeback_percent", true).unwrap();
        assert!(percent.parse("30", Some(20), false).is_err());
    }

    #[test]
    fn nonsense_and_danger_are_refused() {
        for (name, value) in [
            ("cache_mode", "Writeback"),
            ("sequential_cutoff", "4.0M"),
            ("sequential_cutoff", "-1"),
            ("sequential_cutoff", ""),
            ("writeback_running", "2"),
            ("writeback_delay", "5x"),
        ] {
            let error = backing(name, value).unwrap_err();
            assert!(matches!(error, ValueError::NotAValue { .. }), "{name}={value}: {error}");
        }
        let synchronous = Tunable::find("synchronous", false).unwrap();
        assert!(matches!(synchronous.parse("0", None, false), Err(ValueError::Dangerous { .. })));
        assert_eq!(synchronous.parse("0", None, true).as_deref(), Ok("0"));
        assert_eq!(synchronous.parse("1", None, false).as_deref(), Ok("1"));
        assert!(Tunable::find("io_disable", true).is_err());
        assert!(Tunable::find("errors", true).is_err());
    }

    #[test]
    fn rounded_values_are_recognised() {
        let cutoff = Tunable::find("sequential_cutoff", true).unwrap();
        assert!(cutoff.is("4.0M", "4194304") && cutoff.is("0.9M", "1024000"));
        assert!(!cutoff.is("4.0M", "4194303") && !cutoff.is("4", "4"));
    }
}
