//! Reading, writing, formats and the rules of loaders from outside. One binary: twenty would take minutes to compile.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[macro_use]
mod common;

mod checkpoint;
mod folder_checks;
mod folders;
mod formats_compact;
mod formats_goldens;
mod formats_refusals;
mod formats_round_trip;
mod header;
mod journal;
mod kronecker_pairs;
mod loader_mutations;
mod names;
mod online_transforms;
mod output;
mod output_place;
mod outside_format;
mod read;
mod shared_folders;
mod tables;
mod verify_rules;
