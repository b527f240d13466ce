//! The program end to end: what it reads, what it writes, what it says. One binary, because each takes a minute to compile; those that
//! run for minutes are their own, beside this folder.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod analyze;
mod backend;
mod bad_input;
mod bad_recipes;
mod bench;
mod browser;
mod calibration;
mod cards;
mod cli;
#[path = "../common/mod.rs"]
mod common;
mod data_files;
mod doctor;
mod downloads;
mod evaluation;
mod finished;
mod folders;
mod fused;
mod generate;
mod learned;
mod low_bits;
mod recipes;
mod rotations;
mod servers;
mod stopping;
mod study;
mod tables;
