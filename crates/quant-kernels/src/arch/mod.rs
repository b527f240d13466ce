//! Instruction-set specific code: the only `unsafe` of the crate.
//!
//! | file | what |
//! |---|---|
//! | `level` | which instruction sets this machine has |
//! | `kernel` | the contract of a register tile: one implementation per instruction set and arithmetic |
//! | `portable`, `x86/*` | the implementations |
//! | `pack`, `buffer` | operands copied into panels the tiles read linearly |
//! | `driver` | cache blocking, regions, threads: written once over the contract |
//! | `blocks` | one small left operand against many right ones, in place |
//! | `hadamard` | the butterflies of a Walsh-Hadamard transform |
//! | `dispatch` | from a [`Level`](crate::Level) and a [`Compute`](crate::Compute) to a tile |
//! | `heap` | giving freed memory back |
//!
//! A new instruction set is a new file with a `Kernel` implementation and one line in `dispatch`.

mod blocks;
mod buffer;
mod dispatch;
mod driver;
mod hadamard;
mod heap;
mod kernel;
mod level;
mod pack;
mod portable;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) use blocks::mix_blocks;
pub(crate) use dispatch::{
    Dispatch, PackedOperand, pack_columns, pack_operand, packed_element_bytes, product, product_packed,
};
pub(crate) use driver::Region;
pub(crate) use hadamard::Butterflies;
pub use heap::return_freed_memory;
pub(crate) use kernel::WIDTH;
pub use level::Level;
