//! The stored numbers of a quantised linear and of a cache: what decoding and `verify` both read.

use quant_core::QParams;
use safetensors::Dtype;

use super::ID;
use super::description::{AscendType, bad};
use crate::error::Result;
use crate::formats::bytes::{read_scales, single};
use crate::source::Checkpoint;

/// msmodelslim computes deq_scale in the model's type: half a unit in the last place of bfloat16 on each factor.
const STATIC_TOLERANCE: f32 = 1.0 / 64.0;

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
    kind: AscendType,
    rows: usize,
) -> Result<Vec<f32>> {
    let name = format!("{module}.weight_scale");
    let stored = match (kind, checkpoint.get(&name)) {
        (AscendType::W8A8, None) => None,
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
        AscendType::W8A8 if s * input != d => weight_scale(d, input),
        _ => s,
    };
    Ok(deq.iter().zip(&stored).map(executed).collect())
}

/// A cache tensor of `[width]`, or of `[width, 1]`, which the loader views as the same.
pub(crate) fn cache_shaped(checkpoint: &Checkpoint, name: &str, width: usize) -> Result<Vec<usize>> {
    let shape = checkpoint.tensor(name)?.shape.clone();
    if shape == [width, 1] { Ok(shape) } else { checkpoint.tensor_shaped(name, &[width]).map(|_| shape) }
}
