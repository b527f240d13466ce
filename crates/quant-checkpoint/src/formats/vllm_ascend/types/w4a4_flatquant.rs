//! `W4A4_FLATQUANT_DYNAMIC`: the codec of a linear behind a Kronecker pair.
//!
//! `left_trans` `[L, L]` and `right_trans` `[R, R]` are in the model's type, `clip_ratio` is an f32 of one value in (0, 1]; the other
//! tensors are those of `W4A4_DYNAMIC`.

use ndarray::Array2;
use quant_core::{
    ActQuant, ActRule, AxisShape, ClipRatio, FloatType, OnlineShape, OnlineTransform, kronecker_sides,
};
use quant_graph::{
    BlockParams, Clipping, InputScheme, LinearId, LinearParams, LinearScheme, LinearSpec, ModelSpec,
    PairKernel, Site,
};
use safetensors::Dtype;

use super::super::{ID, bad};
use super::{TypeCodec, bits, channel, per_channel, per_token};
use crate::error::{Result, not_encodable};
use crate::formats::bytes::{Loss, float_bytes, float_dtype, read_scales};
use crate::formats::layout::Part;
use crate::source::Checkpoint;

pub(super) struct W4A4FlatQuant;

const BITS: u32 = 4;

impl TypeCodec for W4A4FlatQuant {
    fn parts(&self, linear: &LinearSpec, model: FloatType, shards: usize) -> Vec<Part> {
        let mut parts = channel::parts(linear);
        parts.extend(parts_of_pair(linear.inputs, shards, model));
        parts
    }
    fn bytes(
        &self,
        spec: &ModelSpec,
        (name, suffix): (&str, &str),
        id: LinearId,
        block: &BlockParams,
    ) -> Result<Vec<u8>> {
        if suffix == CLIP || SIDES.contains(&suffix) {
            return bytes_of_pair(spec, name, suffix, id, block);
        }
        channel::bytes((name, suffix), &block.linears[&id])
    }
    fn scheme(&self, checkpoint: &Checkpoint, linear: &LinearSpec) -> Result<LinearScheme> {
        let bits = bits(BITS)?;
        let open = read_clip(checkpoint, &linear.module)? == 1.0;
        let clip_ratio = if open { Clipping::NONE } else { Clipping::Tied };
        let shards = read_shards(checkpoint, linear);
        Ok(per_channel(bits, Some(InputScheme { clip_ratio, shards, ..per_token(bits) })))
    }
    fn read(&self, checkpoint: &Checkpoint, linear: &LinearSpec) -> Result<LinearParams> {
        let (bits, scales) = (bits(BITS)?, channel::read_weight_scales(checkpoint, linear)?);
        let read = channel::read(checkpoint, linear, (bits, &scales))?;
        Ok(LinearParams { input: Some(read_input(checkpoint, linear)?), ..read })
    }
}

/// Suffixes of the tensors of the pair.
const SIDES: [&str; 2] = ["left_trans", "right_trans"];
/// Suffix of the factor on both ends of a token's range.
const CLIP: &str = "clip_ratio";

/// The shape of the pair of so many features in equal parts, whether or not the kernel takes it.
pub(crate) fn shape(features: usize, shards: usize) -> Option<OnlineShape> {
    let (left, right) = sides(features, shards)?;
    Some(OnlineShape { shards, ..OnlineShape::new([left, right].map(AxisShape::Dense)) })
}

/// The sides of the pair of one part.
fn sides(features: usize, shards: usize) -> Option<(usize, usize)> {
    let whole = shards > 0 && features.is_multiple_of(shards);
    kronecker_sides(features.checked_div(shards).filter(|_| whole)?)
}

/// Whether the features of a site lie on several devices.
pub(crate) fn is_cut(site: Site) -> bool {
    matches!(site, Site::AttentionOutput | Site::MlpActivation)
}

/// The tensors beside those of `W4A4_DYNAMIC`; features without a pair have no matrices.
fn parts_of_pair(features: usize, shards: usize, model: FloatType) -> Vec<Part> {
    let sides = sides(features, shards).map(|(left, right)| [left, right]);
    let matrix = |(suffix, side)| Part::new(suffix, float_dtype(model), [side, side]);
    let matrices = SIDES.into_iter().zip(sides.into_iter().flatten()).map(matrix);
    matrices.chain([Part::new(CLIP, Dtype::F32, [1])]).collect()
}

/// The bytes of one of [`parts_of_pair`]. Matrices must be exact in the type in which the kernel has them: the weights hold the inverses of
/// these very numbers.
fn bytes_of_pair(
    spec: &ModelSpec,
    name: &str,
    suffix: &str,
    id: LinearId,
    block: &BlockParams,
) -> Result<Vec<u8>> {
    if suffix == CLIP {
        let ratio = block.linears.get(&id).and_then(|linear| linear.input).and_then(ratio);
        let Some(ratio) = ratio.filter(|ratio| Clipping::Tied.admits(*ratio)) else {
            let found = format!("{:?}", block.linears.get(&id).and_then(|linear| linear.input));
            return Err(not_encodable(ID, name, "one clip ratio in (0, 1] for both ends", found));
        };
        return float_bytes(ID, name, [ratio.upper], FloatType::F32, Loss::None);
    }
    let sides = block.online.sites.get(&id.site()).map(|transform| transform.matrices());
    let side = SIDES.iter().position(|known| *known == suffix);
    let pair = sides.as_ref().and_then(|sides| sides.get(..SIDES.len()));
    let matrix = side.and_then(|side| pair?.get(side).copied());
    let matrix = matrix.ok_or_else(|| not_encodable(ID, name, "a Kronecker pair", "none in the block"))?;
    if sides.iter().flat_map(|sides| sides.chunks(SIDES.len())).any(|part| Some(part) != pair) {
        return Err(not_encodable(ID, name, "one pair for all parts of the input", "pairs that differ"));
    }
    let held = PairKernel::of(spec.dtype).held;
    float_bytes(ID, name, matrix.iter().copied(), held, Loss::None)?;
    float_bytes(ID, name, matrix.iter().copied(), spec.dtype, Loss::None)
}

fn ratio(input: ActQuant) -> Option<ClipRatio> {
    match input {
        ActQuant::Dynamic { clip_ratio, .. } => Some(clip_ratio),
        ActQuant::Static { .. } => None,
    }
}

/// The ratio of a linear.
pub(crate) fn read_clip(checkpoint: &Checkpoint, module: &str) -> Result<f32> {
    let name = format!("{module}.{CLIP}");
    let ratio = read_scales(ID, checkpoint, &name, &[1])?[0];
    if ratio > 1.0 {
        return Err(bad(name, "a ratio in (0, 1]", ratio.to_string()));
    }
    Ok(ratio)
}

/// The quantiser of the input of a linear.
fn read_input(checkpoint: &Checkpoint, linear: &LinearSpec) -> Result<ActQuant> {
    let (bits, rule) = (bits(BITS)?, ActRule::Symmetric);
    let clip_ratio = read_clip(checkpoint, &linear.module)?.into();
    Ok(ActQuant::Dynamic { bits, rule, clip_ratio, shards: read_shards(checkpoint, linear) })
}

/// The parts of its input that the sizes of the matrices of a linear are for; 1 where they fit none, which whoever reads them says.
pub(crate) fn read_shards(checkpoint: &Checkpoint, linear: &LinearSpec) -> usize {
    let side = |suffix: &str| {
        let stored = checkpoint.get(&format!("{}.{suffix}", linear.module))?;
        stored.shape.first().copied()
    };
    let found = SIDES.map(side);
    let [Some(left), Some(right)] = found else { return 1 };
    let shards = left.checked_mul(right).and_then(|part| linear.inputs.checked_div(part)).unwrap_or(1);
    let fits = is_cut(linear.id.site()) && sides(linear.inputs, shards) == Some((left, right));
    if fits { shards } else { 1 }
}

/// The pair of a linear, once for each part of its input.
pub(crate) fn read_pair(checkpoint: &Checkpoint, linear: &LinearSpec) -> Result<OnlineTransform> {
    let module = &linear.module;
    let shards = read_shards(checkpoint, linear);
    let shape = shape(linear.inputs, shards)
        .ok_or_else(|| bad(module, "features with a Kronecker pair", linear.inputs.to_string()))?;
    let matrix = |(suffix, side): (&str, usize)| -> Result<Array2<f32>> {
        let name = format!("{module}.{suffix}");
        checkpoint.tensor_shaped(&name, &[side, side])?;
        checkpoint.read_matrix_f32(&name)
    };
    let pair = SIDES.into_iter().zip(shape.matrices()).map(matrix).collect::<Result<Vec<_>>>()?;
    let matrices = (0..shards).flat_map(|_| pair.iter().cloned()).collect();
    shape.build(matrices).map_err(|error| bad(module, "a Kronecker pair", error.to_string()))
}
