//! Crate model1-protocol of MODEL1 Explorer.
