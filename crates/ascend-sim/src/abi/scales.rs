//! Scales as words.

use std::sync::Arc;

use super::phases::{Outs, PLANS, invalid, is_wrong};
use crate::Mistake;
use crate::arithmetic::scale;
use crate::generated::types::*;
use crate::tensor::Tensor;
use crate::world::{Plan, World, call, refuse};

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclnnTransQuantParam(
    scaleArray: *const f32,
    scaleSize: u64,
    offsetArray: *const f32,
    offsetSize: u64,
    quantParam: *mut *mut u64,
    quantParamSize: *mut u64,
) -> aclnnStatus {
    call("aclnnTransQuantParam", PLANS, |world| {
        let sizes = (usize::try_from(scaleSize).unwrap_or(0), usize::try_from(offsetSize).unwrap_or(0));
        if scaleArray.is_null() || quantParam.is_null() || quantParamSize.is_null() {
            return refuse(ACLNN_ERR_PARAM_NULLPTR, "aclnnTransQuantParam is given a null pointer");
        }
        if sizes.0 == 0 || (offsetArray.is_null() != (sizes.1 == 0)) {
            return invalid("aclnnTransQuantParam: no scales, or offsets without a length");
        }
        // SAFETY: the sizes belong to the arrays.
        let scales = unsafe { std::slice::from_raw_parts(scaleArray, sizes.0) };
        let offsets = if sizes.1 == 0 {
            &[0.0][..]
        } else {
            // SAFETY: as above.
            unsafe { std::slice::from_raw_parts(offsetArray, sizes.1) }
        };
        let count = scales.len().max(offsets.len());
        if scales.iter().any(|s| !s.is_finite())
            || [scales.len(), offsets.len()].iter().any(|&l| l != 1 && l != count)
        {
            return invalid("aclnnTransQuantParam: scales that are not finite, or lengths that do not fit");
        }
        let padded = if count == 1 { 1 } else { count.next_multiple_of(16) };
        let at = |values: &[f32], i: usize| if values.len() == 1 { values[0] } else { values[i] };
        // SAFETY: `calloc` of a size above 0; the caller frees it.
        let memory = unsafe { libc::calloc(padded, 8) }.cast::<u64>();
        if memory.is_null() {
            return refuse(ACL_ERROR_BAD_ALLOC, "no memory for packed scales");
        }
        let wrong = u64::from(is_wrong(world, Mistake::PackScalesOnHost)) << 14;
        for i in 0..count {
            let word = scale::pack_host(at(scales, i), at(offsets, i)) ^ wrong;
            // SAFETY: `count` is at most `padded`.
            unsafe { memory.add(i).write(word) };
        }
        // SAFETY: neither is null.
        unsafe {
            *quantParam = memory;
            *quantParamSize = padded as u64;
        }
        Ok(())
    })
}

fn plan_scales(name: &'static str, tensors: [*const aclTensor; 3], rounded: bool, outs: Outs) -> aclnnStatus {
    call(name, PLANS, |world| {
        let (scales, offsets, out) =
            (world.tensor(tensors[0])?, world.optional(tensors[1])?, world.tensor(tensors[2])?);
        let floats = |t: &Tensor| t.dtype == ACL_FLOAT && t.dims.len() == 1;
        let fit = floats(&scales)
            && offsets.as_ref().is_none_or(|o| floats(o) && [1, scales.elements()].contains(&o.elements()))
            && matches!(out.dtype, ACL_UINT64 | ACL_INT64)
            && out.dims == scales.dims;
        if !fit {
            return invalid(format!(
                "{name}: scale and offset are FLOAT with one axis, out is UINT64 of that length"
            ));
        }
        let reads = [Some(&scales), offsets.as_ref()].into_iter().flatten().cloned().collect();
        let into = out.clone();
        let run = Arc::new(move |world: &mut World| {
            let scale = scales.floats(&world.memory)?;
            let offset =
                offsets.as_ref().map(|o| o.floats(&world.memory)).transpose()?.unwrap_or_else(|| vec![0.0]);
            let pack = if rounded { scale::pack_rounded } else { scale::pack_cut };
            let wrong = u64::from(is_wrong(world, Mistake::PackScales)) << 14;
            let at = |i: usize| if offset.len() == 1 { offset[0] } else { offset[i] };
            let words: Vec<u64> = scale.iter().enumerate().map(|(i, &s)| pack(s, at(i)) ^ wrong).collect();
            into.put_words(&mut world.memory, &words)
        });
        world.planned(name, Plan { run, reads, writes: vec![out] }, outs)
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclnnTransQuantParamV2GetWorkspaceSize(
    scale: *const aclTensor,
    offset: *const aclTensor,
    out: *const aclTensor,
    workspaceSize: *mut u64,
    executor: *mut *mut aclOpExecutor,
) -> aclnnStatus {
    plan_scales("aclnnTransQuantParamV2", [scale, offset, out], false, (workspaceSize, executor))
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclnnTransQuantParamV3GetWorkspaceSize(
    scale: *const aclTensor,
    offset: *const aclTensor,
    roundMode: i64,
    out: *const aclTensor,
    workspaceSize: *mut u64,
    executor: *mut *mut aclOpExecutor,
) -> aclnnStatus {
    if !(0..=1).contains(&roundMode) {
        return call("aclnnTransQuantParamV3", PLANS, |_| {
            invalid(format!("roundMode {roundMode} is neither 0 nor 1"))
        });
    }
    plan_scales("aclnnTransQuantParamV3", [scale, offset, out], roundMode == 1, (workspaceSize, executor))
}
