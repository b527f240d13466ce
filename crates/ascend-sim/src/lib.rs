//! CANN's C interface on host memory, for tests without an NPU. Unpublished.
//!
//! The library file exports the functions that `ascend-kernels/cann.h` declares. What it computes is written from the documents of
//! CANN in code of its own, with none of `quant-core`'s arithmetic, so that a comparison of the two can fail.
//!
//! - **Device memory is host memory**, filled with a pattern when it is made and when it is freed.
//! - **Streams are queues**: nothing runs before somebody synchronises. A missing synchronisation shows as old data, and the order
//!   of everything is the same in every run.
//! - **Documented errors** come back with CANN's codes and a message. What the documents leave undefined (use after destroy, double
//!   free, a workspace too small, two streams on one memory without an event between them) is a *report*: the process ends with the
//!   simulator's own text, never with a code of CANN. A test that wants to see a report turns that off ([`Simulator::keep_reports`]).
//! - **Faults** can be injected at every call, by its number. A call that releases something releases it and then fails.
//! - **Behaviours that CANN's documents leave open or give two of** are switches ([`Switch`]).
//!
//! A test loads its own copy of the library file with [`Simulator::new`]: counts, faults and switches are nobody else's.

#[allow(
    non_snake_case,
    clippy::missing_safety_doc,
    reason = "the names are those of the C interface, and so are its promises"
)]
mod abi;
mod arithmetic;
mod control;
#[allow(
    dead_code,
    missing_docs,
    non_camel_case_types,
    non_snake_case,
    unreachable_pub,
    missing_debug_implementations,
    clippy::all,
    clippy::undocumented_unsafe_blocks,
    clippy::expect_used,
    clippy::use_self,
    unused_qualifications,
    reason = "made by bindgen; the numbers of the header are those of the simulator, and its types check the simulator's functions"
)]
mod generated {
    include!("../../ascend-kernels/src/ffi/generated.rs");
}
mod memory;
mod operator;
mod refusal;
mod streams;
mod tensor;
mod world;

pub use control::{Kind, Mistake, Simulator, Step, Switch};
