//! Crate model1-checkpoint of MODEL1 Explorer.
