//! Products of bytes: from a level to a tile, and the operand that is packed once.

use ndarray::{ArrayView2, ArrayViewMut2};

use super::block::Tile;
use super::dispatch::has_adjacent_columns;
use super::driver::gemm;
use super::integer_level::{IntegerLevel, IntegerSet};
use super::kernel::Kernel;
use super::operand::{Columns, Packed, pack_all};
use super::pack::Source;
use super::portable::Portable;
use super::sink::{Region, Store, Target, Through};
#[cfg(target_arch = "x86_64")]
use super::x86::{AmxI8, Avx2I8, Avx512VnniI8, AvxVnniI8};
use crate::{Par, vectorized};

/// Work that is generic over the kernel.
trait Visitor {
    type Output;
    fn visit<K: Kernel<In = i8, Out = i32, Alpha = ()>>(self, kernel: K) -> Self::Output;
}

/// Calls `visitor` with the kernel of this level.
fn dispatch<V: Visitor>(level: IntegerLevel, visitor: V) -> V::Output {
    #[cfg(target_arch = "x86_64")]
    {
        if let Some(kernel) = AmxI8::new(level) {
            return visitor.visit(kernel);
        }
        if let Some(kernel) = Avx512VnniI8::new(level) {
            return visitor.visit(kernel);
        }
        if let Some(kernel) = AvxVnniI8::new(level) {
            return visitor.visit(kernel);
        }
        if let Some(kernel) = Avx2I8::new(level) {
            return visitor.visit(kernel);
        }
    }
    debug_assert_eq!(level.kind(), IntegerSet::Portable);
    visitor.visit(Portable::<i8>::new())
}

/// A right operand packed once, with what it was packed for.
#[derive(Clone, Debug)]
pub(crate) struct PackedInteger {
    packed: Packed,
    level: IntegerLevel,
}

impl PackedInteger {
    pub(crate) fn level(&self) -> IntegerLevel {
        self.level
    }

    pub(crate) fn depth(&self) -> usize {
        self.packed.depth
    }

    pub(crate) fn cols(&self) -> usize {
        self.packed.lanes
    }

    pub(crate) fn bytes(&self) -> usize {
        self.packed.bytes()
    }
}

/// Packs the weight `w` `[out, in]` as the right operand `w^T` of products on this level. `in` is at most the block of an integer
/// kernel.
pub(crate) fn pack_integer(level: IntegerLevel, w: ArrayView2<'_, i8>, par: Par) -> PackedInteger {
    struct Pack<'a>(ArrayView2<'a, i8>, Par);
    impl Visitor for Pack<'_> {
        type Output = Packed;
        fn visit<K: Kernel<In = i8, Out = i32, Alpha = ()>>(self, _kernel: K) -> Packed {
            // SAFETY: the view is borrowed for the call.
            unsafe { pack_all::<K>(&Source::new(&self.0), self.1) }
        }
    }
    PackedInteger { packed: dispatch(level, Pack(w, par)), level }
}

/// `dst = a b` for `a` `[m, k]`, exact. Shapes were checked by the caller; the columns of `dst` are adjacent.
pub(crate) fn integer_product(
    mut dst: ArrayViewMut2<'_, i32>,
    a: ArrayView2<'_, i8>,
    b: &PackedInteger,
    par: Par,
) {
    assert!(has_adjacent_columns(&dst), "sums need adjacent columns");
    let dst =
        Target { stride: dst.strides()[0], rows: dst.nrows(), cols: dst.ncols(), ptr: dst.as_mut_ptr() };
    let sink = Store { dst, region: Region::Full, accumulate: false, alpha: () };
    // SAFETY: `dst` is borrowed mutably and has adjacent columns.
    unsafe { run(&sink, a, b, par) };
}

/// Has `finish` make every element of `dst` out of the sums of `a b`, in any order and from several threads: of a row, a first column and
/// the adjacent sums from there on it makes as many results. It is compiled with the instructions of the machine where it is always
/// inlined. Shapes were checked by the caller; the columns of `dst` are adjacent.
pub(crate) fn integer_through<T: Copy + Send>(
    mut dst: ArrayViewMut2<'_, T>,
    a: ArrayView2<'_, i8>,
    b: &PackedInteger,
    par: Par,
    finish: impl Fn(usize, usize, &[i32], &mut [T]) + Sync,
) {
    assert!(has_adjacent_columns(&dst), "results need adjacent columns");
    assert_eq!(dst.dim(), (a.nrows(), b.cols()), "a result for every sum");
    let dst =
        Target { stride: dst.strides()[0], rows: dst.nrows(), cols: dst.ncols(), ptr: dst.as_mut_ptr() };
    // Once for a tile: a row of it has few elements.
    let rows = |tile: Tile<'_, i32>| {
        vectorized(
            #[inline(always)]
            || {
                for (row, sums) in tile.rows() {
                    let columns = tile.columns();
                    // SAFETY: the elements of one row of the tile in the destination, which no other tile has.
                    let out = unsafe { dst.slice(row, columns.clone()) };
                    finish(row, columns.start, sums, out);
                }
            },
        );
    };
    let sink = Through { dim: (a.nrows(), b.cols()), lines: dst.lines(), finish: &rows };
    // SAFETY: the tiles of a sink are disjoint, and `dst` is borrowed mutably.
    unsafe { run(&sink, a, b, par) };
}

/// A sink of integer sums, whatever the kernel.
trait IntegerSink {
    /// # Safety
    /// As [`gemm`].
    unsafe fn take<K: Kernel<In = i8, Out = i32, Alpha = ()>>(
        &self,
        kernel: K,
        a: &Source<i8>,
        b: &Columns<'_, i8>,
        par: Par,
    );
}

macro_rules! integer_sink {
    ($sink:ty) => {
        impl IntegerSink for $sink {
            unsafe fn take<K: Kernel<In = i8, Out = i32, Alpha = ()>>(
                &self,
                kernel: K,
                a: &Source<i8>,
                b: &Columns<'_, i8>,
                par: Par,
            ) {
                // SAFETY: forwarded from the caller.
                unsafe { gemm(kernel, self, a, b, par) };
            }
        }
    };
}
integer_sink!(Store<i32, ()>);
integer_sink!(Through<'_, i32>);

/// # Safety
/// What the sink writes to is nobody else's, and it has the rows of `a` and the columns of `b`.
unsafe fn run(sink: &impl IntegerSink, a: ArrayView2<'_, i8>, b: &PackedInteger, par: Par) {
    struct Run<'a, S> {
        sink: &'a S,
        a: Source<i8>,
        b: Columns<'a, i8>,
        par: Par,
    }
    impl<S: IntegerSink> Visitor for Run<'_, S> {
        type Output = ();
        fn visit<K: Kernel<In = i8, Out = i32, Alpha = ()>>(self, kernel: K) {
            // SAFETY: forwarded from the caller; the packed operand remembers the level that chose this kernel.
            unsafe { self.sink.take(kernel, &self.a, &self.b, self.par) };
        }
    }
    assert_eq!(a.ncols(), b.depth(), "the depths of both operands");
    dispatch(b.level, Run { sink, a: Source::new(&a), b: Columns::Packed(&b.packed), par });
}
