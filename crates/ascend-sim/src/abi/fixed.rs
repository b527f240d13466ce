//! Quantisation with fixed scales and its inverse, packing, FlatQuant.

use std::ffi::c_char;
use std::sync::Arc;

use super::phases::{PLANS, invalid, is_half, model, spoiled, spoiled_code};
use super::string;
use crate::Mistake;
use crate::Switch;
use crate::arithmetic::quantize::{self, Model, Rounding};
use crate::generated::types::*;
use crate::tensor::Tensor;
use crate::world::{Plan, World, call, refuse, report};

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclnnAscendQuantV3GetWorkspaceSize(
    x: *const aclTensor,
    scale: *const aclTensor,
    offset: *const aclTensor,
    sqrtMode: bool,
    roundMode: *const c_char,
    dstType: i32,
    axis: i32,
    y: *const aclTensor,
    workspaceSize: *mut u64,
    executor: *mut *mut aclOpExecutor,
) -> aclnnStatus {
    let name = "aclnnAscendQuantV3";
    // SAFETY: a text of the caller.
    let mode = unsafe { string(roundMode) };
    call(name, PLANS, |world| {
        let (x, scale, y) = (world.tensor(x)?, world.tensor(scale)?, world.tensor(y)?);
        let offset = world.optional(offset)?;
        let Some(mode) = mode else {
            return refuse(ACLNN_ERR_PARAM_NULLPTR, format!("{name}: roundMode is a null pointer"));
        };
        let Some(rounding) = Rounding::named(&mode) else {
            return invalid(format!("{name}: roundMode {mode:?}"));
        };
        if sqrtMode || axis != -1 {
            return report(format!("{name}: sqrtMode, and axes but the last, are not simulated"));
        }
        let wanted = match dstType {
            2 => ACL_INT8,
            29 => ACL_INT4,
            3 => ACL_INT32,
            other => return invalid(format!("{name}: dstType {other}")),
        };
        let k = x.last();
        let lengths = |t: &Tensor| t.dims.len() == 1 && [1, k].contains(&t.elements()) && t.dtype == x.dtype;
        if !matches!(x.dtype, ACL_FLOAT | ACL_FLOAT16 | ACL_BF16) || x.dims.is_empty() || !lengths(&scale) {
            return invalid(format!("{name}: the types of x and scale, or the length of scale"));
        }
        if offset.as_ref().is_some_and(|o| !lengths(o) || o.dims != scale.dims) {
            return invalid(format!("{name}: offset is not like scale"));
        }
        let four = dstType != 2;
        if y.dtype != wanted
            || y.code_dims_if(wanted == ACL_INT32) != x.code_dims_if(false)
            || (four && k % 2 != 0)
        {
            return invalid(format!("{name}: y is not the shape of x, or not the type of dstType"));
        }
        let reads = [Some(&x), Some(&scale), offset.as_ref()].into_iter().flatten().cloned().collect();
        let into = y.clone();
        let run = Arc::new(move |world: &mut World| {
            let (values, scales) = (x.floats(&world.memory)?, scale.floats(&world.memory)?);
            let offsets = offset.as_ref().map(|o| o.floats(&world.memory)).transpose()?;
            let at = |v: &[f32], i: usize| if v.len() == 1 { v[0] } else { v[i % k] };
            let code = |(i, &x): (usize, &f32)| {
                let offset = offsets.as_ref().map_or(0.0, |o| at(o, i));
                spoiled_code(
                    world,
                    Mistake::StaticQuant,
                    quantize::fixed(x, at(&scales, i), offset, rounding, four),
                )
            };
            let codes: Vec<i32> = values.iter().enumerate().map(code).collect();
            into.put_codes(&mut world.memory, &codes, four)
        });
        world.planned(name, Plan { run, reads, writes: vec![y] }, (workspaceSize, executor))
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclnnAscendAntiQuantGetWorkspaceSize(
    x: *const aclTensor,
    scale: *const aclTensor,
    offset: *const aclTensor,
    dstType: i64,
    sqrtMode: bool,
    y: *const aclTensor,
    workspaceSize: *mut u64,
    executor: *mut *mut aclOpExecutor,
) -> aclnnStatus {
    let name = "aclnnAscendAntiQuant";
    call(name, PLANS, |world| {
        let (x, scale, y) = (world.tensor(x)?, world.tensor(scale)?, world.tensor(y)?);
        let offset = world.optional(offset)?;
        if sqrtMode {
            return report(format!("{name}: sqrtMode is not simulated"));
        }
        let dims = x.code_dims();
        let k = dims.last().copied().unwrap_or(0);
        let floats = |t: &Tensor| {
            t.dims.len() == 1
                && [1, k].contains(&t.elements())
                && (t.dtype == ACL_FLOAT || t.dtype == y.dtype)
        };
        let fit = matches!(x.dtype, ACL_INT8 | ACL_INT4 | ACL_INT32)
            && i64::from(y.dtype) == dstType
            && is_half(y.dtype)
            && y.code_dims() == dims
            && floats(&scale)
            && offset.as_ref().is_none_or(|o| floats(o) && o.dtype == scale.dtype && o.dims == scale.dims);
        if !fit {
            return invalid(format!("{name}: types or shapes do not fit"));
        }
        let reads = [Some(&x), Some(&scale), offset.as_ref()].into_iter().flatten().cloned().collect();
        let into = y.clone();
        let run = Arc::new(move |world: &mut World| {
            let (codes, scales) = (x.codes(&world.memory)?, scale.floats(&world.memory)?);
            let offsets = offset.as_ref().map(|o| o.floats(&world.memory)).transpose()?;
            let at = |v: &[f32], i: usize| if v.len() == 1 { v[0] } else { v[i % k] };
            let value = |(i, &code): (usize, &i32)| {
                let offset = offsets.as_ref().map_or(0.0, |o| at(o, i));
                spoiled(world, Mistake::AntiQuant, quantize::anti(code, at(&scales, i), offset))
            };
            let values: Vec<f32> = codes.iter().enumerate().map(value).collect();
            into.put_floats(&mut world.memory, &values)
        });
        world.planned(name, Plan { run, reads, writes: vec![y] }, (workspaceSize, executor))
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclnnConvertWeightToINT4PackGetWorkspaceSize(
    weight: *const aclTensor,
    weightInt4Pack: *mut aclTensor,
    workspaceSize: *mut u64,
    executor: *mut *mut aclOpExecutor,
) -> aclnnStatus {
    let name = "aclnnConvertWeightToINT4Pack";
    call(name, PLANS, |world| {
        let (weight, out) = (world.tensor(weight)?, world.tensor(weightInt4Pack)?);
        let fit = weight.dtype == ACL_INT32
            && matches!(out.dtype, ACL_INT32 | ACL_INT4)
            && !out.is_nz()
            && weight.dims.len() == 2
            && out.code_dims_if(out.dtype == ACL_INT32) == weight.code_dims_if(false);
        if !fit {
            return invalid(format!(
                "{name}: an INT32 weight with two axes, and INT32 (an eighth as wide) or INT4"
            ));
        }
        let (reads, into) = (vec![weight.clone()], out.clone());
        let run = Arc::new(move |world: &mut World| {
            let mut codes = weight.integers(&world.memory)?;
            if codes.iter().any(|code| !(-8..=7).contains(code)) {
                return report("aclnnConvertWeightToINT4Pack: a value does not fit into four bits");
            }
            codes.iter_mut().for_each(|code| *code = spoiled_code(world, Mistake::PackInt4, *code));
            into.put_codes(&mut world.memory, &codes, true)
        });
        world.planned(name, Plan { run, reads, writes: vec![out] }, (workspaceSize, executor))
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclnnFlatQuantGetWorkspaceSize(
    x: *const aclTensor,
    kroneckerP1: *const aclTensor,
    kroneckerP2: *const aclTensor,
    clipRatio: f64,
    out: *mut aclTensor,
    quantScale: *mut aclTensor,
    workspaceSize: *mut u64,
    executor: *mut *mut aclOpExecutor,
) -> aclnnStatus {
    let name = "aclnnFlatQuant";
    call(name, PLANS, |world| {
        let (x, p1, p2) = (world.tensor(x)?, world.tensor(kroneckerP1)?, world.tensor(kroneckerP2)?);
        let (out, scale) = (world.tensor(out)?, world.tensor(quantScale)?);
        let &[m, n1, n2] = x.dims.as_slice() else { return invalid(format!("{name}: x has three axes")) };
        let fit = is_half(x.dtype)
            && p1.dtype == x.dtype
            && p2.dtype == x.dtype
            && p1.dims == [n1, n1]
            && p2.dims == [n2, n2]
            && (1..=262_144).contains(&m)
            && (1..=256).contains(&n1)
            && (1..=256).contains(&n2)
            && clipRatio > 0.0
            && clipRatio <= 1.0
            && scale.dtype == ACL_FLOAT
            && scale.dims == [m]
            && matches!(out.dtype, ACL_INT32 | ACL_INT4)
            && n2 % (if out.dtype == ACL_INT32 { 8 } else { 2 }) == 0
            && out.code_dims() == x.code_dims_if(false);
        if !fit {
            return invalid(format!("{name}: types, shapes or clipRatio {clipRatio} do not fit"));
        }
        let shape = (usize::try_from(n1).unwrap_or(0), usize::try_from(n2).unwrap_or(0));
        let reads = vec![x.clone(), p1.clone(), p2.clone()];
        let writes = vec![out.clone(), scale.clone()];
        let run = Arc::new(move |world: &mut World| {
            let between = if world.switch(Switch::RoundBetween) == 0 { Model::F32 } else { model(x.dtype) };
            let (values, p1, p2) =
                (x.floats(&world.memory)?, p1.floats(&world.memory)?, p2.floats(&world.memory)?);
            let width = shape.0 * shape.1;
            let mut codes = vec![0; values.len()];
            let token = |(x, codes): (&[f32], &mut [i32])| {
                quantize::kronecker(x, (&p1, &p2), shape, clipRatio, between, codes)
            };
            let scales: Vec<f32> = values.chunks(width).zip(codes.chunks_mut(width)).map(token).collect();
            codes.iter_mut().for_each(|code| *code = spoiled_code(world, Mistake::Kronecker, *code));
            out.put_codes(&mut world.memory, &codes, true)?;
            scale.put_floats(&mut world.memory, &scales)
        });
        world.planned(name, Plan { run, reads, writes }, (workspaceSize, executor))
    })
}
