//! From an instruction set and an arithmetic to a tile.

use ndarray::{ArrayView2, ArrayViewMut2};

use super::driver::gemm;
use super::kernel::{Kernel, Panel, RightWord, Rounded};
use super::level::Level;
use super::operand::{Columns, Packed, pack_all, pack_rows};
use super::pack::Source;
use super::packed;
use super::portable::Portable;
use super::sink::{Region, Store, Target};
#[cfg(target_arch = "x86_64")]
use super::x86::{AmxBf16, Avx2F32, Avx2F64, Avx512Bf16, Avx512F32, Avx512F64};
use crate::panels::LevelPanels;
use crate::scalar::Scalar;
use crate::{Compute, Par};

/// Work that is generic over the kernel.
pub(super) trait Visitor<T> {
    /// What the work gives back.
    type Output;
    /// Does the work with the chosen kernel.
    fn visit<K: Kernel<In = T, Out = T, Alpha = T>>(self, kernel: K) -> Self::Output;
}

/// Element types with a kernel for every level and arithmetic.
pub(super) trait Dispatch: Sized {
    /// Calls `visitor` with the kernel of this level and arithmetic.
    fn dispatch<V: Visitor<Self>>(level: Level, compute: Compute, visitor: V) -> V::Output;
}

impl Dispatch for f32 {
    fn dispatch<V: Visitor<Self>>(level: Level, compute: Compute, visitor: V) -> V::Output {
        #[cfg(target_arch = "x86_64")]
        {
            if compute != Compute::F32 {
                if let Some(kernel) = AmxBf16::new(level) {
                    return visitor.visit(kernel);
                }
                if let Some(kernel) = Avx512Bf16::new(level) {
                    return visitor.visit(kernel);
                }
            }
            if let Some(kernel) = Avx512F32::new(level) {
                return rounded_or_not(kernel, compute, visitor);
            }
            if let Some(kernel) = Avx2F32::new(level) {
                return rounded_or_not(kernel, compute, visitor);
            }
        }
        let _ = level;
        rounded_or_not(Portable::<Self>::new(), compute, visitor)
    }
}

impl Dispatch for f64 {
    fn dispatch<V: Visitor<Self>>(level: Level, compute: Compute, visitor: V) -> V::Output {
        #[cfg(target_arch = "x86_64")]
        {
            if let Some(kernel) = Avx512F64::new(level) {
                return rounded_or_not(kernel, compute, visitor);
            }
            if let Some(kernel) = Avx2F64::new(level) {
                return rounded_or_not(kernel, compute, visitor);
            }
        }
        let _ = level;
        rounded_or_not(Portable::<Self>::new(), compute, visitor)
    }
}

/// A kernel without bf16 instructions serves [`Compute::Bf16`], and the parts of the others, by rounding the operands.
fn rounded_or_not<T, K, V>(kernel: K, compute: Compute, visitor: V) -> V::Output
where
    T: Scalar,
    K: Kernel<In = T, Out = T, Alpha = T, Left = K, Right = K> + Panel<In = T, Word = T>,
    V: Visitor<T>,
{
    match compute {
        Compute::F32 => visitor.visit(kernel),
        Compute::Bf16 | Compute::Bf16x2 | Compute::Bf16x3 => visitor.visit(Rounded(kernel)),
    }
}

/// A right operand packed once, with what it was packed for.
#[derive(Clone, Debug)]
pub(crate) struct PackedOperand<T> {
    /// Every part of it, the whole operand or its rounding first.
    parts: Vec<Packed>,
    level: Level,
    compute: Compute,
    element: std::marker::PhantomData<T>,
}

impl<T> PackedOperand<T> {
    /// Has `pack` pack every part that the arithmetic multiplies.
    fn of_parts(level: Level, compute: Compute, pack: impl FnMut(u8) -> Packed) -> Self {
        let parts = (0..compute.parts()).map(pack).collect();
        Self { parts, level, compute, element: std::marker::PhantomData }
    }

    pub(crate) fn compute(&self) -> Compute {
        self.compute
    }

    pub(crate) fn depth(&self) -> usize {
        self.parts.first().map_or(0, |part| part.depth)
    }

    pub(crate) fn cols(&self) -> usize {
        self.parts.first().map_or(0, |part| part.lanes)
    }

    pub(crate) fn bytes(&self) -> usize {
        self.parts.iter().map(Packed::bytes).sum()
    }
}

/// Packs `b` `[k, n]` for products on this level.
pub(crate) fn pack_operand<T: Scalar + Dispatch>(
    level: Level,
    b: ArrayView2<'_, T>,
    compute: Compute,
    par: Par,
) -> PackedOperand<T> {
    struct Pack<'a, T>(ArrayView2<'a, T>, u8, Par);
    impl<T: Scalar + Dispatch> Visitor<T> for Pack<'_, T> {
        type Output = Packed;
        fn visit<K: Kernel<In = T, Out = T, Alpha = T>>(self, _kernel: K) -> Packed {
            // SAFETY: the view is borrowed for the call.
            unsafe { pack_all::<K>(&Source::new(&self.0).after(self.1), self.2) }
        }
    }
    let pack = |part| T::dispatch(level, compute, Pack(b.reversed_axes(), part, par));
    PackedOperand::of_parts(level, compute, pack)
}

/// Bytes of one element of a packed operand on this level.
pub(crate) fn packed_element_bytes<T: Scalar + Dispatch>(level: Level, compute: Compute) -> usize {
    struct Size;
    impl<T: Scalar + Dispatch> Visitor<T> for Size {
        type Output = usize;
        fn visit<K: Kernel<In = T, Out = T, Alpha = T>>(self, _kernel: K) -> usize {
            size_of::<RightWord<K>>() / K::PAIR
        }
    }
    usize::from(compute.parts()) * T::dispatch(level, compute, Size)
}

/// Packs the right operand `[depth, columns]` whose columns `fill` writes one at a time, each once for every part.
pub(crate) fn pack_columns<T: Scalar + Dispatch>(
    level: Level,
    (depth, cols): (usize, usize),
    compute: Compute,
    par: Par,
    fill: &(dyn Fn(usize, &mut [T]) + Sync),
) -> PackedOperand<T> {
    struct Pack<'a, T> {
        lanes: usize,
        depth: usize,
        part: u8,
        par: Par,
        fill: &'a (dyn Fn(usize, &mut [T]) + Sync),
    }
    impl<T: Scalar + Dispatch> Visitor<T> for Pack<'_, T> {
        type Output = Packed;
        fn visit<K: Kernel<In = T, Out = T, Alpha = T>>(self, _kernel: K) -> Packed {
            pack_rows::<K>(self.lanes, self.depth, self.part, self.par, self.fill)
        }
    }
    let pack = |part| T::dispatch(level, compute, Pack { lanes: cols, depth, part, par, fill });
    PackedOperand::of_parts(level, compute, pack)
}

/// `dst (=|+=) alpha * a[m, k] * b[k, n]` on a region of `dst`. Shapes were checked by the caller.
pub(crate) fn product<T: Scalar + Dispatch>(
    level: Level,
    mut dst: ArrayViewMut2<'_, T>,
    region: Region,
    accumulate: bool,
    alpha: T,
    a: ArrayView2<'_, T>,
    b: ArrayView2<'_, T>,
    compute: Compute,
    par: Par,
) {
    // The transposed product has the same element sums, term by term.
    let turned = !has_adjacent_columns(&dst)
        && has_adjacent_columns(&dst.view_mut().reversed_axes())
        && region == Region::Full;
    let (mut dst, a, b) =
        if turned { (dst.reversed_axes(), b.reversed_axes(), a.reversed_axes()) } else { (dst, a, b) };
    for (term, &(left, right)) in compute.terms().iter().enumerate() {
        let (left, right) = if turned { (right, left) } else { (left, right) };
        let columns = Columns::Source(Source::new(&b.reversed_axes()).after(right));
        let accumulate = accumulate || term > 0;
        let work = Multiply { region, accumulate, alpha, a, part: left, columns, par };
        work.run(level, compute, dst.view_mut());
    }
}

/// [`product`] with a right operand packed before, on the level and with the arithmetic it was packed for.
pub(crate) fn product_packed<T: Scalar + Dispatch>(
    mut dst: ArrayViewMut2<'_, T>,
    accumulate: bool,
    alpha: T,
    a: ArrayView2<'_, T>,
    b: &PackedOperand<T>,
    par: Par,
) {
    for (term, &(left, right)) in b.compute.terms().iter().enumerate() {
        let columns = Columns::Packed(&b.parts[usize::from(right)]);
        let accumulate = accumulate || term > 0;
        let work = Multiply { region: Region::Full, accumulate, alpha, a, part: left, columns, par };
        work.run(b.level, b.compute, dst.view_mut());
    }
}

/// [`product`] in plain f32 with a right operand of packed levels, which become floats panel by panel, on this level.
pub(crate) fn product_levels(
    level: Level,
    dst: ArrayViewMut2<'_, f32>,
    accumulate: bool,
    a: ArrayView2<'_, f32>,
    b: &LevelPanels,
    plain: bool,
    par: Par,
) {
    struct Width;
    impl Visitor<f32> for Width {
        type Output = usize;
        fn visit<K: Kernel<In = f32, Out = f32, Alpha = f32>>(self, _kernel: K) -> usize {
            K::NR
        }
    }
    let width = f32::dispatch(level, Compute::F32, Width);
    let fill = |lane: usize, depth: std::ops::Range<usize>, to: *mut f32| {
        // SAFETY: the driver asks for whole panels of its kernel, whose width divides that of a panel of levels, and has room for them
        // on the alignment of its registers.
        unsafe { packed::expand(level, b, plain, lane, width, depth, to) };
    };
    let columns = Columns::Made(&fill);
    let work = Multiply { region: Region::Full, accumulate, alpha: 1.0, a, part: 0, columns, par };
    work.run(level, Compute::F32, dst);
}

/// Whether the elements of a row lie side by side.
pub(crate) fn has_adjacent_columns<T>(view: &ArrayViewMut2<'_, T>) -> bool {
    view.strides()[1] == 1 || view.ncols() <= 1 || view.is_empty()
}

struct Multiply<'a, T> {
    region: Region,
    accumulate: bool,
    alpha: T,
    a: ArrayView2<'a, T>,
    /// Roundings before the part of `a` that is multiplied.
    part: u8,
    columns: Columns<'a, T>,
    par: Par,
}

impl<T: Scalar + Dispatch> Multiply<'_, T> {
    fn run(self, level: Level, compute: Compute, mut dst: ArrayViewMut2<'_, T>) {
        if has_adjacent_columns(&dst) {
            return T::dispatch(level, compute, Run { work: self, dst });
        }
        let region = self.region;
        let mut scratch = dst.as_standard_layout().into_owned();
        T::dispatch(level, compute, Run { work: self, dst: scratch.view_mut() });
        for ((i, j), out) in dst.indexed_iter_mut() {
            if region == Region::Full || i >= j {
                *out = scratch[(i, j)];
            }
        }
    }
}

struct Run<'a, 'd, T> {
    work: Multiply<'a, T>,
    dst: ArrayViewMut2<'d, T>,
}

impl<T: Scalar + Dispatch> Visitor<T> for Run<'_, '_, T> {
    type Output = ();

    fn visit<K: Kernel<In = T, Out = T, Alpha = T>>(mut self, kernel: K) {
        let target = Target {
            stride: self.dst.strides()[0],
            rows: self.dst.nrows(),
            cols: self.dst.ncols(),
            ptr: self.dst.as_mut_ptr(),
        };
        let Multiply { region, accumulate, alpha, a, part, columns, par } = self.work;
        let sink = Store { dst: target, region, accumulate, alpha };
        // SAFETY: `dst` is borrowed mutably and has adjacent columns, the operands are borrowed for the call, shapes
        // were checked, and a packed operand remembers the level and arithmetic that chose this kernel.
        unsafe { gemm(kernel, &sink, &Source::new(&a).after(part), &columns, par) };
    }
}
