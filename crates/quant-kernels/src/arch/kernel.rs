//! The contract of a register tile.

use crate::scalar::Scalar;

/// The widest tile any kernel has, in elements: the size of the stack buffer for tiles that cross an edge.
pub(super) const MAX_TILE: usize = 512;

/// Lanes and words of a block that packing transposes: with 4-byte words one cache line of each source lane.
pub(super) const STEP: usize = 16;

/// Values that travel together through the butterflies of a Walsh-Hadamard transform: one AVX-512 register of f32.
pub(crate) const WIDTH: usize = 16;

/// One way to compute a small tile of a product from packed panels.
///
/// A panel holds `W` lanes (rows of A with `W = MR`, columns of B with `W = NR`) over a range of the summed index:
/// word `d` of lane `l` is at `d * W + l`, and a word holds `PAIR` consecutive elements.
///
/// Whatever the tile shape, output element `(i, j)` is `alpha * s`, added to the old value if asked, where `s`
/// sums the products in increasing order of the summed index from zero. For `PAIR = 1` each step is one fused
/// multiply-add, so all kernels of one element type agree to the bit; `PAIR = 2` leaves the two products of a word
/// to the instruction.
///
/// # Safety
/// An implementor must be constructible only where its instructions exist, because `tile` runs them.
pub(crate) unsafe trait Kernel: Copy + Send + Sync {
    /// Element type of the operands and of the result.
    type Elem: Scalar;
    /// Storage of `PAIR` packed elements.
    type Word: Copy + Send + Sync;

    /// Rows of a tile.
    const MR: usize;
    /// Columns of a tile.
    const NR: usize;
    /// Elements in a word: 1 or 2.
    const PAIR: usize;
    /// Elements of the summed index per block. A running sum is written to the result after each block, so this
    /// number is part of what a product computes: kernels that must agree share it.
    const KC: usize;
    /// A word of zeros.
    const ZERO: Self::Word;

    /// Packs element `low` and, for `PAIR = 2`, its successor `high`.
    fn word(low: Self::Elem, high: Self::Elem) -> Self::Word;

    /// Asks for the cache line at an address, which need not be valid.
    #[inline(always)]
    fn prefetch(_address: *const Self::Elem) {}

    /// Writes a block of `columns` lanes and `rows` words per lane as rows: `dst[t * width + l] = block[l][t]`.
    ///
    /// # Safety
    /// `columns <= STEP`, `rows <= STEP`, and `dst` is valid for writes of `columns` words at each of `rows` multiples
    /// of `width`.
    #[inline(always)]
    unsafe fn transpose(
        block: &[[Self::Word; STEP]; STEP],
        columns: usize,
        rows: usize,
        dst: *mut Self::Word,
        width: usize,
    ) {
        for (l, lane) in block.iter().enumerate().take(columns) {
            for (t, &word) in lane.iter().enumerate().take(rows) {
                // SAFETY: t < rows and l < columns.
                unsafe { *dst.add(t * width + l) = word };
            }
        }
    }

    /// `c[i, j] = alpha * s[i, j]`, or `+=` with `accumulate`, for `i < rows` and `j < NR`.
    ///
    /// # Safety
    /// `1 <= rows <= MR`; `a` and `b` point to `words * MR` and `words * NR` readable words; `c` points to `rows`
    /// rows of `NR` elements, `stride` elements apart, that are valid for writes and, with `accumulate`, for reads.
    unsafe fn tile(
        self,
        rows: usize,
        words: usize,
        a: *const Self::Word,
        b: *const Self::Word,
        alpha: Self::Elem,
        accumulate: bool,
        c: *mut Self::Elem,
        stride: isize,
    );
}

/// The same tile over operands rounded to bfloat16: the arithmetic of [`Compute::Bf16`](crate::Compute) where no
/// instruction multiplies bf16 pairs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rounded<K>(pub(super) K);

// SAFETY: it runs no instruction that the wrapped kernel does not.
unsafe impl<K: Kernel<Word = <K as Kernel>::Elem>> Kernel for Rounded<K> {
    type Elem = K::Elem;
    type Word = K::Word;

    const MR: usize = K::MR;
    const NR: usize = K::NR;
    const PAIR: usize = 1;
    const KC: usize = K::KC;
    const ZERO: Self::Word = K::ZERO;

    #[inline(always)]
    fn word(low: Self::Elem, _high: Self::Elem) -> Self::Word {
        low.round_to_bf16()
    }

    #[inline(always)]
    fn prefetch(address: *const Self::Elem) {
        K::prefetch(address);
    }

    #[inline(always)]
    unsafe fn transpose(
        block: &[[Self::Word; STEP]; STEP],
        columns: usize,
        rows: usize,
        dst: *mut Self::Word,
        width: usize,
    ) {
        // SAFETY: the contract is the same.
        unsafe { K::transpose(block, columns, rows, dst, width) }
    }

    #[inline(always)]
    unsafe fn tile(
        self,
        rows: usize,
        words: usize,
        a: *const Self::Word,
        b: *const Self::Word,
        alpha: Self::Elem,
        accumulate: bool,
        c: *mut Self::Elem,
        stride: isize,
    ) {
        // SAFETY: the contract is the same.
        unsafe { self.0.tile(rows, words, a, b, alpha, accumulate, c, stride) }
    }
}

/// Elements of the summed index per block for f32: two panels of 14 and 32 lanes stay in the first-level caches.
pub(super) const KC_F32: usize = 384;
/// The same bytes in f64.
pub(super) const KC_F64: usize = 192;
