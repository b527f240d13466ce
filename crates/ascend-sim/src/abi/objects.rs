//! Tensors, arrays and executors.

use std::ffi::c_void;

use crate::generated::types::*;
use crate::tensor::Tensor;
use crate::world::{Answer, Fault, Handle, World, call, create, refuse};

/// Numbers of the caller.
///
/// # Safety
/// `values` is null or points to `count` numbers.
unsafe fn numbers(values: *const i64, count: u64) -> Option<Vec<i64>> {
    let count = usize::try_from(count).ok()?;
    if count == 0 {
        return Some(Vec::new());
    }
    if values.is_null() {
        return None;
    }
    // SAFETY: the caller's promise.
    Some(unsafe { std::slice::from_raw_parts(values, count) }.to_vec())
}

fn contiguous(dims: &[i64]) -> Vec<i64> {
    let mut strides = vec![1_i64; dims.len()];
    for axis in (1..dims.len()).rev() {
        strides[axis - 1] = strides[axis].saturating_mul(dims[axis]);
    }
    strides
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclCreateTensor(
    viewDims: *const i64,
    viewDimsNum: u64,
    dataType: aclDataType,
    stride: *const i64,
    offset: i64,
    format: aclFormat,
    storageDims: *const i64,
    storageDimsNum: u64,
    tensorData: *mut c_void,
) -> *mut aclTensor {
    create("aclCreateTensor", |world| {
        // SAFETY: the counts belong to the arrays.
        let (dims, storage) =
            unsafe { (numbers(viewDims, viewDimsNum), numbers(storageDims, storageDimsNum)) };
        let (Some(dims), Some(storage)) = (dims, storage) else {
            return refuse(ACLNN_ERR_PARAM_NULLPTR, "the shape of a tensor is a null pointer");
        };
        let strides = if stride.is_null() {
            contiguous(&dims)
        } else {
            // SAFETY: as many strides as axes.
            unsafe { numbers(stride, viewDimsNum) }.unwrap_or_default()
        };
        let handle = world.handle();
        let data = tensorData as usize;
        let tensor = Tensor { handle, dims, strides, offset, dtype: dataType, format, storage, data };
        tensor.check()?;
        world.tensors.insert(handle, tensor);
        Ok(handle)
    })
}

/// Takes an object out of its table.
fn destroy(world: &mut World, kind: Handle, handle: usize) -> Answer<()> {
    let found = match kind {
        Handle::Tensor => world.tensors.remove(&handle).is_some(),
        Handle::IntArray => world.arrays.remove(&handle).is_some(),
        Handle::Executor => world.executors.remove(&handle).is_some(),
        _ => world.lists.remove(&handle).is_some_and(|tensors| {
            for tensor in tensors {
                world.tensors.remove(&tensor);
                world.bury(tensor);
            }
            true
        }),
    };
    if !found {
        return world.dead(kind, handle);
    }
    world.bury(handle);
    Ok(())
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclDestroyTensor(tensor: *const aclTensor) -> aclnnStatus {
    call("aclDestroyTensor", Fault::After(ACLNN_ERR_INNER), |world| {
        destroy(world, Handle::Tensor, tensor as usize)
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclCreateIntArray(value: *const i64, size: u64) -> *mut aclIntArray {
    create("aclCreateIntArray", |world| {
        // SAFETY: the size belongs to the array.
        let Some(values) = (unsafe { numbers(value, size) }) else {
            return refuse(ACLNN_ERR_PARAM_NULLPTR, "the numbers of an array are a null pointer");
        };
        let handle = world.handle();
        world.arrays.insert(handle, values);
        Ok(handle)
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclDestroyIntArray(array: *const aclIntArray) -> aclnnStatus {
    call("aclDestroyIntArray", Fault::After(ACLNN_ERR_INNER), |world| {
        destroy(world, Handle::IntArray, array as usize)
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclCreateTensorList(
    value: *const *const aclTensor,
    size: u64,
) -> *mut aclTensorList {
    create("aclCreateTensorList", |world| {
        let size = usize::try_from(size).unwrap_or(0);
        if value.is_null() || size == 0 {
            return refuse(ACLNN_ERR_PARAM_NULLPTR, "a list of tensors is empty");
        }
        // SAFETY: the size belongs to the array.
        let tensors = unsafe { std::slice::from_raw_parts(value, size) };
        let tensors: Vec<usize> =
            tensors.iter().map(|&t| world.tensor(t).map(|t| t.handle)).collect::<Answer<_>>()?;
        let handle = world.handle();
        world.lists.insert(handle, tensors);
        Ok(handle)
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclDestroyTensorList(array: *const aclTensorList) -> aclnnStatus {
    call("aclDestroyTensorList", Fault::After(ACLNN_ERR_INNER), |world| {
        destroy(world, Handle::TensorList, array as usize)
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclSetAclOpExecutorRepeatable(executor: *mut aclOpExecutor) -> aclnnStatus {
    call("aclSetAclOpExecutorRepeatable", Fault::Before(ACLNN_ERR_INNER), |world| {
        let handle = executor as usize;
        match world.executors.get_mut(&handle) {
            Some(executor) => {
                executor.repeatable = true;
                Ok(())
            }
            None => world.dead(Handle::Executor, handle),
        }
    })
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclDestroyAclOpExecutor(executor: *mut aclOpExecutor) -> aclnnStatus {
    call("aclDestroyAclOpExecutor", Fault::After(ACLNN_ERR_INNER), |world| {
        destroy(world, Handle::Executor, executor as usize)
    })
}
