//! Invalidation on cache sets made for it: what may go and what not, writes as planned, power cuts,
//! failing and lying devices.

mod choice;
mod sample;
mod sets;
mod writes;
