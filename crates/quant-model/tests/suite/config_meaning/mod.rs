//! What variants of a `config.json` mean: a table of changes and of what the config classes of transformers make of them
//! (5.24, and 4.57 where it differs and says so).

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test helper fails by panicking")]

mod keys;
mod longrope;
mod rope;
mod table;
mod windows;
