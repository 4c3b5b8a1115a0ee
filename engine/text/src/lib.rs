//! Crate model1-text of MODEL1 Explorer.
