//! The engine of MODEL1 Explorer.
