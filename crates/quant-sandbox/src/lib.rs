//! Runs untrusted Python programs.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod error;
#[cfg(target_os = "linux")]
mod execute;
#[cfg(target_os = "linux")]
mod filter;
#[cfg(target_os = "linux")]
mod find;
#[cfg(target_os = "linux")]
mod interpreter;
mod limits;
#[cfg(target_os = "linux")]
mod probe;
#[cfg(target_os = "linux")]
mod sandbox;

pub use error::SandboxError;
pub use find::SandboxOptions;
pub use limits::{Limits, Run, Status};
pub use sandbox::Sandbox;
