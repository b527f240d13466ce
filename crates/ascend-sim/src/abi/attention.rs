//! Attention of one query token over an int8 cache.

use std::ffi::c_char;
use std::sync::Arc;

use super::phases::{PLANS, invalid, is_half, model, spoiled};
use super::string;
use crate::Mistake;
use crate::Switch;
use crate::arithmetic::attention::one_token;
use crate::arithmetic::quantize::{Model, dequantized};
use crate::generated::types::*;
use crate::tensor::Tensor;
use crate::world::{Answer, Handle, Plan, World, call, refuse, report};

struct Attention {
    query: Tensor,
    key: Tensor,
    value: Tensor,
    parameters: [Tensor; 2],
    offsets: [Option<Tensor>; 2],
    table: Option<Tensor>,
    lengths: Vec<i64>,
    scale: f64,
    out: Tensor,
    kv_heads: usize,
}

/// The one tensor of a list.
fn single(world: &World, list: *const aclTensorList) -> Answer<Tensor> {
    let Some(tensors) = world.lists.get(&(list as usize)) else {
        return world.dead(Handle::TensorList, list as usize);
    };
    match tensors.as_slice() {
        &[tensor] => world.tensor(tensor as *const aclTensor),
        other => report(format!("a list of {} caches is not simulated", other.len())),
    }
}

impl Attention {
    /// `(batch, heads, d)` where everything fits.
    fn check(&self) -> Answer<(usize, usize, usize)> {
        let &[batch, heads, 1, d] = self.query.code_dims_if(false).as_slice() else {
            return invalid("attention: query is [batch, heads, 1, d]");
        };
        let kv = self.kv_heads;
        if !is_half(self.query.dtype)
            || self.out.dtype != self.query.dtype
            || self.out.dims != self.query.dims
        {
            return invalid("attention: query and output are FLOAT16 or BF16 of one shape");
        }
        if kv == 0 || heads % kv != 0 || d % 32 != 0 || d == 0 || batch == 0 {
            return invalid(format!("attention: {heads} heads, {kv} of keys and values, {d} channels"));
        }
        let channels =
            [vec![1, kv, 1, d], vec![1, kv, d], vec![1, kv * d], vec![kv, 1, d], vec![kv, d], vec![kv * d]];
        let offsets = self.offsets.iter().flatten();
        for tensor in self.parameters.iter().chain(offsets) {
            if tensor.dtype != self.query.dtype || !channels.contains(&tensor.code_dims_if(false)) {
                return invalid("attention: scales and offsets of a channel have the type of the query");
            }
        }
        let cache = self.key.code_dims_if(false);
        if self.key.dtype != ACL_INT8 || self.value.dtype != ACL_INT8 || self.value.dims != self.key.dims {
            return invalid("attention: keys and values are INT8 of one shape");
        }
        let room = match (&self.table, cache.as_slice()) {
            (None, &[b, h, tokens, width]) if b == batch && h == kv && width == d => tokens,
            (Some(table), cache) => {
                let size = match *cache {
                    [_, size, width] if width == kv * d => size,
                    [_, h, size, width] if h == kv && width == d => size,
                    _ => return invalid(format!("attention: a paged cache of shape {cache:?}")),
                };
                let fit = table.dtype == ACL_INT32 && table.dims.len() == 2 && table.dims[0] == batch as i64;
                if !fit || size % 32 != 0 || size > 512 || size == 0 {
                    return invalid(format!("attention: a table of blocks, or blocks of {size} tokens"));
                }
                size * table.last()
            }
            _ => return invalid(format!("attention: a cache of shape {cache:?}")),
        };
        let lengths = &self.lengths;
        let fit = if lengths.is_empty() {
            self.table.is_none()
        } else {
            (lengths.len() == 1 || lengths.len() == batch)
                && lengths.iter().all(|&l| usize::try_from(l).is_ok_and(|l| (1..=room).contains(&l)))
        };
        if !fit {
            return invalid(format!("attention: lengths {lengths:?} of a cache with room for {room} tokens"));
        }
        Ok((batch, heads, d))
    }

    fn run(&self, world: &mut World, (batch, heads, d): (usize, usize, usize)) -> Answer<()> {
        let kv = self.kv_heads;
        let kind =
            if world.switch(Switch::RoundAttention) == 0 { Model::F32 } else { model(self.query.dtype) };
        let query = self.query.floats(&world.memory)?;
        let caches = [self.key.integers(&world.memory)?, self.value.integers(&world.memory)?];
        let table = self.table.as_ref().map(|t| t.integers(&world.memory)).transpose()?;
        let (mut scales, mut offsets) = (Vec::new(), Vec::new());
        for (scale, offset) in self.parameters.iter().zip(&self.offsets) {
            scales.push(scale.floats(&world.memory)?);
            offsets.push(
                offset
                    .as_ref()
                    .map(|o| o.floats(&world.memory))
                    .transpose()?
                    .unwrap_or_else(|| vec![0.0; kv * d]),
            );
        }
        let dims = self.key.code_dims_if(false);
        let mut out = Vec::with_capacity(query.len());
        for b in 0..batch {
            let room = dims[2];
            let length = match self.lengths.as_slice() {
                [] => room,
                [one] => usize::try_from(*one).unwrap_or(0),
                all => usize::try_from(all[b]).unwrap_or(0),
            };
            for h in 0..heads {
                let head = h / (heads / kv);
                let place = |token: usize, i: usize| -> Option<usize> {
                    let Some(table) = &table else { return Some(((b * kv + head) * room + token) * d + i) };
                    let size = if dims.len() == 3 { dims[1] } else { dims[2] };
                    let blocks = table.len() / batch;
                    let block =
                        usize::try_from(table[b * blocks + token / size]).ok().filter(|&b| b < dims[0])?;
                    let token = token % size;
                    Some(if dims.len() == 3 {
                        (block * size + token) * kv * d + head * d + i
                    } else {
                        ((block * kv + head) * size + token) * d + i
                    })
                };
                let mut floats = [Vec::new(), Vec::new()];
                for (side, floats) in floats.iter_mut().enumerate() {
                    for token in 0..length {
                        for i in 0..d {
                            let Some(at) = place(token, i) else {
                                return report("attention: the table names a block that is not in the cache");
                            };
                            let channel = head * d + i;
                            let (scale, offset) = (scales[side][channel], offsets[side][channel]);
                            floats.push(dequantized(caches[side][at], scale, offset, kind));
                        }
                    }
                }
                let row = &query[(b * heads + h) * d..][..d];
                let round = |x: f32| kind.round(x);
                let values = one_token(row, &floats[0], &floats[1], self.scale, &round);
                out.extend(values.into_iter().map(|x| spoiled(world, Mistake::Attention, x)));
            }
        }
        self.out.put_floats(&mut world.memory, &out)
    }
}

#[unsafe(no_mangle)]
pub(crate) unsafe extern "C" fn aclnnFusedInferAttentionScoreV3GetWorkspaceSize(
    query: *const aclTensor,
    key: *const aclTensorList,
    value: *const aclTensorList,
    pseShift: *const aclTensor,
    attenMask: *const aclTensor,
    _actualSeqLengths: *const aclIntArray,
    actualSeqLengthsKv: *const aclIntArray,
    deqScale1: *const aclTensor,
    quantScale1: *const aclTensor,
    deqScale2: *const aclTensor,
    quantScale2: *const aclTensor,
    quantOffset2: *const aclTensor,
    antiquantScale: *const aclTensor,
    antiquantOffset: *const aclTensor,
    blockTable: *const aclTensor,
    queryPaddingSize: *const aclTensor,
    kvPaddingSize: *const aclTensor,
    keyAntiquantScale: *const aclTensor,
    keyAntiquantOffset: *const aclTensor,
    valueAntiquantScale: *const aclTensor,
    valueAntiquantOffset: *const aclTensor,
    keySharedPrefix: *const aclTensor,
    valueSharedPrefix: *const aclTensor,
    actualSharedPrefixLen: *const aclIntArray,
    queryRope: *const aclTensor,
    keyRope: *const aclTensor,
    keyRopeAntiquantScale: *const aclTensor,
    numHeads: i64,
    scaleValue: f64,
    _preTokens: i64,
    _nextTokens: i64,
    inputLayout: *mut c_char,
    numKeyValueHeads: i64,
    sparseMode: i64,
    innerPrecise: i64,
    blockSize: i64,
    antiquantMode: i64,
    softmaxLseFlag: bool,
    keyAntiquantMode: i64,
    valueAntiquantMode: i64,
    attentionOut: *const aclTensor,
    _softmaxLse: *const aclTensor,
    workspaceSize: *mut u64,
    executor: *mut *mut aclOpExecutor,
) -> aclnnStatus {
    let name = "aclnnFusedInferAttentionScoreV3";
    // SAFETY: a text of the caller.
    let layout = unsafe { string(inputLayout) };
    call(name, PLANS, |world| {
        let others = [
            pseShift,
            attenMask,
            deqScale1,
            quantScale1,
            deqScale2,
            quantScale2,
            quantOffset2,
            antiquantScale,
            antiquantOffset,
            queryPaddingSize,
            kvPaddingSize,
            keySharedPrefix,
            valueSharedPrefix,
            queryRope,
            keyRope,
            keyRopeAntiquantScale,
        ];
        let modes = [sparseMode, antiquantMode, keyAntiquantMode, valueAntiquantMode];
        if others.iter().any(|tensor| !tensor.is_null())
            || !actualSharedPrefixLen.is_null()
            || softmaxLseFlag
            || modes != [0; 4]
            || !(0..=3).contains(&innerPrecise)
        {
            return report(format!(
                "{name}: only one query token over an int8 cache with scales of channels is simulated"
            ));
        }
        match layout.as_deref() {
            Some("BNSD") => {}
            Some(other) => return report(format!("{name}: the layout {other} is not simulated")),
            None => return refuse(ACLNN_ERR_PARAM_NULLPTR, format!("{name}: inputLayout is a null pointer")),
        }
        let lengths = if actualSeqLengthsKv.is_null() {
            Vec::new()
        } else {
            match world.arrays.get(&(actualSeqLengthsKv as usize)) {
                Some(lengths) => lengths.clone(),
                None => return world.dead(Handle::IntArray, actualSeqLengthsKv as usize),
            }
        };
        let attention = Attention {
            query: world.tensor(query)?,
            key: single(world, key)?,
            value: single(world, value)?,
            parameters: [world.tensor(keyAntiquantScale)?, world.tensor(valueAntiquantScale)?],
            offsets: [world.optional(keyAntiquantOffset)?, world.optional(valueAntiquantOffset)?],
            table: world.optional(blockTable)?,
            lengths,
            scale: scaleValue,
            out: world.tensor(attentionOut)?,
            kv_heads: usize::try_from(if numKeyValueHeads == 0 { numHeads } else { numKeyValueHeads })
                .unwrap_or(0),
        };
        let shape = attention.check()?;
        if i64::try_from(shape.1).ok() != Some(numHeads) {
            return invalid(format!("{name}: numHeads {numHeads}, the query has {}", shape.1));
        }
        let dims = attention.key.code_dims_if(false);
        let size = if dims.len() == 3 { dims[1] } else { dims[2] } as i64;
        if attention.table.is_some() && blockSize != size {
            return invalid(format!("{name}: blockSize {blockSize}, the cache has blocks of {size}"));
        }
        let optional = attention.offsets.iter().flatten().chain(&attention.table);
        let reads = [&attention.query, &attention.key, &attention.value].into_iter();
        let reads = reads.chain(&attention.parameters).chain(optional).cloned().collect();
        let writes = vec![attention.out.clone()];
        let run = Arc::new(move |world: &mut World| attention.run(world, shape));
        world.planned(name, Plan { run, reads, writes }, (workspaceSize, executor))
    })
}
