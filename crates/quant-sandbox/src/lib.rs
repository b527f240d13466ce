//! Runs untrusted Python programs, and grades answers to programming problems with them.
//!
//! ```no_run
//! use quant_sandbox::{Limits, Sandbox, SandboxOptions, Status};
//!
//! // Tries every wall from inside; an error says which one is missing.
//! let sandbox = Sandbox::find(&SandboxOptions::default())?;
//! let run = sandbox.run("print(open('/etc/passwd').read())", b"", &Limits::default())?;
//! assert_eq!(run.status, Status::Exited(1));
//! # Ok::<(), quant_sandbox::SandboxError>(())
//! ```
//!
//! | a program cannot | because of |
//! |---|---|
//! | read files of the host | a mount namespace with the interpreter's files alone, read-only; no `/proc`, no `/etc`; no open file but its three |
//! | write anything but its `/tmp` | all else is read-only; `/tmp` is memory of a limited size |
//! | reach a network, or the loopback | a network namespace |
//! | see or signal other processes | process and IPC namespaces |
//! | stay | bubblewrap's first process dies with it, and the kernel ends the namespace |
//! | make many processes | `RLIMIT_NPROC`, from a user who is not root: root becomes another one first |
//! | take much memory, time, or disk | `RLIMIT_AS`, `RLIMIT_CPU`, `RLIMIT_FSIZE` and a clock and a look at the sum of memory outside; no memory files, no shared segments |
//! | write much output | a limit outside |
//! | get more rights | no capability, no further user namespaces, a filter of system calls |
//!
//! It takes [bubblewrap](https://github.com/containers/bubblewrap) 0.8, Python 3, and for root util-linux. Where a wall cannot be had
//! nothing is run. What is not bounded: the kernel's own memory for many empty files in a scratch, which lasts as long as the program
//! does, and what a fault of the kernel allows.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
mod elsewhere;
mod error;
mod limits;
pub mod livecodebench;
mod options;
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
mod walls;

#[cfg(not(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64"))))]
pub use elsewhere::Sandbox;
pub use error::SandboxError;
pub use limits::{Limits, Run, Status};
pub use options::SandboxOptions;
#[cfg(all(target_os = "linux", any(target_arch = "x86_64", target_arch = "aarch64")))]
pub use walls::Sandbox;
