//! A block to tensors.

use ndarray::Array1;
use quant_core::{ActQuant, EntryQuant, FloatType, KvSide, QParams, QuantizedMatrix};
use quant_graph::{
    BlockParams, LinearId, LinearParams, LinearSpec, LinearWeight, ModelScheme, ModelSpec, WeightForm,
};
use rayon::prelude::*;
use safetensors::Dtype;

use super::description::AscendType;
use super::{ID, flatquant, slots};
use crate::error::{Result, not_encodable};
use crate::formats::Encoded;
use crate::formats::block::check;
use crate::formats::bytes::{Loss, float_bytes, int8_bytes, word_bytes};
use crate::formats::layout::{Item, Slot};

/// The tensors of a block of a scheme.
pub(super) fn slots_of(spec: &ModelSpec, scheme: &ModelScheme, index: usize) -> Vec<Slot> {
    let shards = |linear: &LinearSpec| flatquant::shards_at(scheme, index, linear.id.site());
    slots(spec, index, |id| AscendType::at(scheme, index, id), shards, scheme.kv.is_some())
}

/// All tensors of a block, each made on its own.
pub(super) fn block(
    spec: &ModelSpec,
    scheme: &ModelScheme,
    index: usize,
    block: &BlockParams,
) -> Result<Vec<Encoded>> {
    check(ID, spec, scheme, index, block, spec.dtype.served())?;
    let topology = spec.block(index);
    for linear in &topology.linears {
        check_shared_input(spec, index, topology.loaded_with(linear.id), linear.id, block)?;
    }
    let encode = |slot: Slot| {
        let decl = slot.decl;
        let bytes = match slot.item {
            Item::Linear(id, suffix) if flatquant::owns(suffix) => {
                flatquant::bytes(spec, &decl.name, suffix, id, block)?
            }
            Item::Linear(id, suffix) => part(spec, &decl.name, suffix, &block.linears[&id])?,
            Item::Norm(norm) => {
                float_bytes(ID, &decl.name, block.norms[&norm].iter().copied(), spec.dtype, Loss::Rounding)?
            }
            Item::KvScale(side) => {
                let scales = kv_scales(block, side).map(|s| s.to_vec()).unwrap_or_default();
                float_bytes(ID, &decl.name, scales, spec.dtype, Loss::None)?
            }
            // All bits zero is 0.0 in every float type.
            Item::KvOffset(_) => vec![0; spec.kv_width() * spec.dtype.size()],
        };
        Ok(Encoded { name: decl.name, dtype: decl.dtype, shape: decl.shape, bytes })
    };
    slots_of(spec, scheme, index).into_par_iter().map(encode).collect()
}

fn kv_scales(block: &BlockParams, side: KvSide) -> Option<&Array1<f32>> {
    match block.kv.as_ref()?.side(side) {
        EntryQuant::Channel { scales, .. } => Some(scales),
        EntryQuant::TokenHead { .. } => None,
    }
}

/// The loader quantises the input of a fused layer once, with the parameters of its last shard.
fn check_shared_input(
    spec: &ModelSpec,
    index: usize,
    fused: &[LinearId],
    id: LinearId,
    block: &BlockParams,
) -> Result<()> {
    let input = block.linears[&id].input;
    match fused.iter().find(|other| block.linears[other].input != input) {
        Some(other) => Err(not_encodable(
            ID,
            spec.module(index, id),
            format!("the input parameters of {}", spec.module(index, *other)),
            format!("{input:?}"),
        )),
        None => Ok(()),
    }
}

/// One tensor of a linear.
fn part(spec: &ModelSpec, name: &str, suffix: &str, linear: &LinearParams) -> Result<Vec<u8>> {
    let matrix = match &linear.weight {
        LinearWeight::Float(values) => {
            let bias = linear.bias.iter().flatten().copied();
            return match suffix {
                "bias" => float_bytes(ID, name, bias, spec.dtype, Loss::Rounding),
                _ => float_bytes(ID, name, values.iter().copied(), spec.dtype, Loss::Rounding),
            };
        }
        LinearWeight::Quantized(matrix) => matrix,
        LinearWeight::Binary(_) => {
            return Err(not_encodable(ID, name, "integer levels", WeightForm::BinaryResidual.name()));
        }
    };
    let scales = || matrix.scales().column(0).iter().copied().collect::<Vec<_>>();
    match suffix {
        "weight" => Ok(int8_bytes(matrix.levels().view(), matrix.bits())),
        "weight_scale" => float_bytes(ID, name, scales(), FloatType::F32, Loss::None),
        "weight_offset" => Ok(vec![0; matrix.dim().0 * 4]),
        "bias" => float_bytes(ID, name, linear.bias.iter().flatten().copied(), FloatType::F32, Loss::None),
        _ => {
            let Some(ActQuant::Static { params, .. }) = linear.input else {
                return Err(not_encodable(
                    ID,
                    name,
                    "a static input quantiser",
                    format!("{:?}", linear.input),
                ));
            };
            static_part(spec, name, suffix, matrix, params, linear.bias.as_ref())
        }
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
            if super::description::deq_dtype(spec.dtype) == Dtype::I64 {
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
