//! The contracts of packed panels and of a register tile.

use num_traits::Zero;

use crate::scalar::Scalar;

/// An element of an operand.
pub(crate) trait Lane: Copy + Zero + Default + Send + Sync {
    /// What [`Scalar::rest_after`] says; never asked of bytes.
    fn rest(self, roundings: u8) -> Self;
}

impl<T: Scalar> Lane for T {
    #[inline(always)]
    fn rest(self, roundings: u8) -> Self {
        self.rest_after(roundings)
    }
}

impl Lane for i8 {
    #[inline(always)]
    fn rest(self, _roundings: u8) -> Self {
        self
    }
}

/// The widest tile any kernel has, in elements: the size of the stack buffer for tiles that cross an edge.
pub(super) const MAX_TILE: usize = 1024;

/// Lanes and words of a block that packing transposes: with 4-byte words one cache line of each source lane.
pub(super) const STEP: usize = 16;

/// Values that travel together through the butterflies of a Walsh-Hadamard transform: one AVX-512 register of f32.
pub(crate) const WIDTH: usize = 16;

/// The most elements a word holds.
pub(super) const MAX_PAIR: usize = 4;

/// What a sum is multiplied by: a number, or nothing.
pub(crate) trait Factor<T>: Copy + Send + Sync {
    /// The product with a sum.
    fn times(self, sum: T) -> T;
}

impl<T: Scalar> Factor<T> for T {
    #[inline(always)]
    fn times(self, sum: T) -> T {
        self * sum
    }
}

impl<T> Factor<T> for () {
    #[inline(always)]
    fn times(self, sum: T) -> T {
        sum
    }
}

/// How one side of a product lies in memory for a tile.
///
/// A panel holds `W` lanes (rows of A with `W = MR`, columns of B with `W = NR`) over a range of the summed index: a word
/// holds `PAIR` consecutive elements, `RUN` words of a lane lie side by side, and word `d` of lane `l` is at
/// `(d / RUN * W + l) * RUN + d % RUN`.
///
/// # Safety
/// An implementor with a `transpose` of its own belongs to kernels that exist only where its instructions do.
pub(crate) unsafe trait Panel {
    /// An element as it comes.
    type In: Lane;
    /// Storage of `PAIR` packed elements.
    type Word: Copy + Send + Sync;

    /// Elements in a word: at most [`MAX_PAIR`].
    const PAIR: usize;
    /// A word for lanes that do not exist.
    const ZERO: Self::Word;
    /// Words of a lane that lie side by side: one, or [`STEP`].
    const RUN: usize = 1;
    /// Whether words are of rounded elements, so that what rounding leaves may be asked for.
    const ROUNDS: bool = false;

    /// Packs the elements `at(0)`, ..., `at(PAIR - 1)`.
    fn word(at: impl Fn(usize) -> Self::In) -> Self::Word;

    /// Asks for the cache line at an address, which need not be valid.
    #[inline(always)]
    fn prefetch(_address: *const Self::In) {}

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
}

/// A packed word of A.
pub(super) type LeftWord<K> = <<K as Kernel>::Left as Panel>::Word;
/// A packed word of B.
pub(super) type RightWord<K> = <<K as Kernel>::Right as Panel>::Word;

/// One way to compute a small tile of a product from packed panels.
///
/// Whatever the tile shape, output element `(i, j)` is `alpha * s`, added to the old value if asked, where `s`
/// sums the products in increasing order of the summed index from zero. For floats and `PAIR = 1` each step is one fused
/// multiply-add, so all kernels of one element type agree to the bit; `PAIR = 2` leaves the two products of a word
/// to the instruction. Integers have no `alpha`, and their sums are exact.
///
/// # Safety
/// An implementor must be constructible only where its instructions exist, because `tile` runs them.
pub(crate) unsafe trait Kernel: Copy + Send + Sync {
    /// Element type of the operands.
    type In: Lane;
    /// Element type of the result.
    type Out: Copy + Zero + Send + Sync;
    /// What a sum is multiplied by.
    type Alpha: Factor<Self::Out>;
    /// Rows of A.
    type Left: Panel<In = Self::In>;
    /// Columns of B.
    type Right: Panel<In = Self::In>;

    /// Rows of a tile.
    const MR: usize;
    /// Columns of a tile.
    const NR: usize;
    /// Elements in a word of either side.
    const PAIR: usize = {
        assert!(Self::Left::PAIR == Self::Right::PAIR && Self::Left::PAIR <= MAX_PAIR);
        Self::Left::PAIR
    };
    /// A block holds a multiple of so many words of each lane: those beyond the summed index are zeros.
    const WORDS: usize = {
        assert!(Self::Left::RUN == 1 || Self::Left::RUN == STEP, "what packing can do");
        assert!(Self::Right::RUN == 1, "what packing can do");
        Self::Left::RUN
    };
    /// Elements of the summed index per block, whole steps of `WORDS` words: a task runs the tiles of one block after those of another.
    const KC: usize;
    /// Elements of the summed index, whole blocks, over which a sum runs before it is written to the result. This number is part of what
    /// a float product computes: kernels that must agree share it. Where it is more than a block, a task keeps its sums in memory of its
    /// own between the blocks.
    const SUM: usize = Self::KC;
    /// Whether a task keeps its sums.
    const KEEPS: bool = Self::SUM > Self::KC;
    /// Bytes of packed rows and of packed columns of one task in one block of the summed index: the columns stay in the second-level
    /// cache while the rows stream by.
    const TASK_BYTES: (usize, usize) = TASK_BYTES;
    /// What a task of `h x w` elements takes beside its multiplications, as `EDGE / h + EDGE / w` of them: panels come from a cache that
    /// the cores share.
    const EDGE: f64 = 8.0;
    /// Words of each lane in front of a block of a right panel, which [`Kernel::head`] fills: 0 or 1.
    const HEAD: usize = 0;

    /// What a thread holds while it runs tiles: instructions that keep a state set it up here, and clear it when this is dropped.
    type Session;

    /// Prepares the calling thread for tiles. One session of a thread at a time: nothing that multiplies may be called within it.
    fn session(self) -> Self::Session;

    /// Fills the head of a block: what the tile needs to know of the lanes beside their words.
    ///
    /// # Safety
    /// `block` points to `HEAD * NR` writable words, behind which lie `words * NR` packed ones.
    #[inline(always)]
    unsafe fn head(_block: *mut RightWord<Self>, _words: usize) {}

    /// `c[i, j] = alpha * s[i, j]`, or `+=` with `accumulate`, for `i < rows` and `j < NR`. A kernel whose sums run over several blocks
    /// leaves `alpha` to whoever writes them to the result, goes on from `c` with `accumulate`, and may write `MR` rows.
    ///
    /// # Safety
    /// A session of this kernel is open on the calling thread. `1 <= rows <= MR`, `words` is a multiple of `WORDS`; `a` points to `words * MR` readable words and `b` to `(HEAD + words) * NR`; `c` points to `rows`
    /// rows of `NR` elements, `stride` elements apart, that are valid for writes and, with `accumulate`, for reads.
    unsafe fn tile(
        self,
        rows: usize,
        words: usize,
        a: *const LeftWord<Self>,
        b: *const RightWord<Self>,
        alpha: Self::Alpha,
        accumulate: bool,
        c: *mut Self::Out,
        stride: isize,
    );
}

/// The same tile over operands rounded to bfloat16: the arithmetic of [`Compute::Bf16`](crate::Compute) where no
/// instruction multiplies bf16 pairs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rounded<K>(pub(super) K);

// SAFETY: it runs no instruction that the wrapped one does not.
unsafe impl<P: Panel<Word = <P as Panel>::In>> Panel for Rounded<P>
where
    P::In: Scalar,
{
    type In = P::In;
    type Word = P::Word;

    const PAIR: usize = 1;
    const ZERO: Self::Word = P::ZERO;
    const ROUNDS: bool = true;

    #[inline(always)]
    fn word(at: impl Fn(usize) -> Self::In) -> Self::Word {
        at(0).round_to_bf16()
    }

    #[inline(always)]
    fn prefetch(address: *const Self::In) {
        P::prefetch(address);
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
        unsafe { P::transpose(block, columns, rows, dst, width) }
    }
}

// SAFETY: it runs no instruction that the wrapped kernel does not.
unsafe impl<T, K> Kernel for Rounded<K>
where
    T: Scalar,
    K: Kernel<In = T, Out = T, Alpha = T, Left = K, Right = K> + Panel<In = T, Word = T>,
{
    type In = T;
    type Out = T;
    type Alpha = T;
    type Left = Self;
    type Right = Self;
    type Session = K::Session;

    const MR: usize = K::MR;
    const NR: usize = K::NR;
    const KC: usize = K::KC;
    const SUM: usize = K::SUM;
    const TASK_BYTES: (usize, usize) = K::TASK_BYTES;
    const EDGE: f64 = K::EDGE;

    fn session(self) -> K::Session {
        self.0.session()
    }

    #[inline(always)]
    unsafe fn tile(
        self,
        rows: usize,
        words: usize,
        a: *const T,
        b: *const T,
        alpha: T,
        accumulate: bool,
        c: *mut T,
        stride: isize,
    ) {
        // SAFETY: the contract is the same.
        unsafe { self.0.tile(rows, words, a, b, alpha, accumulate, c, stride) }
    }
}

/// [`Kernel::TASK_BYTES`] for second-level caches of 1 MB.
pub(super) const TASK_BYTES: (usize, usize) = (256 << 10, 384 << 10);
/// Elements of the summed index per block for f32: two panels of 14 and 32 lanes stay in the first-level caches.
pub(super) const KC_F32: usize = 384;
/// The same bytes in f64.
pub(super) const KC_F64: usize = 192;
/// Integer sums are finished when they are written: they run over the whole of the longest sum that 32 bits hold,
/// [`quant_core::operators::MAX_DEPTH`]. For vector instructions that is one block. Panels of that length stream from the second-level
/// cache, of what it can give they take a tenth; tiles would take more than all of it.
pub(super) const SUM_INTEGER: usize = 1 << 16;
