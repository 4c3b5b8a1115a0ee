//! Test harness of MODEL1 Explorer.
