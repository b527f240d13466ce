//! The published implementations' numbers, at the tolerances that come with them: a subset in the repository
//! (`tests/data`), every case where the reference data is present.

use ndarray::{Array2, Axis};
use quant_core::{Bits, ClipSearch, Convention, FloatType, Grid, Groups, Variant};
use quant_kernels::{Compute, Par};
use quant_testkit::Golden;

use super::reference::{Prepared, inverse};
use crate::{ActOrder, Factor, FactorSettings, GptqConfig, Hessian, Precision, gptq, prepare};

const SUBSET: &[u8] = include_bytes!("../../tests/data/gptq_subset.safetensors");

pub(super) fn hessian(golden: &Golden) -> Hessian {
    let sequences = golden.tensor("X").shape[0];
    let x = golden.matrix("X");
    let mut hessian = Hessian::new(x.ncols());
    for sequence in x.axis_chunks_iter(Axis(0), x.nrows() / sequences) {
        hessian.add(sequence, 1, Compute::F32, Par::Seq).unwrap();
    }
    hessian
}

pub(super) fn frobenius<'a>(a: impl IntoIterator<Item = &'a f32>) -> f64 {
    a.into_iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt()
}

/// tr(D H Dᵀ) in f64.
fn proxy(d: &Array2<f32>, h: &Array2<f32>) -> f64 {
    let (d, h) = (d.mapv(f64::from), h.mapv(f64::from));
    (&d.dot(&h) * &d).sum()
}

pub(super) fn close(what: &str, got: f64, want: f64, tolerance: f64) -> f64 {
    let relative = (got - want).abs() / want.abs().max(f64::MIN_POSITIVE);
    assert!(relative <= tolerance, "{what}: {got} instead of {want}, relative difference {relative:e}");
    relative
}

/// A case as this crate's settings.
pub(super) struct Case<'a> {
    name: &'a str,
    golden: &'a Golden,
    pub(super) bits: Bits,
    /// What lies between our unsigned levels and the codes of the file.
    pub(super) offset: f32,
    pub(super) settings: FactorSettings,
    pub(super) config: GptqConfig,
}

impl<'a> Case<'a> {
    pub(super) fn new(golden: &'a Golden, name: &'a str, precision: Precision) -> Self {
        let case = &golden.cases()[name];
        let flag = |key: &str| case[key].as_bool().unwrap_or(false);
        let number = |key: &str| case[key].as_f64();
        let bits = Bits::new(number("bits").unwrap() as u32).unwrap();
        let (symmetric, act_order) = (flag("sym"), flag("actorder"));
        let ist = case["variant"] == "ist";
        let (convention, variant) = match (ist, symmetric) {
            (true, false) => (Convention::QAsym, Variant::Exact),
            (true, true) => (Convention::QSymGptq, Variant::Official),
            (false, false) => (Convention::QAsym, Variant::Official),
            (false, true) => (Convention::QSym, Variant::Official),
        };
        let damping = number("percdamp").unwrap();
        let config = GptqConfig {
            group: number("groupsize").map(|g| g as usize),
            clip: flag("mse").then(ClipSearch::default),
            act_order: match (act_order, flag("static_groups")) {
                (false, _) => ActOrder::None,
                (true, true) => ActOrder::Static,
                (true, false) => ActOrder::Dynamic,
            },
            static_groups: flag("static_groups"),
            block: number("blocksize").map_or(128, |b| b as usize),
            ..GptqConfig::new(Grid::new(convention, bits, variant, FloatType::F32).unwrap())
        };
        Self {
            name,
            golden,
            bits,
            offset: if !ist && symmetric { bits.mid_level() } else { 0.0 },
            settings: FactorSettings { damping, act_order, precision, ..FactorSettings::default() },
            config,
        }
    }

    pub(super) fn matrix(&self, part: &str) -> Array2<f32> {
        self.golden.matrix(&format!("{}.{part}", self.name))
    }
    pub(super) fn has(&self, part: &str) -> bool {
        self.golden.has(&format!("{}.{part}", self.name))
    }
    pub(super) fn number(&self, key: &str) -> f64 {
        self.golden.cases()[self.name][key].as_f64().unwrap()
    }

    /// The weight as it stood when each column was rounded, in f64 from the finished matrix `q` `[out, in]`; columns in
    /// original order.
    fn at_quantisation(&self, h: &Array2<f32>, weight: &Array2<f32>, q: &Array2<f32>) -> Array2<f64> {
        let problem = Prepared::new(h, self.settings.act_order, self.settings.damping);
        let panels = problem.panels();
        let mut updated = Array2::zeros(weight.dim());
        for k in 0..weight.ncols() {
            let column = problem.column(k);
            let alive =
                |c: usize, row: usize| if problem.dead[c] { 0.0 } else { f64::from(weight[(row, c)]) };
            for row in 0..weight.nrows() {
                let earlier = (0..k).map(|j| {
                    let c = problem.column(j);
                    (alive(c, row) - f64::from(q[(row, c)])) * panels.at(j, k)
                });
                updated[(row, column)] = alive(column, row) + earlier.sum::<f64>();
            }
        }
        updated
    }

    /// A row whose codes differ from the file's must do so first, in processing order, where the weight was within float
    /// noise of a half step; what follows there answers another problem.
    fn explain(
        &self,
        factor: &Factor,
        h: &Array2<f32>,
        weight: &Array2<f32>,
        groups: &Groups,
    ) -> impl Fn(usize, &[usize]) {
        let (codes, scales, zeros) = (self.matrix("codes"), self.matrix("scale"), self.matrix("zero"));
        let q = Array2::from_shape_fn(codes.dim(), |(i, j)| {
            let g = groups.of(j);
            scales[(i, g)] * (codes[(i, j)] - zeros[(i, g)])
        });
        let updated = self.at_quantisation(h, weight, &q);
        let position: Vec<usize> = match factor.order() {
            None => (0..weight.ncols()).collect(),
            Some(order) => {
                let mut position = vec![0; order.len()];
                order.iter().enumerate().for_each(|(k, &column)| position[column as usize] = k);
                position
            }
        };
        let (scales, groups, name) = (scales, groups.clone(), self.name.to_owned());
        move |row, columns| {
            let &first = columns.iter().min_by_key(|&&c| position[c]).unwrap();
            let steps = updated[(row, first)] / f64::from(scales[(row, groups.of(first))]);
            let distance = (steps - steps.floor() - 0.5).abs();
            assert!(distance < 1e-4, "{name} ({row}, {first}): {distance} of a step from a half step");
        }
    }

    fn check(&self, h: &Array2<f32>, weight: &Array2<f32>) {
        let name = self.name;
        let factor = prepare(hessian(self.golden), &self.settings, Par::Seq).unwrap();
        let result = gptq(weight.view(), &factor, &self.config, Par::Seq).unwrap();
        let groups = result.matrix.groups();
        for (column, &group) in self.golden.vector(&format!("{name}.g_idx")).iter().enumerate() {
            assert_eq!(groups.of(column), group as usize, "{name}: group of column {column}");
        }
        if self.has("perm") {
            let perm = self.golden.vector(&format!("{name}.perm"));
            let order = factor.order().unwrap();
            let differ = order.iter().zip(&perm).filter(|(a, b)| **a as f32 != **b).count();
            // The two dead columns tie, and ties are open in the reference.
            assert!(differ <= 2, "{name}: {differ} positions of the order differ");
        }

        let codes = result.matrix.levels().mapv(|l| f32::from(l) - self.offset);
        let want = self.matrix("codes");
        let explain = self.explain(&factor, h, weight, groups);
        let (mut different, mut clean) = (0, Vec::new());
        for (row, (codes, want)) in codes.rows().into_iter().zip(want.rows()).enumerate() {
            let columns: Vec<usize> = (0..codes.len()).filter(|&j| codes[j] != want[j]).collect();
            different += columns.len();
            if columns.is_empty() {
                clean.push(row);
            } else {
                explain(row, &columns);
            }
        }
        assert!(different * 1000 <= codes.len(), "{name}: {different} of {} codes differ", codes.len());

        let want = self.matrix("scale");
        let scale_error = frobenius(&(result.matrix.scales() - &want)) / frobenius(&want);
        assert!(scale_error <= 1e-5, "{name}: scales differ by {scale_error:e}");
        let (zeros, want) = (result.matrix.zeros().mapv(|z| z - self.offset), self.matrix("zero"));
        assert_eq!(zeros, want, "{name}: zero levels");

        let loss = close(name, result.loss(), self.number("loss"), 1e-3);
        let rows = self.golden.vector(&format!("{name}.losses_row"));
        let mut worst_row = 0.0_f64;
        for &row in &clean {
            let what = format!("{name}: loss of row {row}");
            worst_row = worst_row.max(close(&what, result.row_losses[row], f64::from(rows[row]), 1e-3));
        }
        let quantised = result.matrix.dequantize();
        let proxy = close(name, proxy(&(weight - &quantised), h), self.number("proxy_trDHDt"), 1e-3);
        for (part, got) in
            [("Q", quantised.mapv(f64::from)), ("w_at_quant", self.at_quantisation(h, weight, &quantised))]
        {
            if self.has(part) {
                let want = self.matrix(part).mapv(f64::from);
                let largest = want.iter().fold(0.0_f64, |a, v| a.max(v.abs()));
                for &row in &clean {
                    for (j, (a, b)) in got.row(row).iter().zip(want.row(row)).enumerate() {
                        assert!((a - b).abs() <= 1e-4 * largest, "{name} {part} ({row}, {j}): {a} vs {b}");
                    }
                }
            }
        }
        println!(
            "{name:34} {} bits, {different} of {} codes, scale {scale_error:.1e}, loss {loss:.1e} (worst row {worst_row:.1e}), \
             proxy {proxy:.1e}",
            self.bits.get(),
            codes.len()
        );
    }
}

fn check_all(golden: &Golden, precision: Precision) {
    let h = hessian(golden).finish().unwrap();
    let weight = golden.matrix("W");
    for name in golden.cases().keys() {
        Case::new(golden, name, precision).check(&h, &weight);
    }
}

#[test]
fn subset_in_f32() {
    let golden = Golden::parse(SUBSET);
    assert_eq!(golden.cases().len(), 6);
    for (got, want) in hessian(&golden).diagonal().unwrap().iter().zip(golden.vector("Hdiag")) {
        assert!((got - want).abs() <= 1e-5 * want);
    }
    check_all(&golden, Precision::F32);
}

#[test]
fn subset_in_f64() {
    check_all(&Golden::parse(SUBSET), Precision::F64);
}

#[test]
fn every_case_of_the_golden_file() {
    let Some(golden) = Golden::shared("gptq.safetensors") else { return };
    assert_eq!(golden.cases().len(), 33);
    assert_eq!(golden.tensors.keys().filter(|k| k.ends_with(".Q") || k.ends_with(".w_at_quant")).count(), 5);
    let (got, want) = (hessian(&golden).finish().unwrap(), golden.matrix("H"));
    let error = frobenius(&(&got - &want)) / frobenius(&want);
    println!("H: relative difference {error:.1e}");
    assert!(error <= 1e-5, "H: {error:e}");
    check_all(&golden, Precision::F32);

    // The stored H instead of ours, through `from_matrix`, and activations in one go: the same factor.
    let settings = FactorSettings::default();
    let ours = prepare(hessian(&golden), &settings, Par::Seq).unwrap();
    let stored = prepare(Hessian::from_matrix(want, 8).unwrap(), &settings, Par::Seq).unwrap();
    let x = golden.matrix("X");
    let mut whole = Hessian::new(x.ncols());
    whole.add(x.view(), 8, Compute::F32, Par::Seq).unwrap();
    let whole = prepare(whole, &settings, Par::Seq).unwrap();
    for (name, factor) in [("stored H", &stored), ("one batch", &whole)] {
        close(name, factor.report().lambda(), ours.report().lambda(), 1e-5);
    }
    assert_eq!(stored.report().dead_columns, [17, 90]);

    // U, the upper Cholesky factor of the inverse, is R⁻¹: what the published code factorises twice for.
    let n = ours.n();
    let r = Array2::from_shape_fn((n, n), |(j, k)| {
        let unit = if j <= k { f64::from(ours.panels.at(j, k)) } else { 0.0 };
        unit * f64::from(ours.panels.diagonal()[k])
    });
    let (u, want) = (inverse(&r).mapv(|x| x as f32), golden.matrix("Hinv_upper"));
    let error = frobenius(&(&u - &want)) / frobenius(&want);
    println!("U: relative difference {error:.1e}");
    assert!(error <= 1e-4, "U: {error:e}");
}
