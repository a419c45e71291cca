//! bcache-bench

fn main() {}
