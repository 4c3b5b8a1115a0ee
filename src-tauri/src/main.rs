//! MODEL1 Explorer: the desktop shell.

fn main() {}
