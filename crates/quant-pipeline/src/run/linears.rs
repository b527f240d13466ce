//! Rounding of the linears of one stage, and what it cost.

use super::stats::{InputStats, dynamic_kv, scheme_text};
use super::{Run, add_seconds};
use crate::PipelineError;
use crate::events::Event;
use crate::plan::LinearPlan;
use crate::report::{LinearReport, StageFactor};
use ndarray::{Array1, Array2, ArrayView2, Axis};
use quant_core::{ActQuant, QuantizedMatrix};
use quant_graph::{BlockParams, LinearParams, LinearWeight, Role, Site};
use quant_hessian::{Factor, prepare};
use quant_kernels::{Compute, Par, linear, vectorized};
use rayon::prelude::*;
use std::time::Instant;

impl Run<'_> {
    /// Quantises a block whose recipe needs no activations.
    pub(super) fn quantize_alone(
        &mut self,
        index: usize,
        mut block: BlockParams,
    ) -> Result<BlockParams, PipelineError> {
        self.phase("round")?;
        for role in Role::ALL {
            if let Some(params) = block.linears.remove(&role) {
                let input = self.plan.blocks[index][&role].scheme.input.and_then(|i| i.dynamic());
                block.linears.insert(role, self.round_linear(index, role, params, None, input, None)?);
            }
        }
        block.kv = dynamic_kv(self.plan.scheme.kv);
        Ok(block)
    }

    /// Rounds the linears of a stage with the statistics of their input, from `pending` to the returned list.
    pub(super) fn round_stage(
        &mut self,
        index: usize,
        site: Site,
        pending: &mut BlockParams,
        mut stats: InputStats,
    ) -> Result<Vec<(Role, LinearParams)>, PipelineError> {
        let roles = site.stage().linears;
        let factor = match stats.hessian.take() {
            None => None,
            Some(hessian) => {
                self.phase("factor")?;
                let started = Instant::now();
                let by = |role: &&Role| {
                    let rounding = self.plan.blocks[index][*role].rounding.as_ref();
                    rounding.is_some_and(|r| r.quantizer().method().needs.hessian)
                };
                let role = roles.iter().find(by).unwrap_or(&roles[0]);
                let plan = &self.plan.blocks[index][role];
                let factor = prepare(hessian, &plan.factor, self.par())
                    .map_err(PipelineError::hessian(plan.module.clone()))?;
                self.report.factors.push(StageFactor {
                    block: index,
                    module: plan.module.clone(),
                    factor: factor.report().clone(),
                });
                add_seconds(&mut self.report.seconds, "factor", started);
                Some(factor)
            }
        };
        self.phase("round")?;
        let mut done = Vec::new();
        for &role in roles {
            let Some(params) = pending.linears.remove(&role) else { continue };
            let scheme = self.plan.blocks[index][&role].scheme;
            let input = scheme.input.and_then(|i| stats.input_quant(i, self.plan.scale_type));
            let params =
                self.round_linear(index, role, params, factor.as_ref(), input, Some(stats.sample.view()))?;
            done.push((role, params));
        }
        Ok(done)
    }

    fn round_linear(
        &mut self,
        index: usize,
        role: Role,
        params: LinearParams,
        factor: Option<&Factor>,
        input: Option<ActQuant>,
        sample: Option<ArrayView2<'_, f32>>,
    ) -> Result<LinearParams, PipelineError> {
        self.go_on()?;
        let plan = &self.plan.blocks[index][&role];
        let par = self.par();
        let started = Instant::now();
        let weight = params.weight.into_values();
        let (rounded, loss) = match &plan.rounding {
            None => (None, None),
            Some(rounding) => {
                let rounded = rounding
                    .quantizer()
                    .quantize(weight.view(), factor, par)
                    .map_err(PipelineError::method(plan.module.clone()))?;
                (Some(rounded.matrix), rounded.loss)
            }
        };
        let seconds = started.elapsed().as_secs_f64();
        add_seconds(&mut self.report.seconds, "round", started);
        let started = Instant::now();
        let output_error = sample.map(|x| output_error(x, &weight, rounded.as_ref(), input.as_ref(), par));
        let report = linear_report(plan, index, &weight, rounded.as_ref(), output_error, loss, seconds, self);
        self.events.event(Event::Linear(&report));
        self.report.linears.push(report);
        add_seconds(&mut self.report.seconds, "measure", started);
        let weight = rounded.map_or(LinearWeight::Float(weight), LinearWeight::Quantized);
        Ok(LinearParams { weight, bias: params.bias, input })
    }
}

fn linear_report(
    plan: &LinearPlan,
    block: usize,
    weight: &Array2<f32>,
    rounded: Option<&QuantizedMatrix>,
    output_error: Option<f64>,
    loss: Option<f64>,
    seconds: f64,
    run: &Run<'_>,
) -> LinearReport {
    let float_bits = 8 * run.plan.norm_type.size();
    let scheme = plan.scheme;
    LinearReport {
        module: plan.module.clone(),
        block,
        method: plan.rounding.as_ref().map(|r| r.quantizer().method().id),
        scheme: scheme_text(
            scheme.weight.map(|w| w.bits),
            scheme.weight.and_then(|w| w.group),
            scheme.input.map(|i| i.bits),
        ),
        bits_per_weight: rounded
            .map_or(float_bits as f64, |q| q.bits_per_weight(8 * run.plan.scale_type.size())),
        weight_error: rounded.map_or(0.0, |q| weight_error(weight, q, run.par())),
        output_error,
        loss,
        seconds,
    }
}

/// `‖Ŵ − W‖ / ‖W‖`, rows in parallel, summed in row order.
fn weight_error(weight: &Array2<f32>, rounded: &QuantizedMatrix, par: Par) -> f64 {
    // Lanes of f32 within a row, f64 across rows: six digits are plenty for a report.
    const LANES: usize = 16;
    let row = |values: &mut Array1<f32>, i: usize| {
        vectorized(
            #[inline(always)]
            || {
                rounded.dequantize_row(i, values.view_mut());
                let (mut difference, mut norm) = ([0.0_f32; LANES], [0.0_f32; LANES]);
                let (Some(w), Some(v)) = (weight.row(i).to_slice(), values.as_slice()) else {
                    return (0.0, 0.0);
                };
                let (mut ws, mut vs) = (w.chunks_exact(LANES), v.chunks_exact(LANES));
                for (w, v) in (&mut ws).zip(&mut vs) {
                    for l in 0..LANES {
                        difference[l] += (v[l] - w[l]) * (v[l] - w[l]);
                        norm[l] += w[l] * w[l];
                    }
                }
                for (l, (w, v)) in ws.remainder().iter().zip(vs.remainder()).enumerate() {
                    difference[l] += (v - w) * (v - w);
                    norm[l] += w * w;
                }
                let total = |lanes: [f32; LANES]| lanes.iter().map(|&x| f64::from(x)).sum::<f64>();
                (total(difference), total(norm))
            },
        )
    };
    let buffer = || Array1::<f32>::zeros(weight.ncols());
    let sums: Vec<(f64, f64)> = match par {
        Par::Seq => {
            let mut values = buffer();
            (0..weight.nrows()).map(|i| row(&mut values, i)).collect()
        }
        Par::Threads(_) => {
            let rows = (0..weight.nrows()).into_par_iter().with_min_len(16);
            rows.map_init(buffer, |values, i| row(values, i)).collect()
        }
    };
    let (difference, norm) = sums.iter().fold((0.0, 0.0), |(d, n), (x, y)| (d + x, n + y));
    ratio(difference, norm)
}

/// `‖Q(X)Ŵᵀ − XWᵀ‖ / ‖XWᵀ‖` on sampled tokens, in f32 products.
fn output_error(
    x: ArrayView2<'_, f32>,
    weight: &Array2<f32>,
    rounded: Option<&QuantizedMatrix>,
    input: Option<&ActQuant>,
    par: Par,
) -> f64 {
    let float = linear(x, weight.view(), None, Compute::F32, par);
    let mut seen = x.to_owned();
    if let Some(quant) = input {
        vectorized(
            #[inline(always)]
            || quant.fake_quantize(seen.view_mut()),
        );
    }
    // The difference of the weights keeps the digits that subtracting two outputs would lose.
    let mut change = rounded.map_or_else(
        || Array2::zeros(float.dim()),
        |q| {
            let delta = q.dequantize() - weight;
            linear(seen.view(), delta.view(), None, Compute::F32, par)
        },
    );
    if input.is_some() {
        let delta = &seen - &x;
        change += &linear(delta.view(), weight.view(), None, Compute::F32, par);
    }
    let square = |a: &Array2<f32>| -> f64 {
        a.axis_iter(Axis(0)).map(|r| r.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>()).sum()
    };
    ratio(square(&change), square(&float))
}

fn ratio(difference: f64, norm: f64) -> f64 {
    if norm > 0.0 { (difference / norm).sqrt() } else { 0.0 }
}
