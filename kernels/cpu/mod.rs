//! CPU kernels: plain Rust reference forms and AVX2 / AVX-512 forms chosen at run time.
