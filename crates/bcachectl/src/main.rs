//! bcachectl

fn main() {}
