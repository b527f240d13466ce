//! GPTQ and GPTAQ as they are published, in f64 with the inverse formed explicitly, and the OBQ elimination GPTQ is derived from.

use ndarray::Array2;
use quant_core::{Grid, QParams, Variant};

use crate::coupling::Coupling;
use crate::factor::descending;
use crate::panels::Panels;
use crate::{ActOrder, GptqConfig};

/// Lower Cholesky factor.
pub(super) fn cholesky(h: &Array2<f64>) -> Array2<f64> {
    let n = h.nrows();
    let mut l = Array2::<f64>::zeros((n, n));
    for j in 0..n {
        for i in j..n {
            let sum = h[(i, j)] - (0..j).map(|k| l[(i, k)] * l[(j, k)]).sum::<f64>();
            l[(i, j)] = if i == j { sum.sqrt() } else { sum / l[(j, j)] };
        }
    }
    l
}

/// Inverse by Gauss-Jordan elimination with row pivoting.
pub(super) fn inverse(a: &Array2<f64>) -> Array2<f64> {
    let n = a.nrows();
    let mut work = a.clone();
    let mut inverse = Array2::<f64>::eye(n);
    for j in 0..n {
        let pivot = (j..n).max_by(|&a, &b| work[(a, j)].abs().total_cmp(&work[(b, j)].abs())).unwrap();
        for c in 0..n {
            work.swap((j, c), (pivot, c));
            inverse.swap((j, c), (pivot, c));
        }
        let d = work[(j, j)];
        for c in 0..n {
            work[(j, c)] /= d;
            inverse[(j, c)] /= d;
        }
        for i in (0..n).filter(|&i| i != j) {
            let f = work[(i, j)];
            for c in 0..n {
                work[(i, c)] -= f * work[(j, c)];
                inverse[(i, c)] -= f * inverse[(j, c)];
            }
        }
    }
    inverse
}

/// A problem after steps 1 to 5 of the specification: dead columns, order and damping applied.
pub(super) struct Prepared {
    /// Damped Hessian in processing order.
    pub(super) h: Array2<f64>,
    pub(super) order: Option<Vec<u32>>,
    pub(super) dead: Vec<bool>,
}

impl Prepared {
    pub(super) fn new(h: &Array2<f32>, act_order: bool, damping: f64) -> Self {
        Self::with_lambda(h, act_order, |mean| damping * mean)
    }
    /// With λ from the mean diagonal.
    pub(super) fn with_lambda(h: &Array2<f32>, act_order: bool, lambda: impl Fn(f64) -> f64) -> Self {
        let n = h.nrows();
        let mut h = h.clone();
        let dead: Vec<bool> = h.diag().iter().map(|&d| d == 0.0).collect();
        for j in (0..n).filter(|&j| dead[j]) {
            h[(j, j)] = 1.0;
        }
        let order = act_order.then(|| descending(h.diag().to_vec().as_slice()));
        let column = |k: usize| order.as_ref().map_or(k, |o| o[k] as usize);
        let mut permuted = Array2::from_shape_fn((n, n), |(i, j)| f64::from(h[(column(i), column(j))]));
        let lambda = lambda(permuted.diag().mean().unwrap());
        permuted.diag_mut().mapv_inplace(|d| d + lambda);
        Self { h: permuted, order, dead }
    }
    pub(super) fn column(&self, position: usize) -> usize {
        self.order.as_ref().map_or(position, |o| o[position] as usize)
    }
    /// `U` with `UᵀU = H_d⁻¹`.
    pub(super) fn upper_of_inverse(&self) -> Array2<f64> {
        cholesky(&inverse(&self.h)).reversed_axes()
    }
    /// `D` in processing order, columns of dead channels zeroed.
    pub(super) fn cross(&self, d: &Array2<f32>) -> Array2<f64> {
        Array2::from_shape_fn(d.dim(), |(i, j)| {
            let (i, j) = (self.column(i), self.column(j));
            if self.dead[j] { 0.0 } else { f64::from(d[(i, j)]) }
        })
    }
    /// `P = α striu(D Uᵀ) U` from [`Self::cross`], as it is published.
    pub(super) fn p(&self, cross: &Array2<f64>, alpha: f64) -> Array2<f64> {
        let u = self.upper_of_inverse();
        let mut m = cross.dot(&u.t()) * alpha;
        m.indexed_iter_mut().filter(|((j, k), _)| j >= k).for_each(|(_, x)| *x = 0.0);
        m.dot(&u)
    }
    /// What the solver works on besides [`Self::panels`], in f64.
    pub(super) fn coupling(&self, cross: &Array2<f64>, alpha: f64, variant: Variant) -> Coupling<f64> {
        let transposed = cross.t().iter().copied().collect();
        Coupling::new(transposed, alpha, &self.panels(), variant, quant_kernels::Par::Seq)
    }
    /// What the solver works on, in f64.
    pub(super) fn panels(&self) -> Panels<f64> {
        let n = self.h.nrows();
        let lower = cholesky(&Array2::from_shape_fn((n, n), |(i, j)| self.h[(n - 1 - i, n - 1 - j)]));
        Panels::from_reversed_lower(lower.as_slice().unwrap(), n, quant_kernels::Par::Seq)
    }
}

/// What the reference computed, columns in original order.
pub(super) struct Answer {
    pub(super) levels: Array2<u8>,
    pub(super) scales: Array2<f32>,
    pub(super) zeros: Array2<f32>,
    /// `e`, by processing position.
    pub(super) errors: Array2<f64>,
    /// `w̃`, the weight when it was rounded.
    pub(super) updated: Array2<f64>,
}

/// What GPTAQ adds to the published loop.
pub(super) struct Asymmetric<'a> {
    /// `P = α striu(D Uᵀ) U`, in processing order.
    pub(super) p: &'a Array2<f64>,
    /// Whether later blocks receive `q P` ([`Variant::Official`]) or `w̃ P`.
    pub(super) variant: Variant,
}

fn params(grid: &Grid, config: &GptqConfig, values: impl Iterator<Item = f64>) -> QParams {
    let values: Vec<f32> = values.map(|x| x as f32).collect();
    grid.params(&values, config.clip.as_ref())
}

/// Step 7 of the specification, literally: lazy blocks, an outer buffer, the rows of `U`.
pub(super) fn published(weight: &Array2<f32>, problem: &Prepared, config: &GptqConfig) -> Answer {
    published_with(weight, problem, None, config)
}

/// The same with the update of `gptaq.md` section 2 step 3.
pub(super) fn published_with(
    weight: &Array2<f32>,
    problem: &Prepared,
    asymmetric: Option<&Asymmetric<'_>>,
    config: &GptqConfig,
) -> Answer {
    let (out, n) = weight.dim();
    let u = problem.upper_of_inverse();
    let grid = config.grid;
    let group = config.group.unwrap_or(n);
    let is_static = config.static_groups || config.act_order == ActOrder::Static;
    let groups = n.div_ceil(group);
    let mut answer = Answer {
        levels: Array2::zeros((out, n)),
        scales: Array2::zeros((out, groups)),
        zeros: Array2::zeros((out, groups)),
        errors: Array2::zeros((out, n)),
        updated: Array2::zeros((out, n)),
    };
    for row in 0..out {
        let mut store = |g: usize, p: QParams| {
            answer.scales[(row, g)] = p.scale;
            answer.zeros[(row, g)] = p.zero;
        };
        let raw: Vec<f64> = weight.row(row).iter().map(|&w| f64::from(w)).collect();
        let alive: Vec<f64> = (0..n).map(|j| if problem.dead[j] { 0.0 } else { raw[j] }).collect();
        let mut current = vec![QParams { scale: 1.0, zero: 0.0 }; groups];
        if config.group.is_none() {
            current[0] = params(&grid, config, raw.iter().copied());
            store(0, current[0]);
        } else if is_static {
            for g in 0..groups {
                current[g] =
                    params(&grid, config, alive[g * group..((g + 1) * group).min(n)].iter().copied());
                store(g, current[g]);
            }
        }
        let mut outer: Vec<f64> = (0..n).map(|k| alive[problem.column(k)]).collect();
        for i1 in (0..n).step_by(config.block) {
            let i2 = (i1 + config.block).min(n);
            let mut inner = outer[i1..i2].to_vec();
            let mut passed = vec![0.0; i2 - i1];
            for k in i1..i2 {
                let g = match (config.group, is_static) {
                    (None, _) => 0,
                    (Some(_), true) => problem.column(k) / group,
                    (Some(_), false) => k / group,
                };
                if config.group.is_some() && !is_static && k % group == 0 {
                    current[g] = params(&grid, config, outer[k..(k + group).min(n)].iter().copied());
                    store(g, current[g]);
                }
                let w = inner[k - i1];
                let level = grid.level(w as f32, current[g]);
                let e = (w - f64::from(current[g].value(level))) / u[(k, k)];
                for j in k..i2 {
                    inner[j - i1] -= e * u[(k, j)] - asymmetric.map_or(0.0, |a| w * a.p[(k, j)]);
                }
                passed[k - i1] = match asymmetric.map(|a| a.variant) {
                    Some(Variant::Official) => f64::from(current[g].value(level)),
                    _ => w,
                };
                answer.updated[(row, problem.column(k))] = w;
                answer.levels[(row, problem.column(k))] = level as u8;
                answer.errors[(row, k)] = e;
            }
            for j in i2..n {
                outer[j] -= (i1..i2).map(|k| answer.errors[(row, k)] * u[(k, j)]).sum::<f64>();
                if let Some(a) = asymmetric {
                    outer[j] += (i1..i2).map(|k| passed[k - i1] * a.p[(k, j)]).sum::<f64>();
                }
            }
        }
    }
    answer
}

/// Optimal Brain Quantisation in a fixed order: after a column is fixed, its row and column leave the inverse Hessian by one
/// step of Gaussian elimination.
pub(super) fn elimination(weight: &Array2<f32>, problem: &Prepared, config: &GptqConfig) -> Array2<u8> {
    let (out, n) = weight.dim();
    let grid = config.grid;
    let mut levels = Array2::zeros((out, n));
    for row in 0..out {
        let raw: Vec<f64> = weight.row(row).iter().map(|&w| f64::from(w)).collect();
        let p = params(&grid, config, raw.iter().copied());
        let mut w: Vec<f64> =
            (0..n).map(|k| problem.column(k)).map(|c| if problem.dead[c] { 0.0 } else { raw[c] }).collect();
        let mut inv = inverse(&problem.h);
        for k in 0..n {
            let level = grid.level(w[k] as f32, p);
            levels[(row, problem.column(k))] = level as u8;
            let e = (w[k] - f64::from(p.value(level))) / inv[(k, k)];
            for j in k..n {
                w[j] -= e * inv[(k, j)];
            }
            let pivot = inv.row(k).to_owned();
            for i in k + 1..n {
                for j in k + 1..n {
                    inv[(i, j)] -= pivot[i] * pivot[j] / pivot[k];
                }
            }
        }
    }
    levels
}
