//! Instruction-set specific code: the only `unsafe` of the crate.
//!
//! | file | what |
//! |---|---|
//! | `level`, `processor` | which instruction sets this machine has |
//! | `kernel` | the contract of a register tile: one implementation per instruction set and arithmetic |
//! | `portable`, `x86/*` | the implementations |
//! | `pack`, `buffer` | operands copied into panels the tiles read linearly |
//! | `operand` | whole operands as panels, and where the columns of a product come from |
//! | `driver`, `pieces` | cache blocking and threads: written once over the contract |
//! | `block` | what a task takes at a time: a block of the summed index, tiles of whole sums |
//! | `sink` | where tiles go: into a region of a matrix, or to a function that finishes them |
//! | `kept` | the sums of a task between blocks, for kernels whose sums run over several |
//! | `packed`, `lanes` | products of floats with levels of 4 and 8 bits, over the registers of an instruction set |
//! | `grouped`, `nibbles` | the same for products of bytes with levels of 4 bits |
//! | `mix` | one small left operand against many right ones, in place |
//! | `peak` | what the multipliers of an instruction set do at most |
//! | `hadamard` | the butterflies of a Walsh-Hadamard transform |
//! | `products` | the products of each element type, compiled once for all crates |
//! | `dispatch` | from a [`Level`](crate::Level) and a [`Compute`](crate::Compute) to a tile |
//! | `integer`, `integer_level` | the same for products of bytes: from an [`IntegerLevel`](crate::IntegerLevel) to a tile |
//! | `heap` | giving freed memory back |
//!
//! A new instruction set is a new file with a `Kernel` implementation and one line in `dispatch` or
//! `integer`.

mod block;
mod buffer;
mod dispatch;
mod driver;
mod grouped;
mod hadamard;
mod heap;
mod integer;
mod integer_level;
mod kept;
mod kernel;
mod lanes;
mod level;
mod mix;
mod nibbles;
mod operand;
mod pack;
mod packed;
mod peak;
mod pieces;
mod portable;
#[cfg(target_arch = "x86_64")]
mod processor;
mod products;
mod sink;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86;

pub(crate) use dispatch::{PackedOperand, has_adjacent_columns, product_levels};
pub(crate) use grouped::{MAX_ROWS, PER_WORD, group_sums, most_rows, pack_tokens, tile_rows};
pub(crate) use hadamard::Butterflies;
pub use heap::return_freed_memory;
pub(crate) use integer::{PackedInteger, integer_product, integer_through, pack_integer};
pub use integer_level::IntegerLevel;
pub(crate) use kernel::WIDTH;
pub use level::Level;
pub(crate) use packed::{MAX_PANELS, MAX_TOKENS, decode, zeros_are_plain};
pub use peak::{bf16_peak_operations, integer_peak_operations};
pub(crate) use products::Products;
pub(crate) use sink::Region;
