//! A block to tensors and back.

use std::collections::BTreeMap;

use ndarray::{Array2, ArrayD, Ix2};
use quant_core::packing::{pack_columns, pack_rows, unpack_columns, unpack_rows};
use quant_core::{ActQuant, Bits, FloatType, Groups, QParams, QuantizedMatrix};
use quant_graph::{
    ActOrder, BlockParams, LinearParams, LinearSpec, LinearWeight, ModelScheme, ModelSpec, Online, WeightForm,
};
use safetensors::Dtype;

use super::config::{Config, Layout, Storage, bad};
use super::{ID, slots};
use crate::error::{Result, not_encodable};
use crate::formats::block::{check, linear_scheme};
use crate::formats::bytes::{
    Loss, float_bytes, int8_bytes, read_levels, read_scales, shaped, single, word_bytes,
};
use crate::formats::layout::{Item, Slot};
use crate::formats::plain::{read_bias, read_linear, read_norms};
use crate::formats::slots::encode_slots;
use crate::formats::{Decoder, Encoded};
use crate::source::Checkpoint;

/// The tensors of a block of a scheme.
pub(super) fn slots_of(spec: &ModelSpec, scheme: &ModelScheme, index: usize) -> Vec<Slot> {
    slots(spec, index, |role| Layout::of(&linear_scheme(scheme, index, role)))
}

/// All tensors of a block, each made on its own.
pub(super) fn encode(
    spec: &ModelSpec,
    scheme: &ModelScheme,
    index: usize,
    block: BlockParams,
) -> Result<Vec<Encoded>> {
    check(ID, spec, scheme, index, &block, spec.dtype.served())?;
    encode_slots(slots_of(spec, scheme, index), block, |slot, block| {
        let name = &slot.decl.name;
        match slot.item {
            Item::Linear(role, suffix) => part(spec.dtype, name, suffix, &block.linears[&role]),
            Item::Norm(norm) => {
                float_bytes(ID, name, block.norms[&norm].iter().copied(), spec.dtype, Loss::Rounding)
            }
            Item::KvScale(_) | Item::KvOffset(_) => Ok(Vec::new()),
        }
    })
}

/// One tensor of a linear, but for levels that are stored as int8.
fn part(model: FloatType, name: &str, suffix: &str, linear: &LinearParams) -> Result<Vec<u8>> {
    if suffix == "bias" {
        return float_bytes(ID, name, linear.bias.iter().flatten().copied(), model, Loss::Rounding);
    }
    let matrix = match &linear.weight {
        LinearWeight::Float(values) => {
            return float_bytes(ID, name, values.iter().copied(), model, Loss::Rounding);
        }
        LinearWeight::Quantized(matrix) => matrix,
        LinearWeight::Binary(_) => {
            return Err(not_encodable(ID, name, "integer levels", WeightForm::BinaryResidual.name()));
        }
    };
    match (suffix, linear.input) {
        ("weight_packed", _) => Ok(word_bytes(pack_rows(matrix.levels().view(), matrix.bits()))),
        ("weight_shape", _) => {
            let (rows, columns) = matrix.dim();
            Ok([rows, columns].iter().flat_map(|&d| (d as u64).to_le_bytes()).collect())
        }
        ("weight_scale", _) => float_bytes(ID, name, matrix.scales().iter().copied(), model, Loss::None),
        ("weight_zero_point", input) => {
            if !matrix.has_integer_zeros() {
                let expected = format!("integer zero levels of {} bits", matrix.bits().get());
                return Err(not_encodable(ID, name, expected, "another number"));
            }
            let levels = matrix.zeros().mapv(|z| z as u8);
            Ok(match input {
                Some(_) => int8_bytes(levels.view(), matrix.bits()),
                None => word_bytes(pack_columns(levels.view(), matrix.bits())),
            })
        }
        ("input_scale", Some(ActQuant::Static { params, .. })) => {
            float_bytes(ID, name, [params.scale], model, Loss::None)
        }
        ("input_zero_point", Some(ActQuant::Static { bits, params })) => {
            if params.zero.fract() != 0.0 || !(0.0..=bits.max_level()).contains(&params.zero) {
                return Err(not_encodable(ID, name, "an integer zero level", params.zero.to_string()));
            }
            Ok(((params.zero - bits.mid_level()) as i8).to_le_bytes().to_vec())
        }
        (_, input) => Err(not_encodable(ID, name, "the scheme's quantisers", format!("input {input:?}"))),
    }
}

/// A two-dimensional tensor of words.
fn read_words(checkpoint: &Checkpoint, name: &str, shape: &[usize]) -> Result<Array2<i32>> {
    checkpoint.tensor_shaped(name, shape)?;
    let words: ArrayD<i32> = checkpoint.read_i32(name)?;
    words.into_dimensionality::<Ix2>().map_err(|e| bad(name, "a matrix", e.to_string()))
}

/// Levels `[out, in]`.
fn levels(
    checkpoint: &Checkpoint,
    module: &str,
    layout: &Layout,
    (rows, columns): (usize, usize),
) -> Result<Array2<u8>> {
    let bits = layout.weight.bits;
    if layout.storage == Storage::Int {
        return read_levels(ID, checkpoint, &format!("{module}.weight"), (rows, columns), bits);
    }
    let name = format!("{module}.weight_shape");
    checkpoint.tensor_shaped(&name, &[2])?;
    let shape = checkpoint.read_i64(&name)?;
    if shape.iter().copied().ne([rows as i64, columns as i64]) {
        return Err(bad(name, format!("[{rows}, {columns}]"), format!("{shape}")));
    }
    let name = format!("{module}.weight_packed");
    let words = read_words(checkpoint, &name, &[rows, quant_core::packing::words(columns, bits)])?;
    unpack_rows(words.view(), columns, bits).map_err(|e| bad(name, "packed levels", e.to_string()))
}

/// Zero levels `[out, groups]`.
fn zeros(
    checkpoint: &Checkpoint,
    module: &str,
    layout: &Layout,
    shape: (usize, usize),
) -> Result<Array2<f32>> {
    let bits = layout.weight.bits;
    if layout.weight.symmetric {
        return Ok(Array2::from_elem(shape, bits.mid_level()));
    }
    let name = format!("{module}.weight_zero_point");
    let levels = match layout.storage {
        Storage::Int if layout.per_tensor => {
            checkpoint.tensor_shaped(&name, &[1])?;
            let zero = checkpoint.read_i8(&name)?.iter().next().copied().unwrap_or_default();
            return Ok(Array2::from_elem(shape, f32::from(zero) + bits.mid_level()));
        }
        Storage::Int => read_levels(ID, checkpoint, &name, shape, bits)?,
        Storage::Packed => {
            let words = read_words(checkpoint, &name, &[quant_core::packing::words(shape.0, bits), shape.1])?;
            unpack_columns(words.view(), shape.0, bits)
                .map_err(|e| bad(name, "packed zero points", e.to_string()))?
        }
    };
    Ok(levels.mapv(f32::from))
}

/// The groups of the columns.
fn groups(checkpoint: &Checkpoint, module: &str, layout: &Layout, columns: usize) -> Result<Groups> {
    let (Some(size), ActOrder::Dynamic) = (layout.weight.group, layout.weight.act_order) else {
        return Ok(Groups::from_size(layout.weight.group));
    };
    let name = format!("{module}.weight_g_idx");
    checkpoint.tensor_shaped(&name, &[columns])?;
    let numbers = checkpoint.read_i32(&name)?;
    let group = |&g: &i32| u32::try_from(g).map_err(|_| bad(&name, "group numbers from 0", g.to_string()));
    Ok(Groups::Index { size, of_column: numbers.iter().map(group).collect::<Result<_>>()? })
}

fn matrix(
    checkpoint: &Checkpoint,
    module: &str,
    layout: &Layout,
    shape: (usize, usize),
) -> Result<QuantizedMatrix> {
    let (rows, columns) = shape;
    let count = layout.groups(columns);
    let name = format!("{module}.weight_scale");
    let scales = if layout.per_tensor {
        vec![read_scales(ID, checkpoint, &name, &[1])?[0]; rows]
    } else {
        read_scales(ID, checkpoint, &name, &[rows, count])?
    };
    QuantizedMatrix::new(
        layout.weight.bits,
        levels(checkpoint, module, layout, shape)?,
        shaped(checkpoint, &name, (rows, count), scales)?,
        zeros(checkpoint, module, layout, (rows, count))?,
        groups(checkpoint, module, layout, columns)?,
    )
    .map_err(|e| bad(module, "a quantised matrix", e.to_string()))
}

/// Parameters of a static input.
fn static_params(checkpoint: &Checkpoint, module: &str, symmetric: bool, bits: Bits) -> Result<QParams> {
    let scale = read_scales(ID, checkpoint, &format!("{module}.input_scale"), &[1])?[0];
    if symmetric {
        return Ok(QParams { scale, zero: bits.mid_level() });
    }
    let name = format!("{module}.input_zero_point");
    let zero = match single(checkpoint, &name)?.dtype {
        Dtype::I32 => checkpoint.read_i32(&name)?.iter().next().copied().unwrap_or_default(),
        _ => checkpoint.read_i8(&name)?.iter().next().copied().map_or(0, i32::from),
    };
    let half = 1_i32 << (bits.get() - 1);
    if !(-half..half).contains(&zero) {
        return Err(bad(name, format!("a zero point from {} to {}", -half, half - 1), zero.to_string()));
    }
    Ok(QParams { scale, zero: zero as f32 + bits.mid_level() })
}

fn linear(checkpoint: &Checkpoint, linear: &LinearSpec, config: &Config) -> Result<LinearParams> {
    let module = &linear.module;
    let layout = match config.group(module) {
        Some(group) => group.layout()?,
        None => None,
    };
    let Some(layout) = layout else { return read_linear(checkpoint, linear) };
    let weight = matrix(checkpoint, module, &layout, linear.shape())?;
    let input = match layout.scheme.input {
        None => None,
        Some(input) if input.dynamic => input.dynamic(),
        Some(input) => {
            let symmetric = input.rule != quant_core::ActRule::Asymmetric;
            let params = static_params(checkpoint, module, symmetric, input.bits)?;
            Some(ActQuant::Static { bits: input.bits, params })
        }
    };
    let bias = read_bias(checkpoint, linear)?;
    Ok(LinearParams { weight: LinearWeight::Quantized(weight), bias, input })
}

impl Decoder for Config {
    fn block(&self, checkpoint: &Checkpoint, spec: &ModelSpec, index: usize) -> Result<BlockParams> {
        let linears = spec.block(index).linears;
        let linears = linears.iter().map(|l| Ok((l.id, linear(checkpoint, l, self)?)));
        let linears = linears.collect::<Result<BTreeMap<_, _>>>()?;
        Ok(BlockParams {
            linears,
            norms: read_norms(checkpoint, spec, index)?,
            online: Online::default(),
            kv: None,
        })
    }
}
