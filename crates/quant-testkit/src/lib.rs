//! Test support: golden files, tiny models, strategies.
#![forbid(unsafe_code)]
