//! Runs from outside. One binary, because each compiles everything below anew.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod activations;
mod common;
mod duquant;
mod flatquant;
mod flatquant_fallback;
mod put_back;
mod quarot;
mod run;
mod shared;
mod tables;
