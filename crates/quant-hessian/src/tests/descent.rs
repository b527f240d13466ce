//! Sweeps after the column loop: what they lower, where they end, what they leave alone.

use ndarray::Array2;
use quant_core::{ActOrder, Convention, FloatType, QuantizedMatrix};
use quant_kernels::{Compute, Par};
use quant_testkit::Numbers;

use super::{grid, hessian};
use crate::{
    CrossGram, Factor, FactorSettings, GptqConfig, HessianError, QronosConfig, Retarget, gptaq, gptq,
    prepare, qronos,
};

fn factor(x: &Array2<f32>, act_order: bool) -> Factor {
    let settings = FactorSettings { act_order, keep_matrix: true, ..FactorSettings::default() };
    prepare(hessian(x), &settings, Par::Seq).unwrap()
}

/// `½ (t − q) H_d (t − q)ᵀ` of every row, in f64.
fn objective(target: &Array2<f64>, matrix: &QuantizedMatrix, x: &Array2<f32>, lambda: f64) -> Vec<f64> {
    let mut h = hessian(x).finish().unwrap().mapv(f64::from);
    for d in h.diag_mut() {
        *d = if *d == 0.0 { 1.0 } else { *d } + lambda;
    }
    let error = target - &matrix.dequantize().mapv(f64::from);
    (error.dot(&h) * &error).rows().into_iter().map(|row| 0.5 * row.sum()).collect()
}

fn config(convention: Convention, bits: u32, group: Option<usize>, sweeps: usize) -> GptqConfig {
    GptqConfig { group, static_groups: group.is_some(), sweeps, ..GptqConfig::new(grid(convention, bits)) }
}

/// Every convention, width of groups (below a block, above it, per channel, a short last one) and order: sweeps lower what they say
/// they lower, every row of it, and say by how much.
#[test]
fn sweeps_lower_the_loss_of_every_row() {
    let (n, out) = (300, 70);
    let mut noise = Numbers::new(1);
    let mut x = noise.activations(500, n);
    x.column_mut(7).fill(0.0);
    let weight = noise.normals(out, n);
    let mut target = weight.mapv(f64::from);
    target.column_mut(7).fill(0.0);
    for (convention, bits) in [
        (Convention::QAsym, 2),
        (Convention::QAsym, 3),
        (Convention::QSym, 3),
        (Convention::QSymGptq, 4),
        (Convention::QAwq, 2),
        (Convention::QAsym, 1),
    ] {
        for (group, act_order) in [(Some(32), false), (Some(32), true), (Some(200), false), (None, true)] {
            let factor = factor(&x, act_order);
            let lambda = factor.report().lambda();
            let mut last: Option<(f64, Vec<f64>)> = None;
            for sweeps in [0, 1, 2, 6] {
                let order = if act_order { ActOrder::Static } else { ActOrder::None };
                let config = GptqConfig { act_order: order, ..config(convention, bits, group, sweeps) };
                let result = gptq(weight.view(), &factor, &config, Par::Seq).unwrap();
                let losses = objective(&target, &result.matrix, &x, lambda);
                for (row, (said, found)) in result.row_losses.iter().zip(&losses).enumerate() {
                    assert!(
                        (said - found).abs() < 1e-3 * found,
                        "{convention:?} {group:?} row {row}: {said} {found}"
                    );
                }
                let total: f64 = losses.iter().sum();
                if let Some((before, rows)) = last {
                    let rises =
                        losses.iter().zip(&rows).filter(|(now, then)| **now > **then * 1.0001).count();
                    assert_eq!(rises, 0, "{convention:?} {bits} {group:?} {sweeps}");
                    assert!(total < before, "{convention:?} {bits} {group:?} {sweeps}: {total} {before}");
                    if sweeps == 1 {
                        println!("{convention:?} {bits} {group:?}: {:.3}", total / before);
                        // Per channel there is least to gain.
                        assert!(total < 0.995 * before, "{convention:?} {bits} {group:?}: {total} {before}");
                    }
                }
                last = Some((total, losses));
            }
        }
    }
}

/// Where it ends, no level one up or down, no other scale and no other zero level is better.
#[test]
fn it_ends_where_no_single_change_helps() {
    let (n, out) = (40, 5);
    let mut noise = Numbers::new(4);
    let x = noise.activations(90, n);
    let weight = noise.normals(out, n);
    let target = weight.mapv(f64::from);
    let factor = factor(&x, false);
    let lambda = factor.report().lambda();
    for group in [Some(8), None] {
        let config = config(Convention::QAsym, 3, group, 100);
        let matrix = gptq(weight.view(), &factor, &config, Par::Seq).unwrap().matrix;
        let found = objective(&target, &matrix, &x, lambda);
        let (widths, levels, scales, zeros, groups) = matrix.into_parts();
        let no_better =
            |what: &str, levels: &Array2<u8>, scales: &Array2<f32>, zeros: &Array2<f32>, row: usize| {
                let other = QuantizedMatrix::new(
                    widths.clone(),
                    levels.clone(),
                    scales.clone(),
                    zeros.clone(),
                    groups.clone(),
                );
                let other = objective(&target, &other.unwrap(), &x, lambda)[row];
                assert!(
                    other > found[row] * (1.0 - 1e-5),
                    "{group:?}, {what}, row {row}: {other} {}",
                    found[row]
                );
            };
        for row in 0..out {
            for column in 0..n {
                for level in [levels[(row, column)].wrapping_sub(1), levels[(row, column)] + 1] {
                    if level <= 7 {
                        let mut changed = levels.clone();
                        changed[(row, column)] = level;
                        no_better("level", &changed, &scales, &zeros, row);
                    }
                }
            }
            for g in 0..scales.ncols() {
                for factor in [0.99, 1.01] {
                    let mut changed = scales.clone();
                    changed[(row, g)] *= factor;
                    no_better("scale", &levels, &changed, &zeros, row);
                }
                for zero in [zeros[(row, g)] - 1.0, zeros[(row, g)] + 1.0] {
                    if (0.0..=7.0).contains(&zero) {
                        let mut changed = zeros.clone();
                        changed[(row, g)] = zero;
                        no_better("zero level", &levels, &scales, &changed, row);
                    }
                }
            }
        }
    }
}

/// Scales stay what the loader can hold, and zero levels are levels.
#[test]
fn what_comes_out_can_be_stored() {
    let mut noise = Numbers::new(6);
    let x = noise.activations(200, 96);
    let weight = noise.normals(20, 96);
    let mut config = config(Convention::QAsym, 2, Some(32), 5);
    config.grid = config.grid.with_scale_type(FloatType::Bf16);
    let matrix = gptq(weight.view(), &factor(&x, false), &config, Par::Seq).unwrap().matrix;
    assert!(matrix.scales().iter().all(|&s| s > 0.0 && FloatType::Bf16.round(s) == s));
    assert!(matrix.zeros().iter().all(|&z| (0.0..=3.0).contains(&z) && z.fract() == 0.0));
}

#[test]
fn neither_threads_nor_other_rows_show() {
    let mut noise = Numbers::new(9);
    let x = noise.activations(400, 160);
    let weight = noise.normals(150, 160);
    let factor = factor(&x, true);
    for group in [Some(32), None] {
        let config = GptqConfig { act_order: ActOrder::Static, ..config(Convention::QAsym, 2, group, 3) };
        let one = gptq(weight.view(), &factor, &config, Par::Seq).unwrap();
        assert_eq!(one, gptq(weight.view(), &factor, &config, Par::new(2)).unwrap());
        let part = weight.slice_axis(ndarray::Axis(0), ndarray::Slice::from(33..77));
        let part = gptq(part, &factor, &config, Par::Seq).unwrap();
        for (i, row) in part.matrix.levels().rows().into_iter().enumerate() {
            assert_eq!(row, one.matrix.levels().row(33 + i));
        }
        assert_eq!(part.row_losses, one.row_losses[33..77]);
    }
}

/// Qronos' sweeps go on towards its own target, whichever order its columns have.
#[test]
fn sweeps_of_qronos_follow_the_moved_weight() {
    let (n, out) = (60, 8);
    let mut noise = Numbers::new(12);
    let x = noise.activations(300, n);
    let float = &x + &(noise.normals(300, n) * 0.2);
    let weight = noise.normals(out, n);
    let error = |matrix: &QuantizedMatrix| {
        let target = float.mapv(f64::from).dot(&weight.mapv(f64::from).t());
        let got = x.mapv(f64::from).dot(&matrix.dequantize().mapv(f64::from).t());
        (&target - &got).mapv(|e| e * e).sum()
    };
    for act_order in [false, true] {
        let factor = factor(&x, act_order);
        let mut cross = CrossGram::new(n, true);
        cross.add(float.view(), x.view(), 1, Compute::F32, Par::Seq).unwrap();
        let retarget = Retarget::new(cross, &factor, out, Par::Seq).unwrap();
        let order = if act_order { ActOrder::Static } else { ActOrder::None };
        let result = |sweeps: usize| {
            let gptq = GptqConfig { act_order: order, ..config(Convention::QAsym, 2, Some(20), sweeps) };
            qronos(weight.view(), &factor, &retarget, &QronosConfig::new(gptq), Par::Seq).unwrap()
        };
        let (without, with) = (result(0), result(4));
        assert_eq!(without.shift, with.shift);
        assert!(with.rounded.loss() < 0.9 * without.rounded.loss());
        assert!(error(&with.rounded.matrix) < error(&without.rounded.matrix));
    }
}

#[test]
fn sweeps_that_cannot_be_made_are_refused() {
    let mut noise = Numbers::new(3);
    let x = noise.activations(40, 12);
    let weight = noise.normals(3, 12);
    let refused = |factor: &Factor, config: &GptqConfig| {
        let error = gptq(weight.view(), factor, config, Par::Seq).unwrap_err();
        assert!(matches!(error, HessianError::Setting { name: "sweeps", .. }), "{error}");
        error.to_string()
    };
    let plain = prepare(hessian(&x), &FactorSettings::default(), Par::Seq).unwrap();
    let one = config(Convention::QAsym, 4, Some(4), 1);
    assert!(refused(&plain, &one).contains("keep_matrix"));
    let dynamic = GptqConfig { act_order: ActOrder::Dynamic, static_groups: false, ..one.clone() };
    assert!(refused(&factor(&x, true), &dynamic).contains("consecutive"));
    let mut cross = CrossGram::new(12, false);
    cross.add(x.view(), x.view(), 1, Compute::F32, Par::Seq).unwrap();
    let config = crate::GptaqConfig::new(one);
    let correction = crate::Correction::new(cross, &plain, config.alpha, config.variant, Par::Seq).unwrap();
    let error = gptaq(weight.view(), &plain, &correction, &config, Par::Seq).unwrap_err();
    assert!(error.to_string().contains("gptq and qronos have them"), "{error}");
}
