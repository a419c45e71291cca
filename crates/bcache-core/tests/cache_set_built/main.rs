//! The reader and the check on cache sets that were made for it: sound ones, and each damage that a
//! finding exists for.

mod backing;
mod damages;
mod findings;
mod journal;
mod noise;
mod reading;
mod repair;
mod sample;
