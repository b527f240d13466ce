//! Tensors to a block.

use std::collections::BTreeMap;

use ndarray::{Array1, Array2};
use quant_core::{ActQuant, ActRule, Bits, Groups, KvGranularity, KvQuant, QParams, QuantizedMatrix};
use quant_graph::{
    ActOrder, BlockParams, InputScheme, KvScheme, LinearId, LinearParams, LinearScheme, LinearSpec,
    LinearWeight, ModelScheme, ModelSpec, WeightScheme,
};
use safetensors::Dtype;

use super::ID;
use super::description::{Description, Kind, bad};
use crate::error::Result;
use crate::formats::Decoder;
use crate::formats::bytes::{read_levels, read_scales, single};
use crate::formats::plain::{read_bias, read_linear, read_norms};
use crate::source::Checkpoint;

/// msmodelslim computes deq_scale in the model's type: half a unit in the last place of bfloat16 on each factor.
const STATIC_TOLERANCE: f32 = 1.0 / 64.0;

fn eight() -> Result<Bits> {
    Bits::new(8).map_err(|e| bad("bits", "8", e.to_string()))
}

/// The input quantiser of a static linear, `input_offset` moved to unsigned levels.
pub(crate) fn static_input(checkpoint: &Checkpoint, module: &str) -> Result<QParams> {
    let scale = read_scales(ID, checkpoint, &format!("{module}.input_scale"), &[1])?[0];
    let name = format!("{module}.input_offset");
    single(checkpoint, &name)?;
    let offset = checkpoint.read_f32(&name)?.iter().next().copied().unwrap_or_default();
    if offset.fract() != 0.0 || !(-128.0..=127.0).contains(&offset) {
        return Err(bad(name, "an integer from -128 to 127", offset.to_string()));
    }
    Ok(QParams { scale, zero: offset + 128.0 })
}

/// `deq_scale` as numbers, whichever of its two forms it has.
pub(crate) fn deq_scales(checkpoint: &Checkpoint, module: &str, rows: usize) -> Result<Vec<f32>> {
    let name = format!("{module}.deq_scale");
    if checkpoint.tensor_shaped(&name, &[rows])?.dtype != Dtype::I64 {
        return read_scales(ID, checkpoint, &name, &[rows]);
    }
    let words = checkpoint.read_i64(&name)?;
    let number = |&word: &i64| {
        let value = i32::try_from(word).ok().map(|bits| f32::from_bits(bits as u32));
        value
            .filter(|v| v.is_finite() && *v > 0.0)
            .ok_or_else(|| bad(&name, "the bits of positive f32 numbers", format!("{word:#x}")))
    };
    words.iter().map(number).collect()
}

/// The weight scale whose product with `input` is `deq`: the quotient or one of its neighbours.
fn weight_scale(deq: f32, input: f32) -> f32 {
    let quotient = deq / input;
    let candidates = [quotient, quotient.next_down(), quotient.next_up()];
    candidates.into_iter().find(|s| s * input == deq).unwrap_or(quotient)
}

/// Weight scales `[out]` of a linear; static tensors are checked against them.
pub(crate) fn weight_scales(
    checkpoint: &Checkpoint,
    module: &str,
    kind: Kind,
    rows: usize,
) -> Result<Vec<f32>> {
    let name = format!("{module}.weight_scale");
    let stored = match (kind, checkpoint.get(&name)) {
        (Kind::W8A8, None) => None,
        _ => Some(read_scales(ID, checkpoint, &name, &[rows, 1])?),
    };
    if !kind.has_static_input() {
        return Ok(stored.unwrap_or_default());
    }
    let input = static_input(checkpoint, module)?.scale;
    let deq = deq_scales(checkpoint, module, rows)?;
    let Some(stored) = stored else {
        return Ok(deq.iter().map(|&d| weight_scale(d, input)).collect());
    };
    for (row, (&d, &s)) in deq.iter().zip(&stored).enumerate() {
        if (d - s * input).abs() > STATIC_TOLERANCE * d {
            let subject = format!("{module}.deq_scale, element {row}");
            return Err(bad(subject, format!("input_scale · weight_scale = {}", s * input), d.to_string()));
        }
    }
    // The static path multiplies by deq_scale and never sees weight_scale.
    let executed = |(&d, &s): (&f32, &f32)| match kind {
        Kind::W8A8 if s * input != d => weight_scale(d, input),
        _ => s,
    };
    Ok(deq.iter().zip(&stored).map(executed).collect())
}

fn linear(checkpoint: &Checkpoint, linear: &LinearSpec, description: &Description) -> Result<LinearParams> {
    let module = &linear.module;
    let kind = description.kind(module)?;
    if kind == Kind::Float {
        return read_linear(checkpoint, linear);
    }
    let shape = linear.shape();
    let bits = eight()?;
    let levels = read_levels(ID, checkpoint, &format!("{module}.weight"), shape, bits)?;
    let scales = weight_scales(checkpoint, module, kind, shape.0)?;
    let offsets = format!("{module}.weight_offset");
    if checkpoint.get(&offsets).is_some() && checkpoint.read_f32(&offsets)?.iter().any(|&o| o != 0.0) {
        return Err(bad(offsets, "zeros (symmetric weights)", "another offset"));
    }
    let scales = Array2::from_shape_fn((shape.0, 1), |(row, _)| scales[row]);
    let zeros = Array2::from_elem((shape.0, 1), bits.mid_level());
    let matrix = QuantizedMatrix::new(bits, levels, scales, zeros, Groups::Channel)
        .map_err(|e| bad(module, "a quantised matrix", e.to_string()))?;
    let input = match kind {
        Kind::W8A8 => Some(ActQuant::Static { bits, params: static_input(checkpoint, module)? }),
        Kind::W8A8Dynamic | Kind::W8A8Mix => {
            Some(ActQuant::Dynamic { bits, rule: ActRule::Symmetric, clip_ratio: 1.0 })
        }
        Kind::Float | Kind::W8A16 => None,
    };
    let bias = read_bias(checkpoint, linear)?;
    Ok(LinearParams { weight: LinearWeight::Quantized(matrix), bias, input })
}

/// A cache tensor of `[width]`, or of `[width, 1]`, which the loader views as the same.
pub(crate) fn cache_shaped(checkpoint: &Checkpoint, name: &str, width: usize) -> Result<Vec<usize>> {
    let shape = checkpoint.tensor(name)?.shape.clone();
    if shape == [width, 1] { Ok(shape) } else { checkpoint.tensor_shaped(name, &[width]).map(|_| shape) }
}

/// One side of a C8 cache.
fn kv_side(checkpoint: &Checkpoint, spec: &ModelSpec, index: usize, id: LinearId) -> Result<Array1<f32>> {
    let module = spec.module(index, id);
    let offset = format!("{module}.kv_cache_offset");
    cache_shaped(checkpoint, &offset, spec.kv_width())?;
    if let Some(bad_offset) = checkpoint.read_f32(&offset)?.iter().find(|o| **o != 0.0) {
        return Err(bad(
            offset,
            "zeros (the loader dequantises with the scale only)",
            bad_offset.to_string(),
        ));
    }
    let scale = format!("{module}.kv_cache_scale");
    let shape = cache_shaped(checkpoint, &scale, spec.kv_width())?;
    Ok(Array1::from(read_scales(ID, checkpoint, &scale, &shape)?))
}

impl Decoder for Description {
    fn block(&self, checkpoint: &Checkpoint, spec: &ModelSpec, index: usize) -> Result<BlockParams> {
        let linears = spec.block(index).linears;
        let linears = linears.iter().map(|l| Ok((l.id, linear(checkpoint, l, self)?)));
        let linears = linears.collect::<Result<BTreeMap<_, _>>>()?;
        let kv = if self.has_kv(spec, index) {
            let key = kv_side(checkpoint, spec, index, LinearId::K)?;
            let value = kv_side(checkpoint, spec, index, LinearId::V)?;
            Some(KvQuant::Channel { bits: eight()?, key, value })
        } else {
            None
        };
        Ok(BlockParams { linears, norms: read_norms(checkpoint, spec, index)?, kv })
    }
}

pub(super) fn scheme(checkpoint: &Checkpoint, spec: &ModelSpec) -> Result<ModelScheme> {
    let description = Description::read(checkpoint)?;
    let bits = eight()?;
    let weight =
        WeightScheme { bits, symmetric: true, group: None, act_order: ActOrder::None, binary: false };
    let mut blocks = Vec::with_capacity(spec.layers);
    for index in 0..spec.layers {
        let mut block = BTreeMap::new();
        for LinearSpec { id, module, .. } in spec.block(index).linears {
            let kind = description.kind(&module)?;
            let input = match kind {
                Kind::Float | Kind::W8A16 => None,
                Kind::W8A8Dynamic | Kind::W8A8Mix => Some((true, ActRule::Symmetric)),
                // The file has parameters, not the rule that found them: an offset of zero is what symmetric means.
                Kind::W8A8 if static_input(checkpoint, &module)?.zero == bits.mid_level() => {
                    Some((false, ActRule::Symmetric))
                }
                Kind::W8A8 => Some((false, ActRule::Asymmetric)),
            };
            let input = input.map(|(dynamic, rule)| InputScheme { bits, rule, dynamic, clip_ratio: 1.0 });
            block.insert(id, LinearScheme { weight: (kind != Kind::Float).then_some(weight), input });
        }
        blocks.push(block);
    }
    let cached = (0..spec.layers).filter(|i| description.has_kv(spec, *i)).count();
    if cached != 0 && cached != spec.layers {
        return Err(bad(
            super::description::FILE,
            "C8 entries in every block or in none",
            format!("{cached} blocks"),
        ));
    }
    let granularity = KvGranularity::ChannelStatic;
    let kv = (cached != 0).then_some(KvScheme { bits, rule: ActRule::Symmetric, granularity });
    Ok(ModelScheme { blocks, kv })
}
