//! The weight whose outputs come nearest to those of the float model, before anything is rounded.

use ndarray::{ArrayView1, ArrayView2};
use quant_kernels::{Compute, Element, Par, matmul_nt, tasks, views};

use crate::panels::Panels;
use crate::sweeps::{self, Part};
use crate::{CrossGram, Factor, HessianError};

/// What turns a weight `W` into `W* = W + W D H_d⁻¹`, the minimiser of `‖W X_f − V X‖² + λ‖V − W‖²`; prepared once and shared by
/// all linears with that input (`qronos.md` section 1).
///
/// Holds one square: `D` where fewer rows than input channels are to be retargeted, and each weight then costs a product and
/// two triangular solves of its own; otherwise `D H_d⁻¹`, so that each costs a product. Nothing where both streams agree.
#[derive(Clone, Debug)]
pub struct Retarget {
    square: Option<Square<f32>>,
    n: usize,
    /// Column order of the factor.
    order: Option<Vec<u32>>,
}

/// `D`, transposed: row k belongs to the input channel at position k of the quantised model, the columns to the channels of
/// the float model in original order.
#[derive(Clone, Debug)]
pub(crate) struct Square<T> {
    /// `D / scale` or `D H_d⁻¹`, row-major.
    values: Vec<T>,
    /// Whether it is the latter.
    solved: bool,
    scale: T,
    /// The first row of `D / scale`.
    first: Vec<T>,
}

/// Another weight, by processing position.
pub(crate) struct Retargeted<T> {
    /// `W*`, `[n, out]` row-major.
    pub(crate) weight: Vec<T>,
    /// What the first position is rounded from, `[out]`.
    pub(crate) first: Vec<T>,
    /// `‖W* − W‖ / ‖W‖` (Frobenius).
    pub(crate) shift: f64,
}

impl Retarget {
    /// Prepares it from the cross product, which is consumed and whole, and the factor of the Hessian of the same calibration
    /// tokens, for weights of `rows` rows together.
    ///
    /// # Errors
    /// [`HessianError::Shape`] if the cross product is not of the factor's channels, [`HessianError::HalfCross`] if only its upper
    /// half was summed, [`HessianError::Empty`] without calibration data, [`HessianError::NotFiniteCross`] for NaN or infinity in it.
    pub fn new(cross: CrossGram, factor: &Factor, rows: usize, par: Par) -> Result<Self, HessianError> {
        let n = factor.n();
        cross.check_channels(n)?;
        if !cross.is_whole() {
            return Err(HessianError::HalfCross { columns: n });
        }
        let scale = cross.scale()? as f32;
        let sum = cross.into_finite_transposed_sum(par)?;
        let order = factor.order.clone();
        let square = sum.iter().any(|&x| x != 0.0).then(|| {
            let sum = in_order(sum, order.as_deref(), n, par);
            Square::new(sum, scale, rows, &factor.panels, par)
        });
        Ok(Self { square, n, order })
    }

    /// Number of input channels.
    #[must_use]
    pub fn n(&self) -> usize {
        self.n
    }
    /// Whether both streams agree, so that every weight stays what it is.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.square.is_none()
    }
    /// Bytes held for `n` input channels unless [`Self::is_zero`].
    #[must_use]
    pub fn bytes_for(n: usize) -> usize {
        CrossGram::bytes_for(n, true)
    }
    /// Bytes [`Self::new`] holds at its peak for `n` input channels, the cross product included, the factor not. Not counted: the
    /// packed operands of the products, about 20 MiB.
    #[must_use]
    pub fn peak_bytes(n: usize, act_order: bool) -> usize {
        Self::bytes_for(n) * if act_order { 2 } else { 1 }
    }

    /// The square, for a factor that this was prepared with.
    pub(crate) fn square(&self, factor: &Factor) -> Result<Option<&Square<f32>>, HessianError> {
        factor.check_prepared(self.n, self.order.as_deref())?;
        Ok(self.square.as_ref())
    }
}

/// The rows of the transposed sum in processing order.
fn in_order(sum: Vec<f32>, order: Option<&[u32]>, n: usize, par: Par) -> Vec<f32> {
    let Some(order) = order else { return sum };
    let mut permuted = vec![0.0_f32; sum.len()];
    tasks::for_each(permuted.chunks_mut(n.max(1)).zip(order), par, |(target, &column)| {
        target.copy_from_slice(&sum[column as usize * n..][..n]);
    });
    permuted
}

impl<T: Element> Square<T> {
    /// From the rows of `Dᵀ / scale` in processing order.
    pub(crate) fn new(mut values: Vec<T>, scale: T, rows: usize, panels: &Panels<T>, par: Par) -> Self {
        let n = panels.n();
        let first = values[..n].to_vec();
        // A solve of the square costs n³, of a weight out · n², each beside a product of out · n².
        let solved = rows > n;
        if solved {
            solve(&mut values, n, scale, panels, par);
        }
        Self { values, solved, scale, first }
    }
}

/// What the linears with a common input share, in the arithmetic of `T`; f64 serves the property tests.
pub(crate) struct Mismatch<'a, T> {
    /// None where both streams agree.
    pub(crate) square: Option<&'a Square<T>>,
    pub(crate) panels: &'a Panels<T>,
    pub(crate) order: Option<&'a [u32]>,
    /// `H_jj` of the first position, before damping.
    pub(crate) first_diagonal: f64,
}

impl<T: Element> Mismatch<'_, T> {
    /// The channel at a position.
    pub(crate) fn column(&self, position: usize) -> usize {
        self.order.map_or(position, |order| order[position] as usize)
    }

    /// Retargets a weight `[out, n]`. A first position whose channel is dead is rounded from `dead` times the weight.
    ///
    /// # Errors
    /// [`HessianError::NotFiniteResult`].
    pub(crate) fn retarget(
        &self,
        weight: ArrayView2<'_, T>,
        dead: f64,
        par: Par,
    ) -> Result<Retargeted<T>, HessianError> {
        let (out, n) = weight.dim();
        let mut moved = vec![T::zero(); n * out];
        if let Some(square) = self.square {
            let d = views::matrix(&square.values, n, n);
            let target = views::matrix_mut(&mut moved, n, out);
            matmul_nt(
                target,
                false,
                if square.solved { T::one() } else { square.scale },
                d,
                weight,
                Compute::F32,
                par,
            );
            if !square.solved {
                solve(&mut moved, out, T::one(), self.panels, par);
            }
        }
        let mut squares = vec![[0.0_f64; 2]; n];
        let positions = moved.chunks_mut(out.max(1)).zip(&mut squares).enumerate();
        tasks::for_each(positions, par, |(k, (target, squares))| {
            for (target, &w) in target.iter_mut().zip(weight.column(self.column(k))) {
                squares[0] += target.to_f64_exact().powi(2);
                squares[1] += w.to_f64_exact().powi(2);
                *target += w;
            }
        });
        if let Some(at) = moved.iter().position(|x| !x.is_finite()) {
            return Err(HessianError::NotFiniteResult { row: at % out, column: self.column(at / out) });
        }
        let [shift, size] = squares.iter().fold([0.0, 0.0], |sum, s| [sum[0] + s[0], sum[1] + s[1]]);
        let first = weight.rows().into_iter().map(|row| self.first(row, dead));
        Ok(Retargeted {
            first: if n == 0 { Vec::new() } else { first.collect() },
            weight: moved,
            shift: if size > 0.0 { (shift / size).sqrt() } else { 0.0 },
        })
    }

    /// `W_1 + (W D)_1 / H_11` of a row.
    fn first(&self, row: ArrayView1<'_, T>, dead: f64) -> T {
        let w = row[self.column(0)].to_f64_exact();
        if self.first_diagonal == 0.0 {
            return T::from_f64(dead * w);
        }
        let Some(square) = self.square else { return T::from_f64(w) };
        let pairs = row.iter().zip(&square.first);
        let dot: f64 = pairs.map(|(w, d)| w.to_f64_exact() * d.to_f64_exact()).sum();
        T::from_f64(w + square.scale.to_f64_exact() * dot / self.first_diagonal)
    }
}

/// `Y → scale · Y H_d⁻¹` for `Yᵀ` `[n, columns]` row-major.
fn solve<T: Element>(values: &mut [T], columns: usize, scale: T, panels: &Panels<T>, par: Par) {
    sweeps::backward(values, Part::Whole(columns), panels, par);
    tasks::for_each(values.chunks_mut(columns.max(1)).zip(panels.diagonal()), par, |(row, pivot)| {
        let pivot = pivot.to_f64_exact();
        let factor = T::from_f64(scale.to_f64_exact() / (pivot * pivot));
        row.iter_mut().for_each(|z| *z *= factor);
    });
    sweeps::forward(values, Part::Whole(columns), panels, par);
}
