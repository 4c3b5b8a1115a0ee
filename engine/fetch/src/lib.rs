//! Crate model1-fetch of MODEL1 Explorer.
