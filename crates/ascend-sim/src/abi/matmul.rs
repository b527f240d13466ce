//! QuantMatmul in its versions.

use std::sync::Arc;

use super::phases::{Outs, PLANS, invalid, spoiled, spoiled_code};
use crate::Mistake;
use crate::Switch;
use crate::arithmetic::integer::{Association, fixpipe_code, sums, vector_end};
use crate::arithmetic::scale;
use crate::generated::types::*;
use crate::tensor::Tensor;
use crate::world::{Answer, Plan, World, call, report};

struct QuantMatmul {
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    token: Option<Tensor>,
    offset: Option<Tensor>,
    bias: Option<Tensor>,
    transposed: bool,
    out: Tensor,
}

/// A row of the table of types: x1, x2, whether there is a scale of tokens, the scale, the bias, the output.
fn types_fit(q: &QuantMatmul) -> bool {
    let eight = q.x.dtype == ACL_INT8 && q.weight.dtype == ACL_INT8;
    let four = matches!(q.x.dtype, ACL_INT4 | ACL_INT32) && q.x.dtype == q.weight.dtype;
    let bias = |allowed: &[aclDataType]| q.bias.as_ref().is_none_or(|b| allowed.contains(&b.dtype));
    let token = q.token.is_some();
    let words = matches!(q.scale.dtype, ACL_UINT64 | ACL_INT64);
    match (q.out.dtype, q.scale.dtype) {
        (ACL_FLOAT16, _) if words => (eight || four) && !token && bias(&[ACL_INT32]),
        (ACL_INT8, _) if words => eight && !token && bias(&[ACL_INT32]),
        (ACL_BF16, ACL_FLOAT | ACL_BF16) => {
            (eight || four && token) && bias(&[ACL_INT32, ACL_BF16, ACL_FLOAT])
        }
        (ACL_FLOAT16, ACL_FLOAT) => (eight || four) && token && bias(&[ACL_INT32, ACL_FLOAT16, ACL_FLOAT]),
        (ACL_INT32, ACL_FLOAT | ACL_BF16) => eight && !token && bias(&[ACL_INT32]),
        _ => false,
    }
}

impl QuantMatmul {
    /// `(m, k, n)` where everything fits.
    fn check(&self, name: &str) -> Answer<(usize, usize, usize)> {
        if !types_fit(self) {
            return invalid(format!(
                "{name}: types x1 {}, x2 {}, x2Scale {}, out {} cannot be combined",
                self.x.dtype, self.weight.dtype, self.scale.dtype, self.out.dtype
            ));
        }
        if self.weight.dims.len() != 2 {
            return report(format!("{name}: a weight with {} axes is not simulated", self.weight.dims.len()));
        }
        let (dims, weight) = (self.x.code_dims(), self.weight.code_dims());
        if dims.len() < 2 || dims.len() > 6 {
            return invalid(format!("{name}: x1 has {} axes", dims.len()));
        }
        let k = dims[dims.len() - 1];
        let m: usize = dims[..dims.len() - 1].iter().product();
        let (depth, n) = if self.transposed { (weight[1], weight[0]) } else { (weight[0], weight[1]) };
        if depth != k || k == 0 {
            return invalid(format!("{name}: x1 has {k} columns, x2 has {depth} rows"));
        }
        let four = matches!(self.x.dtype, ACL_INT4 | ACL_INT32);
        let odd = if self.transposed { k % 2 } else { k % 2 + n % 2 };
        if four && (self.weight.is_nz() || odd != 0 || (self.x.dtype == ACL_INT32 && k % 8 != 0)) {
            return invalid(format!("{name}: codes of four bits want an ND weight and even axes"));
        }
        let limit = 65_535;
        let free = self.token.is_some() && !four && self.scale.dtype != ACL_UINT64;
        if !free && (k > limit || n > limit) {
            return invalid(format!("{name}: an axis is longer than {limit}"));
        }
        let mut out: Vec<i64> = self.x.dims.clone();
        if let Some(last) = out.last_mut() {
            *last = i64::try_from(n).unwrap_or(i64::MAX);
        }
        if self.out.dims != out {
            return invalid(format!("{name}: out is {:?}, expected {out:?}", self.out.dims));
        }
        let lengths = [
            ("x2Scale", Some(&self.scale), &[1, n][..]),
            ("x1Scale", self.token.as_ref(), &[m]),
            ("bias", self.bias.as_ref(), &[n]),
            ("offset", self.offset.as_ref(), &[1, n]),
        ];
        for (what, tensor, wanted) in lengths {
            if tensor.is_some_and(|t| t.dims.len() != 1 || !wanted.contains(&t.elements())) {
                return invalid(format!("{name}: {what} has not the length {wanted:?}"));
            }
        }
        if self.token.as_ref().is_some_and(|t| t.dtype != ACL_FLOAT) {
            return invalid(format!("{name}: x1Scale is not FLOAT"));
        }
        if self.offset.as_ref().is_some_and(|t| t.dtype != ACL_FLOAT || self.out.dtype != ACL_INT8) {
            return invalid(format!("{name}: x2Offset is for an output of INT8, and FLOAT"));
        }
        Ok((m, k, n))
    }

    fn run(&self, world: &mut World, (m, k, n): (usize, usize, usize)) -> Answer<()> {
        let x = self.x.codes(&world.memory)?;
        let stored = self.weight.codes(&world.memory)?;
        let weight =
            if self.transposed { stored } else { (0..n * k).map(|at| stored[at % k * n + at / k]).collect() };
        let mut acc = sums(&x, &weight, (m, k, n));
        let whole = self.bias.as_ref().filter(|b| b.dtype == ACL_INT32);
        if let Some(bias) = whole {
            let bias = bias.integers(&world.memory)?;
            acc.iter_mut().enumerate().for_each(|(at, sum)| *sum = sum.wrapping_add(bias[at % n]));
        }
        let one = |values: &[f32], at: usize| if values.len() == 1 { values[0] } else { values[at] };
        if self.out.dtype == ACL_INT32 {
            let codes: Vec<i32> = acc.iter().map(|&c| spoiled_code(world, Mistake::QuantMatmul, c)).collect();
            return self.out.put_codes(&mut world.memory, &codes, false);
        }
        if matches!(self.scale.dtype, ACL_UINT64 | ACL_INT64) {
            let words = self.scale.words(&world.memory)?;
            let cut = world.switch(Switch::Fp19) != 0;
            let scales: Vec<f32> = words.iter().map(|&word| scale::unpack(word, cut)).collect();
            if self.out.dtype == ACL_FLOAT16 {
                let values: Vec<f32> = acc
                    .iter()
                    .enumerate()
                    .map(|(at, &sum)| spoiled(world, Mistake::QuantMatmul, sum as f32 * one(&scales, at % n)))
                    .collect();
                return self.out.put_floats(&mut world.memory, &values);
            }
            let offsets: Vec<i32> = match &self.offset {
                Some(offset) => offset
                    .floats(&world.memory)?
                    .iter()
                    .map(|o| o.round_ties_even().clamp(-256.0, 255.0) as i32)
                    .collect(),
                None => words.iter().map(|&word| scale::unpack_offset(word)).collect(),
            };
            let offset = |at: usize| if offsets.len() == 1 { offsets[0] } else { offsets[at] };
            let code = |(at, &sum): (usize, &i32)| {
                spoiled_code(
                    world,
                    Mistake::QuantMatmul,
                    fixpipe_code(sum, one(&scales, at % n), offset(at % n)),
                )
            };
            let codes: Vec<i32> = acc.iter().enumerate().map(code).collect();
            return self.out.put_codes(&mut world.memory, &codes, false);
        }
        let scales = self.scale.floats(&world.memory)?;
        let tokens = self.token.as_ref().map(|t| t.floats(&world.memory)).transpose()?;
        let bias = self
            .bias
            .as_ref()
            .filter(|b| b.dtype != ACL_INT32)
            .map(|b| b.floats(&world.memory))
            .transpose()?;
        let order = if world.switch(Switch::Association) == 0 {
            Association::ScaleFirst
        } else {
            Association::ScalesFirst
        };
        let value = |(at, &sum): (usize, &i32)| {
            let (token, channel) = (at / n, at % n);
            // −0 adds nothing, not even a sign.
            let bias = bias.as_ref().map_or(-0.0, |b| b[channel]);
            spoiled(
                world,
                Mistake::QuantMatmul,
                vector_end(sum, one(&scales, channel), tokens.as_ref().map(|t| t[token]), bias, order),
            )
        };
        let values: Vec<f32> = acc.iter().enumerate().map(value).collect();
        self.out.put_floats(&mut world.memory, &values)
    }
}

/// The first phase of every version.
fn plan_matmul(
    name: &'static str,
    tensors: [*const aclTensor; 7],
    transposed: (bool, bool),
    outs: Outs,
) -> aclnnStatus {
    call(name, PLANS, |world| {
        let [x, weight, token, scale, offset, bias, out] = tensors;
        if transposed.0 {
            return invalid(format!("{name}: transposeX1 is not supported for these types"));
        }
        let (x, weight, scale, out) =
            (world.tensor(x)?, world.tensor(weight)?, world.tensor(scale)?, world.tensor(out)?);
        let (token, offset, bias) = (world.optional(token)?, world.optional(offset)?, world.optional(bias)?);
        if name == "aclnnQuantMatmulWeightNz" && !weight.is_nz() {
            return invalid(format!("{name}: x2 is not FRACTAL_NZ"));
        }
        let optional = [&token, &offset, &bias].into_iter().flatten();
        let reads = [&x, &weight, &scale].into_iter().chain(optional).cloned().collect();
        let operator =
            QuantMatmul { x, weight, scale, token, offset, bias, transposed: transposed.1, out: out.clone() };
        let shape = operator.check(name)?;
        let run = Arc::new(move |world: &mut World| operator.run(world, shape));
        world.planned(name, Plan { run, reads, writes: vec![out] }, outs)
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclnnQuantMatmulV3GetWorkspaceSize(
    x1: *const aclTensor,
    x2: *const aclTensor,
    scale: *const aclTensor,
    offset: *const aclTensor,
    bias: *const aclTensor,
    transposeX1: bool,
    transposeX2: bool,
    out: *const aclTensor,
    workspaceSize: *mut u64,
    executor: *mut *mut aclOpExecutor,
) -> aclnnStatus {
    let tensors = [x1, x2, std::ptr::null(), scale, offset, bias, out];
    plan_matmul("aclnnQuantMatmulV3", tensors, (transposeX1, transposeX2), (workspaceSize, executor))
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclnnQuantMatmulV4GetWorkspaceSize(
    x1: *const aclTensor,
    x2: *const aclTensor,
    scale: *const aclTensor,
    offset: *const aclTensor,
    pertokenScaleOptional: *const aclTensor,
    bias: *const aclTensor,
    transposeX1: bool,
    transposeX2: bool,
    out: *const aclTensor,
    workspaceSize: *mut u64,
    executor: *mut *mut aclOpExecutor,
) -> aclnnStatus {
    let tensors = [x1, x2, pertokenScaleOptional, scale, offset, bias, out];
    plan_matmul("aclnnQuantMatmulV4", tensors, (transposeX1, transposeX2), (workspaceSize, executor))
}

/// V5 and its sister: what V4 has not must be absent.
fn plan_v5(
    name: &'static str,
    tensors: [*const aclTensor; 7],
    absent: [*const aclTensor; 3],
    group: i64,
    transposed: (bool, bool),
    outs: Outs,
) -> aclnnStatus {
    if absent.iter().any(|tensor| !tensor.is_null()) || group != 0 {
        return call(name, PLANS, |_| {
            if absent[0].is_null() {
                report(format!("{name}: groups and offsets of x1 and y are not simulated"))
            } else {
                invalid(format!("{name}: yScale must be a null pointer"))
            }
        });
    }
    plan_matmul(name, tensors, transposed, outs)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclnnQuantMatmulV5GetWorkspaceSize(
    x1: *const aclTensor,
    x2: *const aclTensor,
    x1Scale: *const aclTensor,
    x2Scale: *const aclTensor,
    yScale: *const aclTensor,
    x1Offset: *const aclTensor,
    x2Offset: *const aclTensor,
    yOffset: *const aclTensor,
    bias: *const aclTensor,
    transposeX1: bool,
    transposeX2: bool,
    groupSize: i64,
    out: *mut aclTensor,
    workspaceSize: *mut u64,
    executor: *mut *mut aclOpExecutor,
) -> aclnnStatus {
    let tensors = [x1, x2, x1Scale, x2Scale, x2Offset, bias, out.cast_const()];
    let (transposed, outs) = ((transposeX1, transposeX2), (workspaceSize, executor));
    plan_v5("aclnnQuantMatmulV5", tensors, [yScale, x1Offset, yOffset], groupSize, transposed, outs)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclnnQuantMatmulWeightNzGetWorkspaceSize(
    x1: *const aclTensor,
    x2: *const aclTensor,
    x1Scale: *const aclTensor,
    x2Scale: *const aclTensor,
    yScale: *const aclTensor,
    x1Offset: *const aclTensor,
    x2Offset: *const aclTensor,
    yOffset: *const aclTensor,
    bias: *const aclTensor,
    transposeX1: bool,
    transposeX2: bool,
    groupSize: i64,
    out: *mut aclTensor,
    workspaceSize: *mut u64,
    executor: *mut *mut aclOpExecutor,
) -> aclnnStatus {
    let tensors = [x1, x2, x1Scale, x2Scale, x2Offset, bias, out.cast_const()];
    let (transposed, outs) = ((transposeX1, transposeX2), (workspaceSize, executor));
    plan_v5("aclnnQuantMatmulWeightNz", tensors, [yScale, x1Offset, yOffset], groupSize, transposed, outs)
}
