//! Bytes to typed values and back, without I/O.
//!
//! Raw structures are little-endian and have their size and offsets asserted at compile time.
//! What a structure does not model survives: an edit patches the bytes that were read. Parsing
//! never panics, whatever the input; lengths are checked before use.
//!
//! jset, bset, prio_set, uuid entries and bkeys are in the writing machine's byte order; these
//! readers take little-endian only, which is what every supported machine of bcache writes
//! (docs/on-disk-format.md, Units).

pub mod bkey;
pub mod bset;
pub(crate) mod damage;
pub(crate) mod flip;
pub mod jset;
pub mod prio_set;
pub mod superblock;
pub mod uuid_entry;
pub mod verdict;

/// The magics that a set's uuid is mixed into (docs/on-disk-format.md §0).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SetMagic(pub u64);

impl SetMagic {
    const JSET: u64 = 0x2452_35c1_a362_5032;
    const PSET: u64 = 0x6750_e15f_8733_7f91;
    const BSET: u64 = 0x9013_5c78_b99e_07f5;

    /// From the set's uuid: its first eight bytes.
    pub fn from_set_uuid(set_uuid: &uuid::Uuid) -> Self {
        let (first, _) = set_uuid.as_u64_pair();
        Self(first.swap_bytes())
    }

    /// The first half of the set's uuid; the other half is zero.
    pub(crate) const fn half_of_set_uuid(self) -> uuid::Uuid {
        uuid::Uuid::from_u64_pair(self.0.swap_bytes(), 0)
    }

    /// Magic of a journal entry.
    pub const fn jset(self) -> u64 {
        self.0 ^ Self::JSET
    }

    /// The set whose journal entries have `magic`.
    pub const fn of_jset(magic: u64) -> Self {
        Self(magic ^ Self::JSET)
    }

    /// Magic of a prio_set.
    pub const fn pset(self) -> u64 {
        self.0 ^ Self::PSET
    }

    /// Magic of a btree node set.
    pub const fn bset(self) -> u64 {
        self.0 ^ Self::BSET
    }
}
