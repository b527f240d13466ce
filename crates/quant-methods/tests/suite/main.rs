//! Methods against goldens and by their properties. One binary, because each compiles the code of blocks anew.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod awq;
mod awq_block;
mod awq_goldens;
mod flatquant;
mod rtn;
mod smoothquant;
mod smoothquant_goldens;
mod smoothquant_pairs;
