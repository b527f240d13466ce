//! What all operators share: the two phases, and faults on purpose.

use std::ffi::c_void;

use crate::Mistake;
use crate::Switch;
use crate::arithmetic::quantize::Model;
use crate::generated::types::*;
use crate::world::{Answer, Fault, World, call, refuse};

pub(super) const PLANS: Fault = Fault::Before(ACLNN_ERR_INNER);
pub(super) const LAUNCHES: Fault = Fault::Before(ACLNN_ERR_RUNTIME_ERROR);

/// Where the size of the workspace and the executor go.
pub(super) type Outs = (*mut u64, *mut *mut aclOpExecutor);

pub(super) fn invalid<T>(message: impl Into<String>) -> Answer<T> {
    refuse(ACLNN_ERR_PARAM_INVALID, message)
}

/// Second phases, which are all alike. One that fails has used up its executor.
macro_rules! second_phases {
    ($($name:ident),* $(,)?) => {$(
        #[unsafe(no_mangle)]
        pub(crate) unsafe extern "C" fn $name(
            workspace: *mut c_void,
            workspaceSize: u64,
            executor: *mut aclOpExecutor,
            stream: aclrtStream,
        ) -> aclnnStatus {
            second(stringify!($name), workspace as usize, workspaceSize, executor as usize, stream)
        }
    )*};
}

pub(super) fn second(
    name: &'static str,
    workspace: usize,
    bytes: u64,
    executor: usize,
    stream: aclrtStream,
) -> aclnnStatus {
    let mut reached = false;
    let code = call(name, LAUNCHES, |world| {
        reached = true;
        let stream = world.stream(stream)?;
        world.launch(name, workspace, bytes, executor, stream)
    });
    if !reached {
        let mut world = crate::world::world();
        if world.executors.get(&executor).is_some_and(|e| !e.repeatable) {
            world.executors.remove(&executor);
            world.bury(executor);
        }
    }
    code
}

second_phases!(
    aclnnFusedInferAttentionScoreV3,
    aclnnQuantMatmulV3,
    aclnnQuantMatmulV4,
    aclnnQuantMatmulV5,
    aclnnQuantMatmulWeightNz,
    aclnnTransQuantParamV2,
    aclnnTransQuantParamV3,
    aclnnDynamicQuant,
    aclnnDynamicQuantV2,
    aclnnDynamicQuantV3,
    aclnnDynamicQuantV4,
    aclnnAscendQuantV3,
    aclnnAscendAntiQuant,
    aclnnWeightQuantBatchMatmulV2,
    aclnnWeightQuantBatchMatmulV3,
    aclnnWeightQuantBatchMatmulNz,
    aclnnMm,
    aclnnConvertWeightToINT4Pack,
    aclnnFlatQuant,
);

pub(super) fn model(dtype: aclDataType) -> Model {
    match dtype {
        ACL_FLOAT16 => Model::F16,
        ACL_BF16 => Model::Bf16,
        _ => Model::F32,
    }
}

pub(super) fn is_half(dtype: aclDataType) -> bool {
    matches!(dtype, ACL_FLOAT16 | ACL_BF16)
}

/// Whether the switch for deliberate faults names this one.
pub(super) fn is_wrong(world: &World, mistake: Mistake) -> bool {
    world.switch(Switch::Wrong) & mistake as i64 != 0
}

/// A number with the last bit that bf16 has turned, where it is to be wrong; an eighth more or less where the order of sums is open, so that
/// comparisons hold bounds.
pub(super) fn spoiled(world: &World, mistake: Mistake, x: f32) -> f32 {
    let bit = if matches!(mistake, Mistake::WeightOnly | Mistake::Attention) { 0x10_0000 } else { 0x1_0000 };
    if is_wrong(world, mistake) { f32::from_bits(x.to_bits() ^ bit) } else { x }
}

pub(super) fn spoiled_code(world: &World, mistake: Mistake, code: i32) -> i32 {
    if is_wrong(world, mistake) { code ^ 1 } else { code }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;

    /// Rounding behind the model's types is that of `half`.
    #[test]
    fn types_of_the_model() {
        assert_eq!(model(ACL_BF16).round(1.003), bf16::from_f32(1.003).to_f32());
        assert_eq!([ACL_FLOAT16, ACL_BF16, ACL_FLOAT].map(model), [Model::F16, Model::Bf16, Model::F32]);
    }
}
