//! Dynamic quantisation.

use std::ffi::c_char;
use std::sync::Arc;

use super::phases::{Outs, PLANS, invalid, is_half, spoiled, spoiled_code};
use super::string;
use crate::Mistake;
use crate::Switch;
use crate::arithmetic::quantize;
use crate::generated::types::*;
use crate::world::{Plan, World, call, refuse, report};

struct DynamicQuant {
    x: *const aclTensor,
    smooth: *const aclTensor,
    group: *const aclTensor,
    dst: i64,
    y: *const aclTensor,
    scale: *const aclTensor,
    offset: *const aclTensor,
}

fn plan_dynamic(name: &'static str, q: &DynamicQuant, outs: Outs) -> aclnnStatus {
    call(name, PLANS, |world| {
        let (x, y, scale) = (world.tensor(q.x)?, world.tensor(q.y)?, world.tensor(q.scale)?);
        let (smooth, offset) = (world.optional(q.smooth)?, world.optional(q.offset)?);
        if !q.group.is_null() {
            return report(format!("{name}: groups of tokens are not simulated"));
        }
        let four = q.dst != i64::from(ACL_INT8);
        let wanted = match q.dst {
            2 => ACL_INT8,
            29 => ACL_INT4,
            3 => ACL_INT32,
            other => return invalid(format!("{name}: dstType {other}")),
        };
        if !is_half(x.dtype) || x.dims.is_empty() || x.elements() == 0 {
            return invalid(format!("{name}: x is not FLOAT16 or BF16, or empty"));
        }
        let (rows, k) = (x.rows(), x.last());
        if y.dtype != wanted
            || y.code_dims_if(wanted == ACL_INT32) != x.code_dims_if(false)
            || (four && k % 2 != 0)
        {
            return invalid(format!("{name}: y is not the shape of x, or not the type of dstType"));
        }
        let front = &x.dims[..x.dims.len() - 1];
        for tensor in [Some(&scale), offset.as_ref()].into_iter().flatten() {
            if tensor.dtype != ACL_FLOAT || tensor.dims != front {
                return invalid(format!(
                    "{name}: scale and offset are FLOAT with the shape of x without its last axis"
                ));
            }
        }
        if smooth.as_ref().is_some_and(|s| s.dtype != x.dtype || s.dims.len() != 1 || s.elements() != k) {
            return invalid(format!(
                "{name}: smooth scales have the type of x and the length of its last axis"
            ));
        }
        let reads = [Some(&x), smooth.as_ref()].into_iter().flatten().cloned().collect();
        let writes = [Some(&y), Some(&scale), offset.as_ref()].into_iter().flatten().cloned().collect();
        let run = Arc::new(move |world: &mut World| {
            let mut values = x.floats(&world.memory)?;
            if let Some(smooth) = &smooth {
                let smooth = smooth.floats(&world.memory)?;
                values.iter_mut().enumerate().for_each(|(at, x)| *x *= smooth[at % k]);
            }
            let inverse = world.switch(Switch::ScaleFormula) != 0;
            let most = if world.switch(Switch::Saturation) == 0 { f32::INFINITY } else { f32::MAX };
            let mut codes = vec![0; rows * k];
            let (mut scales, mut offsets) = (Vec::new(), Vec::new());
            for (row, codes) in values.chunks(k).zip(codes.chunks_mut(k)) {
                if offset.is_some() {
                    let (scale, offset) = quantize::asymmetric(row, four, codes);
                    scales.push(scale);
                    offsets.push(offset);
                } else {
                    scales.push(quantize::symmetric(row, four, (inverse, most), codes));
                }
            }
            codes.iter_mut().for_each(|code| *code = spoiled_code(world, Mistake::TokenCodes, *code));
            scales.iter_mut().for_each(|scale| *scale = spoiled(world, Mistake::TokenScales, *scale));
            y.put_codes(&mut world.memory, &codes, four)?;
            scale.put_floats(&mut world.memory, &scales)?;
            offset.as_ref().map_or(Ok(()), |o| o.put_floats(&mut world.memory, &offsets))
        });
        world.planned(name, Plan { run, reads, writes }, outs)
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclnnDynamicQuantGetWorkspaceSize(
    x: *const aclTensor,
    smoothScalesOptional: *const aclTensor,
    yOut: *const aclTensor,
    scaleOut: *const aclTensor,
    workspaceSize: *mut u64,
    executor: *mut *mut aclOpExecutor,
) -> aclnnStatus {
    let none = std::ptr::null();
    let q = DynamicQuant {
        x,
        smooth: smoothScalesOptional,
        group: none,
        dst: 2,
        y: yOut,
        scale: scaleOut,
        offset: none,
    };
    plan_dynamic("aclnnDynamicQuant", &q, (workspaceSize, executor))
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclnnDynamicQuantV2GetWorkspaceSize(
    x: *const aclTensor,
    smoothScalesOptional: *const aclTensor,
    groupIndexOptional: *const aclTensor,
    dstType: i64,
    yOut: *const aclTensor,
    scaleOut: *const aclTensor,
    offsetOut: *const aclTensor,
    workspaceSize: *mut u64,
    executor: *mut *mut aclOpExecutor,
) -> aclnnStatus {
    let q = DynamicQuant {
        x,
        smooth: smoothScalesOptional,
        group: groupIndexOptional,
        dst: dstType,
        y: yOut,
        scale: scaleOut,
        offset: offsetOut,
    };
    plan_dynamic("aclnnDynamicQuantV2", &q, (workspaceSize, executor))
}

/// V3 and V4: the mode of tokens alone.
fn plan_dynamic_mode(
    name: &'static str,
    q: &DynamicQuant,
    symmetric: bool,
    mode: *const c_char,
    outs: Outs,
) -> aclnnStatus {
    // SAFETY: a text of the caller.
    let mode = unsafe { string(mode) };
    if mode.as_deref() != Some("pertoken") || symmetric != q.offset.is_null() {
        return call(name, PLANS, |_| match mode.as_deref() {
            None => refuse(ACLNN_ERR_PARAM_NULLPTR, format!("{name}: quantMode is a null pointer")),
            Some("pertensor" | "perchannel") => {
                report(format!("{name}: only the mode pertoken is simulated"))
            }
            Some("pertoken") => invalid(format!("{name}: an offset is for what is not symmetric")),
            Some(other) => invalid(format!("{name}: quantMode {other:?}")),
        });
    }
    plan_dynamic(name, q, outs)
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclnnDynamicQuantV3GetWorkspaceSize(
    x: *const aclTensor,
    smoothScalesOptional: *const aclTensor,
    groupIndexOptional: *const aclTensor,
    dstType: i64,
    isSymmetrical: bool,
    quantMode: *const c_char,
    yOut: *const aclTensor,
    scaleOut: *const aclTensor,
    offsetOut: *const aclTensor,
    workspaceSize: *mut u64,
    executor: *mut *mut aclOpExecutor,
) -> aclnnStatus {
    let (smooth, group) = (smoothScalesOptional, groupIndexOptional);
    let q = DynamicQuant { x, smooth, group, dst: dstType, y: yOut, scale: scaleOut, offset: offsetOut };
    plan_dynamic_mode("aclnnDynamicQuantV3", &q, isSymmetrical, quantMode, (workspaceSize, executor))
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclnnDynamicQuantV4GetWorkspaceSize(
    x: *const aclTensor,
    smoothScalesOptional: *const aclTensor,
    groupIndexOptional: *const aclTensor,
    dstType: i64,
    isSymmetrical: bool,
    quantMode: *const c_char,
    dstTypeMax: f32,
    yOut: *const aclTensor,
    scaleOut: *const aclTensor,
    offsetOut: *const aclTensor,
    workspaceSize: *mut u64,
    executor: *mut *mut aclOpExecutor,
) -> aclnnStatus {
    if dstTypeMax != 0.0 {
        return call("aclnnDynamicQuantV4", PLANS, |_| {
            report("aclnnDynamicQuantV4: only dstTypeMax 0 is simulated")
        });
    }
    let (smooth, group) = (smoothScalesOptional, groupIndexOptional);
    let q = DynamicQuant { x, smooth, group, dst: dstType, y: yOut, scale: scaleOut, offset: offsetOut };
    plan_dynamic_mode("aclnnDynamicQuantV4", &q, isSymmetrical, quantMode, (workspaceSize, executor))
}
