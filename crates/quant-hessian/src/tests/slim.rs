//! Properties of `slim_llm.md` section 7, and the published formulation in f64 as a reference.

use ndarray::{Array1, Array2, Axis, Slice};
use proptest::prelude::*;
use quant_core::{Bits, FloatType, Variant, Widths};
use quant_kernels::Par;
use quant_testkit::Numbers;

use super::hessian;
use super::reference::{Prepared, cholesky, inverse};
use crate::{FactorSettings, Hessian, HessianError, SlimConfig, SlimFactor, SlimResult, slim, slim_most};

fn bits(n: u32) -> Bits {
    Bits::new(n).unwrap()
}

/// Scale and zero of one row of a group.
fn range(row: &[f64], n: u32, factor: f64, fixed: bool) -> (f64, f64) {
    let (mut mn, mut mx) = row.iter().fold((0.0_f64, 0.0_f64), |(a, b), &w| (a.min(w), b.max(w)));
    if mn == 0.0 && mx == 0.0 {
        (mn, mx) = (-1.0, 1.0);
    }
    let scale = factor * (mx - mn) / f64::from((1 << n) - 1);
    let zero = if fixed { f64::from(1 << (n - 1)) } else { (-factor * mn / scale).round_ties_even() };
    (scale, zero)
}

fn one_bit(row: &[f64], variant: Variant) -> (f64, f64) {
    let mean = row.iter().sum::<f64>() / row.len() as f64;
    let from = if variant == Variant::Exact { mean } else { 0.0 };
    (row.iter().map(|w| (w - from).abs()).sum::<f64>() / row.len() as f64, mean)
}

fn rounded(w: f64, (scale, zero): (f64, f64), n: u32) -> f64 {
    if n == 1 {
        return if w >= zero { zero + scale } else { zero - scale };
    }
    scale * (((w / scale).round_ties_even() + zero).clamp(0.0, f64::from((1 << n) - 1)) - zero)
}

fn probabilities(y: &Array1<f64>) -> Array1<f64> {
    let largest = y.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let e = y.mapv(|v| (v - largest).exp());
    let sum = e.sum();
    e.mapv(|v| (v / sum).max(1e-6))
}

/// What is known of a problem before its weight is rounded.
struct Problem<'a> {
    weight: &'a Array2<f32>,
    bias: Option<&'a Array1<f32>>,
    x: &'a Array2<f32>,
    config: &'a SlimConfig,
}

impl Problem<'_> {
    /// `U` of the search and of the rounding, and the dead columns.
    fn factors(&self) -> [(Array2<f64>, Vec<bool>); 2] {
        let mut h = hessian(self.x).finish().unwrap();
        let upper = |p: Prepared| (cholesky(&inverse(&p.h)).reversed_axes(), p.dead);
        if self.config.variant == Variant::Exact {
            return [upper(Prepared::new(&h, false, 0.01)), upper(Prepared::new(&h, false, 0.01))];
        }
        h.diag_mut().mapv_inplace(|d| if d == 0.0 { 1.01 } else { d + 0.01 });
        [upper(Prepared::new(&h, false, 0.0)), upper(Prepared::new(&h, false, 0.01))]
    }
    fn weight(&self, dead: &[bool]) -> Array2<f64> {
        Array2::from_shape_fn(
            self.weight.dim(),
            |(i, j)| if dead[j] { 0.0 } else { f64::from(self.weight[(i, j)]) },
        )
    }
    fn order(&self, (u, dead): &(Array2<f64>, Vec<bool>)) -> Vec<usize> {
        let w = self.weight(dead);
        let of = |j: usize| w.column(j).iter().map(|v| (v / u[(j, j)]).powi(2)).sum::<f64>();
        let columns: Vec<f64> = (0..w.ncols()).map(of).collect();
        let salience: Vec<f64> = columns.chunks(self.config.group).map(|c| c.iter().sum()).collect();
        let mut order: Vec<usize> = (0..salience.len()).collect();
        order.sort_by(|&a, &b| salience[a].total_cmp(&salience[b]));
        order
    }
    fn widths(&self, order: &[usize], narrow: usize) -> Vec<u32> {
        let mut widths = vec![self.config.bits.get(); order.len()];
        order[..narrow].iter().for_each(|&g| widths[g] -= 1);
        order[order.len() - narrow..].iter().for_each(|&g| widths[g] += 1);
        widths
    }
    /// The divergence of every candidate, each from its definition.
    fn divergences(&self, search: &(Array2<f64>, Vec<bool>)) -> Vec<f64> {
        let (x, w) = (self.x.mapv(f64::from), self.weight(&search.1));
        let order = self.order(search);
        let bias = self.bias.map(|b| b.mapv(f64::from));
        let with = |y: Array2<f64>, bias: Option<&Array1<f64>>| bias.map_or(y.clone(), |b| y + b);
        let y = with(x.dot(&self.weight.mapv(f64::from).t()), bias.as_ref());
        let bias = bias.as_ref().filter(|_| self.config.variant == Variant::Exact);
        (1..=slim_most(order.len()))
            .map(|narrow| {
                let mut q = w.clone();
                for (g, n) in self.widths(&order, narrow).into_iter().enumerate() {
                    let span = Slice::from(self.columns(g));
                    for mut row in q.slice_axis_mut(Axis(1), span).rows_mut() {
                        let values = row.to_vec();
                        let params = if n == 1 {
                            one_bit(&values, self.config.variant)
                        } else {
                            range(&values, n, 1.0, false)
                        };
                        row.mapv_inplace(|w| rounded(w, params, n));
                    }
                }
                let z = with(x.dot(&q.t()), bias);
                let token = |(y, z): (ndarray::ArrayView1<'_, f64>, ndarray::ArrayView1<'_, f64>)| {
                    let (r, p) = (probabilities(&y.to_owned()), probabilities(&z.to_owned()));
                    p.iter().zip(&r).map(|(p, r)| p * (p.ln() - r.ln())).sum::<f64>()
                };
                y.rows().into_iter().zip(z.rows()).map(token).sum()
            })
            .collect()
    }
    fn columns(&self, g: usize) -> std::ops::Range<usize> {
        let start = g * self.config.group;
        start..(start + self.config.group).min(self.weight.ncols())
    }
    /// Section 2, word for word: the weight, and the widths.
    fn solve(&self) -> (Array2<f64>, Vec<u32>, Vec<f64>) {
        let [search, rounding] = self.factors();
        let divergences = self.divergences(&search);
        let smallest = |e: &[f64]| (0..e.len()).fold(0, |best, i| if e[i] < e[best] { i } else { best });
        let narrow = if divergences.is_empty() { 0 } else { 1 + smallest(&divergences) };
        let widths = self.widths(&self.order(&rounding), narrow);
        let (u, dead) = &rounding;
        let mut w = self.weight(dead);
        let nominal = self.config.bits.get();
        let first_wide = widths.iter().position(|&n| n >= nominal).unwrap_or(widths.len());
        for (g, &n) in widths.iter().enumerate() {
            let columns = self.columns(g);
            let fixed = self.config.variant == Variant::Official && g < first_wide;
            let block = w.slice_axis(Axis(1), Slice::from(columns.clone())).to_owned();
            let sensitivity = Array2::from_shape_fn(block.dim(), |(i, j)| {
                (block[(i, j)] / u[(columns.start + j, columns.start + j)]).powi(2)
            });
            let mean = sensitivity.mean().unwrap();
            let deviation = sensitivity.std(1.0);
            let outliers = sensitivity.iter().filter(|&&s| ((s - mean) / deviation).abs() > 2.0);
            let threshold = outliers.copied().fold(f64::INFINITY, f64::min);
            let params: Vec<(f64, f64)> = (0..w.nrows())
                .map(|i| {
                    let row = block.row(i).to_vec();
                    if n == 1 {
                        return one_bit(&row, self.config.variant);
                    }
                    let step = |i: i32| 0.1 * f64::from(i) / 50.0;
                    let up = (1..=50).map(|i| 1.0 + step(i));
                    let factors = std::iter::once(1.0).chain(up).chain((1..=50).map(|i| 1.0 - step(i)));
                    let mut best = (f64::INFINITY, (0.0, 0.0));
                    for factor in factors {
                        let params = range(&row, n, factor, fixed);
                        let error = |(j, &w): (usize, &f64)| {
                            let counts = sensitivity[(i, j)] >= threshold;
                            let counts = if counts { f64::from(self.config.lambda) } else { 1.0 };
                            counts * (rounded(w, params, n) - w).abs().powf(2.4)
                        };
                        let error = row.iter().enumerate().map(error).sum::<f64>();
                        if error < best.0 {
                            best = (error, params);
                        }
                    }
                    best.1
                })
                .collect();
            for j in columns {
                for i in 0..w.nrows() {
                    let q = rounded(w[(i, j)], params[i], n);
                    let error = (w[(i, j)] - q) / u[(j, j)];
                    for k in j + 1..w.ncols() {
                        w[(i, k)] -= error * u[(j, k)];
                    }
                    w[(i, j)] = q;
                }
            }
        }
        (w, widths, divergences)
    }
    fn ours(&self, par: Par) -> SlimResult {
        let settings = FactorSettings::default();
        let factor = SlimFactor::new(hessian(self.x), &settings, self.config.variant, par).unwrap();
        let bias = self.bias.map(|b| b.view());
        slim(self.weight.view(), &factor, self.x.view(), bias, self.config, par).unwrap()
    }
}

fn inputs(n: usize, dead: bool) -> Array2<f32> {
    let mut x = Numbers::new(n as u64).activations(3 * n, n);
    if dead {
        x.column_mut(3).fill(0.0);
    }
    x
}

fn config(n: u32, group: usize, variant: Variant) -> SlimConfig {
    SlimConfig { variant, ..SlimConfig::new(bits(n), group) }
}

fn widths(result: &SlimResult, groups: usize) -> Vec<u32> {
    (0..groups).map(|g| result.matrix.widths().of(g).get()).collect()
}

#[test]
fn it_is_the_published_formulation() {
    let (n, out) = (60, 9);
    let x = inputs(n, true);
    let weight = Numbers::new(8).normals(out, n) * 0.3;
    let bias = Array1::from_shape_fn(out, |i| (i as f32 - 4.0) * 0.3);
    for variant in [Variant::Exact, Variant::Official] {
        for (b, group, lambda) in [(2, 8, 1.0), (3, 8, 1.0), (4, 7, 1.0), (3, 8, 3.0), (3, 20, 1.0)] {
            let config = SlimConfig { lambda, ..config(b, group, variant) };
            for bias in [None, Some(&bias)] {
                let problem = Problem { weight: &weight, bias, x: &x, config: &config };
                let (want, wanted_widths, divergences) = problem.solve();
                let got = problem.ours(Par::Seq);
                let what = format!("{variant:?}, {b} bits, groups of {group}, {}", bias.is_some());
                for (a, b) in got.divergences.iter().zip(&divergences) {
                    assert!((a - b).abs() <= 1e-3 * b.abs() + 1e-4, "{what}: {a} instead of {b}");
                }
                assert_eq!(got.divergences.len(), divergences.len(), "{what}");
                assert_eq!(widths(&got, wanted_widths.len()), wanted_widths, "{what}");
                let q = got.matrix.dequantize();
                // A candidate that ties within float noise, or a weight on a half step, changes its row and no other.
                let differs = |row: &usize| {
                    q.row(*row).iter().zip(want.row(*row)).any(|(a, b)| (f64::from(*a) - b).abs() > 1e-4)
                };
                let rows = (0..out).filter(differs).count();
                assert!(rows <= 1, "{what}: {rows} rows differ");
            }
        }
    }
}

/// As many groups of a bit less as of a bit more, the least salient and the most salient ones.
#[test]
fn widths_keep_their_mean() {
    let x = inputs(64, false);
    let weight = Numbers::new(9).normals(12, 64);
    for (b, variant) in [(2, Variant::Exact), (5, Variant::Official)] {
        let config = config(b, 4, variant);
        let problem = Problem { weight: &weight, bias: None, x: &x, config: &config };
        let result = problem.ours(Par::Seq);
        let widths = widths(&result, 16);
        assert!(matches!(result.matrix.widths(), Widths::PerGroup(_)));
        assert_eq!(widths.iter().sum::<u32>(), 16 * b);
        let count = |n: u32| widths.iter().filter(|w| **w == n).count();
        assert_eq!(count(b - 1), count(b + 1));
        assert!((1..=slim_most(16)).contains(&count(b + 1)));
        assert_eq!(result.divergences.len(), slim_most(16));
        assert!(result.divergences.iter().all(|d| *d >= -1e-6));
        let [_, rounding] = problem.factors();
        let order = problem.order(&rounding);
        assert_eq!((widths[order[0]], widths[order[15]]), (b - 1, b + 1));
    }
    // Too few groups for different ones.
    let config = config(3, 24, Variant::Exact);
    let uniform = Problem { weight: &weight, bias: None, x: &x, config: &config }.ours(Par::Seq);
    assert_eq!(uniform.matrix.widths(), &Widths::Uniform(bits(3)));
    assert!(uniform.divergences.is_empty());
}

/// `W − Ŵ = E U` as in GPTQ, so the loss is half the error weighted by the damped Hessian.
#[test]
fn the_loss_is_the_weighted_error() {
    let x = inputs(48, false);
    let weight = Numbers::new(10).normals(10, 48);
    let config = config(3, 8, Variant::Exact);
    let result = Problem { weight: &weight, bias: None, x: &x, config: &config }.ours(Par::Seq);
    let h = Prepared::new(&hessian(&x).finish().unwrap(), false, 0.01).h;
    let d = (&weight - &result.matrix.dequantize()).mapv(f64::from);
    let weighted = (&d.dot(&h) * &d).sum();
    assert!((2.0 * result.loss() - weighted).abs() < 1e-3 * weighted, "{} {weighted}", result.loss());
}

/// A bias that is the same for all outputs moves no probability; another one does.
#[test]
fn a_constant_bias_changes_nothing() {
    let x = inputs(64, false);
    let weight = Numbers::new(11).normals(12, 64) * 0.2;
    let config = config(3, 8, Variant::Exact);
    let run =
        |bias: Option<&Array1<f32>>| Problem { weight: &weight, bias, x: &x, config: &config }.ours(Par::Seq);
    let (none, constant) = (run(None), run(Some(&Array1::from_elem(12, 0.75))));
    for (a, b) in none.divergences.iter().zip(&constant.divergences) {
        assert!((a - b).abs() <= 1e-3 * a.abs() + 1e-4, "{a} {b}");
    }
    let other = run(Some(&Array1::from_shape_fn(12, |i| i as f32)));
    assert!((none.divergences[0] - other.divergences[0]).abs() > 1e-2 * none.divergences[0]);
}

#[test]
fn what_does_not_fit_is_refused() {
    let x = inputs(32, false);
    let weight = Numbers::new(12).normals(5, 32);
    let factor = SlimFactor::new(hessian(&x), &FactorSettings::default(), Variant::Exact, Par::Seq).unwrap();
    let run = |weight: &Array2<f32>, x: &Array2<f32>, bias: usize, config: &SlimConfig| {
        let bias = Array1::zeros(bias);
        slim(weight.view(), &factor, x.view(), Some(bias.view()), config, Par::Seq)
    };
    let good = config(3, 8, Variant::Exact);
    assert!(run(&weight, &x, 5, &good).is_ok());
    for (changed, name) in [
        (SlimConfig { bits: bits(1), ..good.clone() }, "bits"),
        (SlimConfig { bits: bits(8), ..good.clone() }, "bits"),
        (SlimConfig { group: 0, ..good.clone() }, "group"),
        (SlimConfig { lambda: f32::NAN, ..good.clone() }, "lambda"),
    ] {
        let refused = run(&weight, &x, 5, &changed);
        assert!(matches!(&refused, Err(HessianError::Setting { name: n, .. }) if *n == name), "{refused:?}");
    }
    let narrow = |a: &Array2<f32>| a.slice_axis(Axis(1), Slice::from(..31)).to_owned();
    assert!(matches!(run(&narrow(&weight), &x, 5, &good), Err(HessianError::Shape { .. })));
    assert!(matches!(run(&weight, &narrow(&x), 5, &good), Err(HessianError::Shape { .. })));
    assert!(matches!(run(&weight, &x, 4, &good), Err(HessianError::Shape { what: "bias", .. })));
    let mut wild = weight.clone();
    wild[(3, 20)] = f32::INFINITY;
    assert!(matches!(run(&wild, &x, 5, &good), Err(HessianError::Core(_))));
    (wild[(3, 20)], wild[(3, 21)]) = (3e38, 1.3e38);
    assert!(matches!(run(&wild, &x, 5, &good), Err(HessianError::NotFiniteResult { row: 3, .. })));
    let half = SlimConfig { scale_type: FloatType::F16, ..good };
    wild[(3, 20)] = 1e6;
    assert!(matches!(run(&wild, &x, 5, &half), Err(HessianError::Core(_))));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn threads_do_not_matter(out in 1_usize..300, n in 1_usize..90, group in 1_usize..24, b in 2_u32..=7, threads in 2_usize..6, seed: u64) {
        let x = inputs(n, n > 4);
        let weight = Numbers::new(seed).normals(out, n);
        for (variant, lambda) in [(Variant::Exact, 1.0), (Variant::Official, 2.5)] {
            let config = SlimConfig { lambda, ..config(b, group, variant) };
            let problem = Problem { weight: &weight, bias: None, x: &x, config: &config };
            let one = problem.ours(Par::Seq);
            prop_assert_eq!(&one, &problem.ours(Par::new(threads)));
            prop_assert!(one.matrix.dequantize().iter().all(|v| v.is_finite()));
        }
    }
}

/// The published Hessian: dead columns become columns of their own, and 0.01 stays.
#[test]
fn absolute_damping_stays() {
    let h = Array2::from_diag(&Array1::from(vec![0.0, 4.0, 0.5]));
    let factor = |variant| {
        let h = Hessian::from_matrix(h.clone(), 3).unwrap();
        SlimFactor::new(h, &FactorSettings::default(), variant, Par::Seq).unwrap()
    };
    let official = factor(Variant::Official);
    assert!(official.report().dead_columns.is_empty());
    assert!((official.report().mean_diagonal - (1.01 + 4.01 + 0.51) / 3.0).abs() < 1e-6);
    assert_eq!(factor(Variant::Exact).report().dead_columns, [0]);
}
