//! What says whose a volume is, and how sure that is.

use crate::ops::repair::Class;

/// What says whose a volume is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Witness {
    /// The slot itself.
    Slot,
    /// Its clean data is the device's.
    Data,
    /// An older table, which is of this set for certain.
    OlderTable,
    /// An older table that nothing confirms.
    FoundTable,
    /// A person says so.
    Named,
    /// It is the only one left, and so is the device.
    OnlyOne,
}

impl Witness {
    /// How sure that is.
    pub const fn class(self) -> Class {
        match self {
            Self::Slot | Self::Data | Self::OlderTable => Class::Certain,
            Self::FoundTable => Class::Likely,
            Self::Named | Self::OnlyOne => Class::Guess,
        }
    }
}

/// What stands behind "known by".
impl std::fmt::Display for Witness {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Slot => "its slot",
            Self::Data => "its data",
            Self::OlderTable => "an older table",
            Self::FoundTable => "a table that may be of another set",
            Self::Named => "a person's claim",
            Self::OnlyOne => "elimination: no other volume and no other device is left",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::repair::Reason;

    #[test]
    fn a_reason_is_a_sentence_whatever_the_witness() {
        for (witness, by) in [
            (Witness::Slot, "its slot"),
            (Witness::Data, "its data"),
            (Witness::OlderTable, "an older table"),
            (Witness::FoundTable, "a table that may be of another set"),
            (Witness::Named, "a person's claim"),
            (Witness::OnlyOne, "elimination: no other volume and no other device is left"),
        ] {
            let reason = Reason::UuidTable { known: [(3, witness)].into() };
            assert_eq!(reason.to_string(), format!("uuid table: volume 3 is known by {by}"));
        }
    }
}
