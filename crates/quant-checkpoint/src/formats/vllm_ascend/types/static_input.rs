//! The tensors of a static input, of `W8A8` and `W8A8_MIX`: what decoding and `verify` both read.

use quant_core::{FloatType, QParams};
use quant_graph::LinearSpec;
use safetensors::Dtype;

use super::super::{ID, bad};
use super::AscendType;
use crate::error::Result;
use crate::formats::bytes::{read_scales, single};
use crate::formats::layout::Part;
use crate::source::Checkpoint;

/// msmodelslim computes deq_scale in the model's type: half a unit in the last place of bfloat16 on each factor.
const STATIC_TOLERANCE: f32 = 1.0 / 64.0;

/// Its four tensors, in msmodelslim's order.
pub(super) fn parts(linear: &LinearSpec, model: FloatType) -> [Part; 4] {
    let out = linear.outputs;
    [
        Part::new("quant_bias", Dtype::I32, [out]),
        Part::new("input_scale", Dtype::F32, [1]),
        Part::new("input_offset", Dtype::F32, [1]),
        Part::new("deq_scale", deq_dtype(model), [out]),
    ]
}

/// float16 models store the bits of the f32 product in an int64: the layout their matmul operator takes.
pub(super) fn deq_dtype(model: FloatType) -> Dtype {
    if model == FloatType::F16 { Dtype::I64 } else { Dtype::F32 }
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

/// Weight scales `[out]` of a linear with a static input, whose tensors are checked against them.
pub(crate) fn weight_scales(
    checkpoint: &Checkpoint,
    module: &str,
    kind: AscendType,
    rows: usize,
) -> Result<Vec<f32>> {
    let name = format!("{module}.weight_scale");
    let stored = match (kind, checkpoint.get(&name)) {
        (AscendType::W8A8, None) => None,
        _ => Some(read_scales(ID, checkpoint, &name, &[rows, 1])?),
    };
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
        AscendType::W8A8 if s * input != d => weight_scale(d, input),
        _ => s,
    };
    Ok(deq.iter().zip(&stored).map(executed).collect())
}
