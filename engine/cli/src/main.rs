//! The `model1` command.
fn main() {}
