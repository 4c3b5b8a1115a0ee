//! Tests of MODEL1's prompt format. Expected prompts were written by the public Python renderer.
