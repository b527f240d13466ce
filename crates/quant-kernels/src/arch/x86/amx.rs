//! Tiles of AMX: eight registers of 16 rows of 64 bytes, and instructions that multiply whole registers.
//!
//! A tile of a product is 32 x 32 sums in four registers; two more hold 32 rows of A, and two 32 columns of B, over 16 words of the
//! summed index. A register of A has the words of a row side by side ([`Panel::RUN`]), one of B has the words of 16
//! columns, which is how every panel of B lies anyway. A product of two registers takes 16 cycles, a load 8 of another unit:
//! four products for four loads keep the multipliers busy if A comes from the first-level cache and B from the second; with both from the
//! second, which gives these processors 48 bytes a cycle of the 64 that this takes, a quarter of the time is lost. So blocks of the summed
//! index are short, and the sums between them are the task's own ([`kept`](crate::arch::kept)).
//!
//! The registers are no state of the compiler's: each loop is one block of assembly, and a [`Session`] has them set up before and gives
//! them back after.

use std::arch::asm;
use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
use std::marker::PhantomData;

use super::avx512bf16::{Avx512Bf16, pair};
use super::integer::{WideBytes, bytes};
use super::tile::panel;
use super::transpose::transpose_words;
use crate::arch::integer_level::{IntegerLevel, IntegerSet};
use crate::arch::kernel::{Kernel, LeftWord, Panel, RightWord, STEP, SUM_INTEGER};
use crate::arch::level::{InstructionSet, Level};

/// What `ldtilecfg` reads.
#[repr(C, align(64))]
struct TileConfig {
    palette: u8,
    start_row: u8,
    reserved: [u8; 14],
    bytes_per_row: [u16; 16],
    rows: [u8; 16],
}

/// Eight registers of the full size, set up on the thread that made it, until it is dropped.
pub(in crate::arch) struct Session(PhantomData<*const ()>);

impl Session {
    /// # Safety
    /// The machine has tiles and this process may use them.
    unsafe fn new() -> Self {
        const CONFIG: TileConfig = {
            let (mut bytes_per_row, mut rows) = ([0; 16], [0; 16]);
            let mut register = 0;
            while register < 8 {
                bytes_per_row[register] = ROW_BYTES as u16;
                rows[register] = STEP as u8;
                register += 1;
            }
            TileConfig { palette: 1, start_row: 0, reserved: [0; 14], bytes_per_row, rows }
        };
        static FULL: TileConfig = CONFIG;
        // SAFETY: 64 readable bytes; the instruction is there.
        unsafe {
            asm!("ldtilecfg [{}]", in(reg) &raw const FULL, options(nostack, readonly, preserves_flags));
        };
        Self(PhantomData)
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // SAFETY: there is a session, so the instruction is there. No register holds anything that is still wanted.
        unsafe { asm!("tilerelease", options(nostack, nomem, preserves_flags)) };
    }
}

/// Bytes of a row of a register.
const ROW_BYTES: usize = 64;
/// Rows and columns of a tile: two registers each.
const SIDE: usize = 2 * STEP;

/// A function `sums(both, begins, steps, a, b, out, stride)`: the sums of 16 rows, or of 32 with `both`, and 32 columns over `16 * steps`
/// words, which begin there or go on from those at `out`, whose rows are `stride` bytes apart.
macro_rules! sums {
    ($name:ident, $dot:literal) => {
        /// # Safety
        /// A [`Session`] is open on this thread; `a` and `b` point to `512 * steps` words of their panels, `steps >= 1`; `out` is valid for
        /// reads, unless sums begin, and writes of 128 bytes at each row.
        unsafe fn $name(
            both: bool,
            begins: bool,
            steps: usize,
            a: *const u8,
            b: *const u8,
            out: *mut u8,
            stride: isize,
        ) {
            if both {
                // SAFETY: forwarded from the caller.
                unsafe {
                    asm!(
                        "test {begins}, {begins}",
                        "jnz 2f",
                        "tileloadd tmm0, [{out} + {stride}]",
                        "tileloadd tmm1, [{out} + {stride} + 64]",
                        "tileloadd tmm2, [{below} + {stride}]",
                        "tileloadd tmm3, [{below} + {stride} + 64]",
                        "jmp 3f",
                        "2:",
                        "tilezero tmm0",
                        "tilezero tmm1",
                        "tilezero tmm2",
                        "tilezero tmm3",
                        "3:",
                        "tileloadd tmm4, [{a} + {row}]",
                        "tileloadd tmm6, [{b} + {pair}]",
                        concat!($dot, " tmm0, tmm4, tmm6"),
                        "tileloadd tmm7, [{b} + {pair} + 64]",
                        concat!($dot, " tmm1, tmm4, tmm7"),
                        "tileloadd tmm5, [{a} + {row} + 1024]",
                        concat!($dot, " tmm2, tmm5, tmm6"),
                        concat!($dot, " tmm3, tmm5, tmm7"),
                        "add {a}, 2048",
                        "add {b}, 2048",
                        "dec {steps}",
                        "jnz 3b",
                        "tilestored [{out} + {stride}], tmm0",
                        "tilestored [{out} + {stride} + 64], tmm1",
                        "tilestored [{below} + {stride}], tmm2",
                        "tilestored [{below} + {stride} + 64], tmm3",
                        begins = in(reg) u64::from(begins),
                        a = inout(reg) a => _,
                        b = inout(reg) b => _,
                        steps = inout(reg) steps => _,
                        row = in(reg) ROW_BYTES,
                        pair = in(reg) 2 * ROW_BYTES,
                        out = in(reg) out,
                        below = in(reg) out.wrapping_offset(STEP as isize * stride),
                        stride = in(reg) stride,
                        out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _,
                        out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                        options(nostack),
                    );
                }
            } else {
                // SAFETY: forwarded from the caller.
                unsafe {
                    asm!(
                        "test {begins}, {begins}",
                        "jnz 2f",
                        "tileloadd tmm0, [{out} + {stride}]",
                        "tileloadd tmm1, [{out} + {stride} + 64]",
                        "jmp 3f",
                        "2:",
                        "tilezero tmm0",
                        "tilezero tmm1",
                        "3:",
                        "tileloadd tmm4, [{a} + {row}]",
                        "tileloadd tmm6, [{b} + {pair}]",
                        concat!($dot, " tmm0, tmm4, tmm6"),
                        "tileloadd tmm7, [{b} + {pair} + 64]",
                        concat!($dot, " tmm1, tmm4, tmm7"),
                        "add {a}, 2048",
                        "add {b}, 2048",
                        "dec {steps}",
                        "jnz 3b",
                        "tilestored [{out} + {stride}], tmm0",
                        "tilestored [{out} + {stride} + 64], tmm1",
                        begins = in(reg) u64::from(begins),
                        a = inout(reg) a => _,
                        b = inout(reg) b => _,
                        steps = inout(reg) steps => _,
                        row = in(reg) ROW_BYTES,
                        pair = in(reg) 2 * ROW_BYTES,
                        out = in(reg) out,
                        stride = in(reg) stride,
                        out("tmm0") _, out("tmm1") _, out("tmm4") _, out("tmm6") _, out("tmm7") _,
                        options(nostack),
                    );
                }
            }
        }
    };
}
sums!(sums_i8, "tdpbssd");
sums!(sums_bf16, "tdpbf16ps");

/// Elements of 16 words of a lane, times 8: two panels of 32 lanes over so many of them, a tile of sums and what passes by fit into a
/// first-level cache of 48 KB.
const fn block(elements_of_a_word: usize) -> usize {
    8 * STEP * elements_of_a_word
}

/// Rows and columns of a task: both over a block and their sums are 1.4 MB, of 2 MB that the second-level caches of processors with tiles
/// have. Panels come from the third level, a sixth as fast, so tasks of few rows or columns wait for it.
const TASK_LANES: usize = 15 * SIDE;

/// Implements [`Kernel`] for `$name` with tiles of 32 x 32 by the function of [`sums!`].
macro_rules! tile_kernel {
    (
        $(#[$doc:meta])* $name:ident, $level:ident where $has:expr, $in:ident to $out:ident, alpha $alpha:ty,
        panels $left:ident, $right:ident, block $kc:expr, sum $sum:expr, sums $sums:ident
    ) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug)]
        pub(in crate::arch) struct $name(());

        impl $name {
            /// The kernel, if the level has its instructions.
            pub(in crate::arch) fn new(level: $level) -> Option<Self> {
                let has: fn($level) -> bool = $has;
                has(level).then_some(Self(()))
            }
        }

        // SAFETY: `new` asks a level, which only detection makes, for the instructions.
        unsafe impl Kernel for $name {
            type In = $in;
            type Out = $out;
            type Alpha = $alpha;
            type Left = $left;
            type Right = $right;
            type Session = Session;

            const MR: usize = SIDE;
            const NR: usize = SIDE;
            const KC: usize = $kc;
            const SUM: usize = $sum;
            const TASK_BYTES: (usize, usize) = {
                let lane = Self::KC / Self::PAIR * size_of::<u32>();
                (TASK_LANES * lane, TASK_LANES * lane)
            };
            const EDGE: f64 = 80.0;

            fn session(self) -> Session {
                // SAFETY: the level proves that there are tiles.
                unsafe { Session::new() }
            }

            #[inline(always)]
            unsafe fn tile(
                self,
                rows: usize,
                words: usize,
                a: *const LeftWord<Self>,
                b: *const RightWord<Self>,
                _alpha: $alpha,
                accumulate: bool,
                c: *mut $out,
                stride: isize,
            ) {
                let bytes = stride * size_of::<$out>() as isize;
                // SAFETY: the caller's panels and tile, which has `MR` rows.
                unsafe { $sums(rows > STEP, !accumulate, words / STEP, a.cast(), b.cast(), c.cast(), bytes) };
            }
        }
    };
}

/// A of the products of bytes.
#[derive(Clone, Copy, Debug)]
pub(in crate::arch) struct RowsOfBytes;
panel! { RowsOfBytes, i8 as u32 of 4, bytes, transpose [transpose_words], run STEP }

/// A of the products of bf16.
#[derive(Clone, Copy, Debug)]
pub(in crate::arch) struct RowsOfPairs;
panel! { RowsOfPairs, f32 as u32 of 2, pair, transpose [transpose_words], run STEP, rounds true }

tile_kernel! {
    /// 32 x 32 i32 sums of products of bytes.
    AmxI8, IntegerLevel where |level| level.kind() == IntegerSet::AmxInt8, i8 to i32, alpha (),
    panels RowsOfBytes, WideBytes, block block(4), sum SUM_INTEGER, sums sums_i8
}

tile_kernel! {
    /// 32 x 32 f32 sums of bf16 products.
    ///
    /// Over each 16 words the products of the low halves are summed one by one, those of the high halves as well, and both
    /// sums together are added to the running one. Every step is a fused multiply-add or an addition that rounds to nearest even;
    /// subnormal operands count as zero, and subnormal results become it.
    AmxBf16, Level where |level| level.kind() == InstructionSet::AmxBf16, f32 to f32, alpha f32,
    panels RowsOfPairs, Avx512Bf16, block block(2), sum SUM_BF16, sums sums_bf16
}

/// Elements over which a sum of bf16 products runs: 64 additions to it, so that it is as exact as one by f32 multiply-adds.
pub(in crate::arch) const SUM_BF16: usize = 2048;

/// What the registers hold whose rate is measured, ones in bf16: of zeros the rate may be one that no product has.
static ONES: [u16; 512] = [0x3f80; 512];

/// A function that multiplies registers `4 * steps` times, four sums at a time, and nothing else.
macro_rules! chains {
    ($name:ident, $dot:literal) => {
        /// # Safety
        /// A [`Session`] is open on this thread.
        unsafe fn $name(steps: usize) {
            // SAFETY: registers alone, and 16 rows of the ones, which are a whole register.
            unsafe {
                asm!(
                    "tileloadd tmm4, [{ones} + {row}]",
                    "tileloadd tmm6, [{ones} + {row}]",
                    "test {steps}, {steps}",
                    "jz 3f",
                    "2:",
                    concat!($dot, " tmm0, tmm4, tmm6"),
                    concat!($dot, " tmm1, tmm4, tmm6"),
                    concat!($dot, " tmm2, tmm4, tmm6"),
                    concat!($dot, " tmm3, tmm4, tmm6"),
                    "dec {steps}",
                    "jnz 2b",
                    "3:",
                    steps = inout(reg) steps => _,
                    ones = in(reg) ONES.as_ptr(),
                    row = in(reg) ROW_BYTES,
                    out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm6") _,
                    options(nostack, readonly),
                );
            }
        }
    };
}
chains!(chains_i8, "tdpbssd");
chains!(chains_bf16, "tdpbf16ps");

/// Operations of a product of two registers: 16 x 16 sums over 16 words, a product and an addition for each element of a word.
const fn operations(elements: u64) -> u64 {
    2 * (STEP * STEP * STEP) as u64 * elements
}

/// Multiplies registers of bytes `4 * steps` times and gives the operations done; none without tiles.
pub(super) fn integer_tile_operations(level: IntegerLevel, steps: usize) -> Option<u64> {
    let kernel = AmxI8::new(level)?;
    let _session = kernel.session();
    // SAFETY: the session is open.
    unsafe { chains_i8(steps) };
    Some(4 * steps as u64 * operations(4))
}

/// Multiplies registers of bf16 `4 * steps` times and gives the operations done; none without tiles.
pub(super) fn bf16_tile_operations(level: Level, steps: usize) -> Option<u64> {
    let kernel = AmxBf16::new(level)?;
    let _session = kernel.session();
    // SAFETY: the session is open.
    unsafe { chains_bf16(steps) };
    Some(4 * steps as u64 * operations(2))
}
