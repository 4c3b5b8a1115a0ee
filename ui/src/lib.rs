//! The interface of MODEL1 Explorer.
