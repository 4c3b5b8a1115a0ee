//! MODEL1 Explorer in a native window.

fn main() {}
