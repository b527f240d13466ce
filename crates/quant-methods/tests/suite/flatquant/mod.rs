//! FlatQuant's training state: the gradient of every parameter beside the official implementation, and beside finite
//! differences where nothing is rounded.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test helper fails by panicking")]

mod case;
mod golden;
mod guards;
mod lesson;
mod merge;
mod properties;
mod train;
