//! Families, blocks, streams and generation from outside. One binary, because each compiles the code of blocks anew.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod block;
mod common;
mod config;
mod config_meaning;
mod executed;
mod generate;
mod goldens;
mod kv;
mod online;
mod rope;
mod smoothing;
mod stream;
mod training;
