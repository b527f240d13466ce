//! What all integer types have: symmetric levels with a scale per channel.

use ndarray::Array2;
use quant_core::{Bits, FloatType, Groups, QuantizedMatrix};
use quant_graph::{
    BlockParams, LinearId, LinearParams, LinearScheme, LinearSpec, LinearWeight, ModelSpec, WeightForm,
};
use safetensors::Dtype;

use super::super::{ID, bad};
use super::{TypeCodec, bits, per_channel, per_token, per_token_quantiser};
use crate::error::{Result, not_encodable};
use crate::formats::bytes::{Loss, float_bytes, read_levels, read_scales};
use crate::formats::layout::Part;
use crate::formats::plain::read_bias;
use crate::source::Checkpoint;

/// A type of symmetric weights with a scale per channel, and nothing that is stored of its input.
pub(super) struct PerChannel {
    pub(super) bits: u32,
    /// Whether its input is quantised, in as many bits with a scale per token; else it is float.
    pub(super) tokens: bool,
}

impl TypeCodec for PerChannel {
    fn parts(&self, linear: &LinearSpec, _: FloatType, _: usize) -> Vec<Part> {
        parts(linear)
    }
    fn bytes(
        &self,
        _: &ModelSpec,
        tensor: (&str, &str),
        id: LinearId,
        block: &BlockParams,
    ) -> Result<Vec<u8>> {
        bytes(tensor, &block.linears[&id])
    }
    fn scheme(&self, _: &Checkpoint, _: &LinearSpec) -> Result<LinearScheme> {
        let bits = bits(self.bits)?;
        Ok(per_channel(bits, self.tokens.then(|| per_token(bits))))
    }
    fn read(&self, checkpoint: &Checkpoint, linear: &LinearSpec) -> Result<LinearParams> {
        let (bits, scales) = (bits(self.bits)?, read_weight_scales(checkpoint, linear)?);
        let weight = read(checkpoint, linear, (bits, &scales))?;
        Ok(LinearParams { input: self.tokens.then(|| per_token_quantiser(bits)), ..weight })
    }
}

/// One level to a byte.
pub(super) fn weight(linear: &LinearSpec) -> Part {
    Part::new("weight", Dtype::I8, [linear.outputs, linear.inputs])
}

/// Scale and offset of every channel.
pub(super) fn scales(linear: &LinearSpec) -> [Part; 2] {
    ["weight_scale", "weight_offset"].map(|suffix| Part::new(suffix, Dtype::F32, [linear.outputs, 1]))
}

/// The bias, if there is one.
pub(super) fn bias(linear: &LinearSpec) -> Option<Part> {
    linear.bias.then(|| Part::new("bias", Dtype::F32, [linear.outputs]))
}

/// Weight, scales and bias, in this order.
pub(super) fn parts(linear: &LinearSpec) -> Vec<Part> {
    [weight(linear)].into_iter().chain(scales(linear)).chain(bias(linear)).collect()
}

/// The levels of a linear.
pub(super) fn matrix<'a>(name: &str, linear: &'a LinearParams) -> Result<&'a QuantizedMatrix> {
    let wrong = |found: &str| Err(not_encodable(ID, name, "integer levels", found));
    match &linear.weight {
        LinearWeight::Quantized(matrix) => Ok(matrix),
        LinearWeight::Float(_) => wrong("floats"),
        LinearWeight::Binary(_) => wrong(WeightForm::BinaryResidual.name()),
    }
}

/// The bytes of one of [`parts`] but the weight, whose levels become bytes where they lie.
pub(super) fn bytes((name, suffix): (&str, &str), linear: &LinearParams) -> Result<Vec<u8>> {
    let matrix = matrix(name, linear)?;
    let scales = || matrix.scales().column(0).iter().copied().collect::<Vec<_>>();
    match suffix {
        "weight_scale" => float_bytes(ID, name, scales(), FloatType::F32, Loss::None),
        // Symmetric: all bits zero is 0.0.
        "weight_offset" => Ok(vec![0; matrix.dim().0 * 4]),
        "bias" => float_bytes(ID, name, linear.bias.iter().flatten().copied(), FloatType::F32, Loss::None),
        other => Err(not_encodable(ID, name, "a tensor of this type", other)),
    }
}

/// The scales of a linear `[out]`.
pub(super) fn read_weight_scales(checkpoint: &Checkpoint, linear: &LinearSpec) -> Result<Vec<f32>> {
    read_scales(ID, checkpoint, &format!("{}.weight_scale", linear.module), &[linear.outputs, 1])
}

/// The levels of a linear with these scales `[out]`, and its bias; the input is that of the type.
pub(super) fn read(
    checkpoint: &Checkpoint,
    linear: &LinearSpec,
    (bits, scales): (Bits, &[f32]),
) -> Result<LinearParams> {
    let module = &linear.module;
    let shape = linear.shape();
    let levels = read_levels(ID, checkpoint, &format!("{module}.weight"), shape, bits)?;
    let offsets = format!("{module}.weight_offset");
    if checkpoint.get(&offsets).is_some() && checkpoint.read_f32(&offsets)?.iter().any(|&o| o != 0.0) {
        return Err(bad(offsets, "zeros (symmetric weights)", "another offset"));
    }
    let scales = Array2::from_shape_fn((shape.0, 1), |(row, _)| scales[row]);
    let zeros = Array2::from_elem((shape.0, 1), bits.mid_level());
    let matrix = QuantizedMatrix::new(bits, levels, scales, zeros, Groups::Channel)
        .map_err(|e| bad(module, "a quantised matrix", e.to_string()))?;
    let bias = read_bias(checkpoint, linear)?;
    Ok(LinearParams { weight: LinearWeight::Quantized(matrix), bias, input: None })
}
