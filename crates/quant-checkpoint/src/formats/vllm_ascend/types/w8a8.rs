//! `W8A8`: eight bits, a static input per tensor.

use ndarray::Array1;
use quant_core::{ActQuant, ActRule, FloatType, QParams, QuantizedMatrix};
use quant_graph::{BlockParams, InputScheme, LinearId, LinearParams, LinearScheme, LinearSpec, ModelSpec};
use safetensors::Dtype;

use super::super::ID;
use super::static_input::{self, deq_dtype, weight_scales};
use super::{AscendType, TypeCodec, bits, channel, per_channel, per_token};
use crate::error::{Result, not_encodable};
use crate::formats::bytes::{Loss, float_bytes, word_bytes};
use crate::formats::layout::Part;
use crate::source::Checkpoint;

pub(super) struct W8A8;

const BITS: u32 = 8;

impl TypeCodec for W8A8 {
    fn parts(&self, linear: &LinearSpec, model: FloatType, _: usize) -> Vec<Part> {
        let mut parts = vec![channel::weight(linear)];
        parts.extend(static_input::parts(linear, model));
        // In a 16-bit model the weight scale is deq_scale / input_scale exactly; in an f32 model that division loses
        // the last bit, so the scale itself is stored too, which the loader accepts.
        if model == FloatType::F32 {
            parts.extend(channel::scales(linear));
        }
        parts.extend(channel::bias(linear));
        parts
    }
    fn bytes(
        &self,
        spec: &ModelSpec,
        (name, suffix): (&str, &str),
        id: LinearId,
        block: &BlockParams,
    ) -> Result<Vec<u8>> {
        let linear = &block.linears[&id];
        if matches!(suffix, "weight" | "weight_scale" | "weight_offset" | "bias") {
            return channel::bytes((name, suffix), linear);
        }
        let Some(ActQuant::Static { params, .. }) = linear.input else {
            return Err(not_encodable(ID, name, "a static input quantiser", format!("{:?}", linear.input)));
        };
        static_part(spec, name, suffix, channel::matrix(name, linear)?, params, linear.bias.as_ref())
    }
    fn scheme(&self, checkpoint: &Checkpoint, linear: &LinearSpec) -> Result<LinearScheme> {
        let bits = bits(BITS)?;
        // The file has parameters, not the rule that found them: an offset of zero is what symmetric means.
        let symmetric = static_input::static_input(checkpoint, &linear.module)?.zero == bits.mid_level();
        let rule = if symmetric { ActRule::Symmetric } else { ActRule::Asymmetric };
        Ok(per_channel(bits, Some(InputScheme { rule, dynamic: false, ..per_token(bits) })))
    }
    fn read(&self, checkpoint: &Checkpoint, linear: &LinearSpec) -> Result<LinearParams> {
        let (bits, module) = (bits(BITS)?, &linear.module);
        let scales = weight_scales(checkpoint, module, AscendType::W8A8, linear.outputs)?;
        let read = channel::read(checkpoint, linear, (bits, &scales))?;
        let params = static_input::static_input(checkpoint, module)?;
        Ok(LinearParams { input: Some(ActQuant::Static { bits, params }), ..read })
    }
}

/// One of the four tensors of the static path.
fn static_part(
    spec: &ModelSpec,
    name: &str,
    suffix: &str,
    matrix: &QuantizedMatrix,
    input: QParams,
    bias: Option<&Array1<f32>>,
) -> Result<Vec<u8>> {
    let offset = input_offset(name, input)?;
    match suffix {
        "input_scale" => float_bytes(ID, name, [input.scale], FloatType::F32, Loss::None),
        "input_offset" => float_bytes(ID, name, [offset], FloatType::F32, Loss::None),
        "deq_scale" => {
            let products = deq_scales(name, matrix, input.scale)?;
            if deq_dtype(spec.dtype) == Dtype::I64 {
                // The bits as a signed 32-bit integer, widened; products are positive.
                return Ok(products
                    .iter()
                    .flat_map(|p| i64::from(p.to_bits() as i32).to_le_bytes())
                    .collect());
            }
            float_bytes(ID, name, products, FloatType::F32, Loss::None)
        }
        _ => {
            let products = deq_scales(name, matrix, input.scale)?;
            let mut words = Vec::with_capacity(products.len());
            for (row, (levels, scale)) in matrix.levels().rows().into_iter().zip(products).enumerate() {
                let sum: i64 = levels.iter().map(|&l| i64::from(l) - 128).sum();
                words.push(quant_bias(name, row, bias.map_or(0.0, |b| b[row]), scale, offset, sum)?);
            }
            Ok(word_bytes(words))
        }
    }
}

/// The loader's offset: our zero level in signed coordinates.
fn input_offset(name: &str, input: QParams) -> Result<f32> {
    let offset = input.zero - 128.0;
    if offset.fract() == 0.0 && (-128.0..=127.0).contains(&offset) {
        Ok(offset)
    } else {
        Err(not_encodable(ID, name, "an integer zero level of 0 to 255", input.zero.to_string()))
    }
}

/// `input_scale · weight_scale` per row.
fn deq_scales(name: &str, matrix: &QuantizedMatrix, input: f32) -> Result<Vec<f32>> {
    let product = |&scale: &f32| {
        let product = input * scale;
        if product.is_normal() {
            Ok(product)
        } else {
            let found = format!("{input:e} · {scale:e}");
            Err(not_encodable(ID, name, "scales whose product is a normal f32", found))
        }
    };
    matrix.scales().column(0).iter().map(product).collect()
}

/// `round(bias / deq_scale − input_offset · Σ w)`, half to even.
fn quant_bias(name: &str, row: usize, bias: f32, deq_scale: f32, offset: f32, sum: i64) -> Result<i32> {
    let value = (f64::from(bias) / f64::from(deq_scale) - f64::from(offset) * sum as f64).round_ties_even();
    if (f64::from(i32::MIN)..=f64::from(i32::MAX)).contains(&value) {
        return Ok(value as i32);
    }
    Err(not_encodable(ID, format!("{name}, element {row}"), "a value that int32 holds", value.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The worked example of the format's description: two rows, static asymmetric input.
    #[test]
    fn worked_example() {
        let (scale, offset) = (0.02_f32, -5.0);
        let rows: [(i64, f32, f32); 2] = [(2, 0.01, 0.25), (-1, 0.004, -1.0)];
        let got: Vec<i32> = rows
            .iter()
            .map(|&(sum, weight, bias)| quant_bias("t", 0, bias, scale * weight, offset, sum).unwrap())
            .collect();
        assert_eq!(got, [1260, -12505]);
        for (value, bits) in [(0.0123_f32, 1_011_451_376_i64), (1.0, 1_065_353_216), (0.001, 981_668_463)] {
            assert_eq!(i64::from(value.to_bits() as i32), bits);
        }
        assert!(quant_bias("t", 0, 1e30, 1e-5, 0.0, 0).is_err());
    }
}
