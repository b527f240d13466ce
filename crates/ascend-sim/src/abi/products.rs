//! Products of floats, and of floats with coded weights.

use std::ffi::c_int;
use std::sync::Arc;

use super::phases::{Outs, PLANS, invalid, is_half, model, spoiled};
use crate::Mistake;
use crate::Switch;
use crate::arithmetic::float::Digits;
use crate::arithmetic::{float, quantize};
use crate::generated::types::*;
use crate::tensor::Tensor;
use crate::world::{Answer, Plan, World, call, report};

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclnnMmGetWorkspaceSize(
    self_: *const aclTensor,
    mat2: *const aclTensor,
    out: *mut aclTensor,
    cubeMathType: i8,
    workspaceSize: *mut u64,
    executor: *mut *mut aclOpExecutor,
) -> aclnnStatus {
    let name = "aclnnMm";
    call(name, PLANS, |world| {
        let (a, b, out) = (world.tensor(self_)?, world.tensor(mat2)?, world.tensor(out)?);
        let (&[m, k], &[depth, n]) = (a.dims.as_slice(), b.dims.as_slice()) else {
            return invalid(format!("{name}: both operands have two axes"));
        };
        let model_type = model(a.dtype);
        let fit = matches!(a.dtype, ACL_FLOAT | ACL_FLOAT16 | ACL_BF16)
            && a.dtype == b.dtype
            && a.dtype == out.dtype
            && k == depth
            && k > 0
            && out.dims == [m, n]
            && (0..=4).contains(&cubeMathType)
            && !(cubeMathType == 2 && a.dtype == ACL_BF16);
        if !fit {
            return invalid(format!("{name}: types, shapes or cubeMathType {cubeMathType} do not fit"));
        }
        let shape = [m, k, n].map(|d| usize::try_from(d).unwrap_or(0));
        let (reads, into) = (vec![a.clone(), b.clone()], out.clone());
        let run = Arc::new(move |world: &mut World| {
            let round = |t: &Tensor, world: &World| -> Answer<Vec<f32>> {
                let values = t.floats(&world.memory)?;
                Ok(float::prepared(&values, model_type, cubeMathType).unwrap_or(values))
            };
            let (a, b) = (round(&a, world)?, round(&b, world)?);
            let mut values = float::product(&a, &b, (shape[0], shape[1], shape[2]), false);
            values.iter_mut().for_each(|x| *x = spoiled(world, Mistake::Matmul, *x));
            into.put_floats(&mut world.memory, &values)
        });
        world.planned(name, Plan { run, reads, writes: vec![out] }, (workspaceSize, executor))
    })
}

/// The arguments that all weight-only products share.
struct WeightOnly {
    tensors: [*const aclTensor; 7],
    group: c_int,
    y: *const aclTensor,
}

fn plan_weight_only(name: &'static str, q: &WeightOnly, outs: Outs) -> aclnnStatus {
    call(name, PLANS, |world| {
        let [x, weight, scale, offset, quant_scale, quant_offset, bias] = q.tensors;
        if !quant_scale.is_null() || !quant_offset.is_null() {
            return report(format!("{name}: an output of codes is not simulated"));
        }
        let (x, weight, scale, y) =
            (world.tensor(x)?, world.tensor(weight)?, world.tensor(scale)?, world.tensor(q.y)?);
        let (offset, bias) = (world.optional(offset)?, world.optional(bias)?);
        let (&[m, k], &[depth, n]) = (x.code_dims_if(false).as_slice(), weight.code_dims().as_slice()) else {
            return invalid(format!("{name}: x and weight have two axes"));
        };
        if weight.is_nz() != (name == "aclnnWeightQuantBatchMatmulNz") {
            return invalid(format!("{name}: the layout of the weight"));
        }
        let group = usize::try_from(q.group).unwrap_or(usize::MAX);
        let grouped = group != 0;
        if grouped && (!group.is_multiple_of(32) || group < 32 || group > k.saturating_sub(1)) {
            return invalid(format!("{name}: groups of {group} inputs of {k}"));
        }
        let groups = if grouped { k.div_ceil(group) } else { 1 };
        let wanted: &[Vec<i64>] =
            &if grouped { vec![vec![groups as i64, n as i64]] } else { vec![vec![1], vec![1, n as i64]] };
        let parameters = |t: &Tensor| t.dtype == x.dtype && wanted.contains(&t.dims);
        let bias_type = if x.dtype == ACL_FLOAT16 { ACL_FLOAT16 } else { ACL_FLOAT };
        let fit = is_half(x.dtype)
            && matches!(weight.dtype, ACL_INT8 | ACL_INT4 | ACL_INT32)
            && depth == k
            && k > 0
            && parameters(&scale)
            && offset.as_ref().is_none_or(|o| parameters(o) && o.dims == scale.dims)
            && bias.as_ref().is_none_or(|b| b.dtype == bias_type && b.dims == [n as i64])
            && y.dtype == x.dtype
            && y.dims == [m as i64, n as i64];
        if !fit {
            return invalid(format!("{name}: types or shapes do not fit"));
        }
        let reads = [Some(&x), Some(&weight), Some(&scale), offset.as_ref(), bias.as_ref()];
        let reads = reads.into_iter().flatten().cloned().collect();
        let into = y.clone();
        let deterministic = world.deterministic.contains(&world.context()?);
        let run = Arc::new(move |world: &mut World| {
            let kind = model(x.dtype);
            let (values, codes, scales) =
                (x.floats(&world.memory)?, weight.codes(&world.memory)?, scale.floats(&world.memory)?);
            let offsets = offset.as_ref().map(|o| o.floats(&world.memory)).transpose()?;
            let bias = bias.as_ref().map(|b| b.floats(&world.memory)).transpose()?;
            let parameter = |v: &[f32], l: usize, j: usize| match (v.len(), grouped) {
                (1, _) => v[0],
                (_, true) => v[l / group * n + j],
                _ => v[j],
            };
            let eight = !grouped && weight.dtype == ACL_INT8 && m <= 64 && k % 32 == 0 && n % 32 == 0;
            let four = matches!(group, 64 | 128)
                && weight.dtype != ACL_INT8
                && m <= group / 8
                && k % group == 0
                && n % 64 == 0
                && k <= 13_952
                && !deterministic;
            let few = world.switch(Switch::Msd) != 0 && offsets.is_none() && (eight || four);
            let mut out = if few {
                let (each, digits) = if eight { (k, Digits::EIGHT) } else { (group, Digits::FOUR) };
                let row = |row: &[f32]| {
                    let products = float::digits_product(row, &codes, n, each, digits);
                    let mut sums = vec![0.0_f32; n];
                    for (at, product) in products.into_iter().enumerate() {
                        sums[at % n] += product * parameter(&scales, at / n * each, at % n);
                    }
                    sums
                };
                values.chunks(k).flat_map(row).collect()
            } else {
                let dequantized = |(at, &code): (usize, &i32)| {
                    let (l, j) = (at / n, at % n);
                    let offset = offsets.as_ref().map_or(0.0, |o| parameter(o, l, j));
                    quantize::dequantized(code, parameter(&scales, l, j), offset, kind)
                };
                let weights: Vec<f32> = codes.iter().enumerate().map(dequantized).collect();
                // Nobody asked for an order: it is another one.
                float::product(&values, &weights, (m, k, n), !deterministic)
            };
            for (at, x) in out.iter_mut().enumerate() {
                *x = spoiled(world, Mistake::WeightOnly, *x + bias.as_ref().map_or(-0.0, |b| b[at % n]));
                if few {
                    *x = float::half_away(*x, kind);
                }
            }
            into.put_floats(&mut world.memory, &out)
        });
        world.planned(name, Plan { run, reads, writes: vec![y] }, outs)
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclnnWeightQuantBatchMatmulV2GetWorkspaceSize(
    x: *const aclTensor,
    weight: *const aclTensor,
    antiquantScale: *const aclTensor,
    antiquantOffsetOptional: *const aclTensor,
    quantScaleOptional: *const aclTensor,
    quantOffsetOptional: *const aclTensor,
    biasOptional: *const aclTensor,
    antiquantGroupSize: c_int,
    y: *const aclTensor,
    workspaceSize: *mut u64,
    executor: *mut *mut aclOpExecutor,
) -> aclnnStatus {
    let tensors = [
        x,
        weight,
        antiquantScale,
        antiquantOffsetOptional,
        quantScaleOptional,
        quantOffsetOptional,
        biasOptional,
    ];
    let q = WeightOnly { tensors, group: antiquantGroupSize, y };
    plan_weight_only("aclnnWeightQuantBatchMatmulV2", &q, (workspaceSize, executor))
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclnnWeightQuantBatchMatmulV3GetWorkspaceSize(
    x: *const aclTensor,
    weight: *const aclTensor,
    antiquantScale: *const aclTensor,
    antiquantOffsetOptional: *const aclTensor,
    quantScaleOptional: *const aclTensor,
    quantOffsetOptional: *const aclTensor,
    biasOptional: *const aclTensor,
    antiquantGroupSize: c_int,
    innerPrecise: c_int,
    y: *const aclTensor,
    workspaceSize: *mut u64,
    executor: *mut *mut aclOpExecutor,
) -> aclnnStatus {
    let name = "aclnnWeightQuantBatchMatmulV3";
    if !(0..=1).contains(&innerPrecise) {
        return call(name, PLANS, |_| {
            invalid(format!("{name}: innerPrecise {innerPrecise} is neither 0 nor 1"))
        });
    }
    let tensors = [
        x,
        weight,
        antiquantScale,
        antiquantOffsetOptional,
        quantScaleOptional,
        quantOffsetOptional,
        biasOptional,
    ];
    plan_weight_only(name, &WeightOnly { tensors, group: antiquantGroupSize, y }, (workspaceSize, executor))
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclnnWeightQuantBatchMatmulNzGetWorkspaceSize(
    x: *const aclTensor,
    weight: *const aclTensor,
    antiquantScale: *const aclTensor,
    antiquantOffsetOptional: *const aclTensor,
    quantScaleOptional: *const aclTensor,
    quantOffsetOptional: *const aclTensor,
    biasOptional: *const aclTensor,
    antiquantGroupSize: c_int,
    y: *const aclTensor,
    workspaceSize: *mut u64,
    executor: *mut *mut aclOpExecutor,
) -> aclnnStatus {
    let tensors = [
        x,
        weight,
        antiquantScale,
        antiquantOffsetOptional,
        quantScaleOptional,
        quantOffsetOptional,
        biasOptional,
    ];
    let q = WeightOnly { tensors, group: antiquantGroupSize, y };
    plan_weight_only("aclnnWeightQuantBatchMatmulNz", &q, (workspaceSize, executor))
}
