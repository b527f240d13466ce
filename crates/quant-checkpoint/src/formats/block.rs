//! Checks that a block is what its scheme and the model say, before its bytes are made.

use quant_core::{ActQuant, ActRule, EntryQuant, FloatType, Groups, KvGranularity, KvSide};
use quant_graph::{
    ActOrder, BlockParams, InputScheme, LinearId, LinearParams, LinearScheme, LinearSpec, LinearWeight,
    ModelScheme, ModelSpec, WeightForm,
};

use crate::error::{Result, not_encodable};

/// The scheme of a linear; float where the scheme has no such block.
pub(crate) fn linear_scheme(scheme: &ModelScheme, index: usize, id: LinearId) -> LinearScheme {
    scheme.blocks.get(index).and_then(|b| b.get(&id)).copied().unwrap_or_default()
}

/// Checks all shapes, widths, groups and quantisers of a block, and that the scales that the loader holds are exact in
/// `scale_type`, its type for them.
///
/// # Errors
/// [`CheckpointError::NotEncodable`] naming the first difference.
pub(crate) fn check(
    format: &'static str,
    spec: &ModelSpec,
    scheme: &ModelScheme,
    index: usize,
    block: &BlockParams,
    scale_type: FloatType,
) -> Result<()> {
    for linear in spec.block(index).linears {
        let Some(params) = block.linears.get(&linear.id) else {
            return Err(not_encodable(format, linear.module, "a linear", "none in the block"));
        };
        check_linear(format, &linear, linear_scheme(scheme, index, linear.id), params, scale_type)?;
    }
    for (norm, width) in spec.norms() {
        let found = block.norms.get(&norm).map(ndarray::ArrayBase::len);
        if found != Some(width) {
            return Err(not_encodable(
                format,
                spec.norm(index, norm),
                format!("{width} values"),
                format!("{found:?}"),
            ));
        }
    }
    super::online::check(format, spec, &super::online::of_block(scheme, index), index, &block.online)?;
    check_cache(format, spec, scheme, index, block)
}

/// Whether the quantiser of the cache is that of the scheme.
fn check_cache(
    format: &'static str,
    spec: &ModelSpec,
    scheme: &ModelScheme,
    index: usize,
    block: &BlockParams,
) -> Result<()> {
    let wrong = |expected: String, found: &str| {
        let subject = format!("{}, KV cache", spec.block_prefix(index));
        Err(not_encodable(format, subject, expected, found))
    };
    let (want, found) = match (scheme.kv, &block.kv) {
        (None, None) => return Ok(()),
        (Some(want), Some(found)) => (want, found),
        (want, found) => {
            let found = found.as_ref().map_or("a float cache", |_| "a quantised cache");
            return wrong(format!("{want:?}"), found);
        }
    };
    if (want.before_rope, want.pre_bias) != (found.before_rope, found.pre_bias) {
        return wrong(format!("{want:?}"), "keys quantised at another place");
    }
    for side in [KvSide::Key, KvSide::Value] {
        match (want.granularity(side), found.side(side)) {
            (KvGranularity::TokenHead, EntryQuant::TokenHead { bits, rule, clip_ratio })
                if (want.bits, want.rule) == (*bits, *rule) && want.clip_ratio.admits(*clip_ratio) => {}
            (KvGranularity::ChannelStatic, EntryQuant::Channel { bits, scales, zeros })
                if want.bits == *bits =>
            {
                let width = spec.kv_width();
                if scales.len() != width || zeros.len() != width {
                    let found = format!("{} and {}", scales.len(), zeros.len());
                    return wrong(format!("{width} scales and zero levels of a side"), &found);
                }
                if let Some(bad) = scales.iter().find(|s| !s.is_finite() || **s <= 0.0) {
                    return wrong("positive scales".into(), &bad.to_string());
                }
                let level = |z: &f32| z.fract() == 0.0 && (0.0..=bits.max_level()).contains(z);
                if let Some(bad) = zeros.iter().find(|z| !level(z)) {
                    return wrong(format!("zero levels of {} bits", bits.get()), &bad.to_string());
                }
                let middle = |zero: &f32| *zero == bits.mid_level();
                if want.rule != ActRule::Asymmetric && !zeros.iter().all(middle) {
                    return wrong("symmetric entries".into(), "a zero level off the middle");
                }
            }
            _ => return wrong(format!("{want:?}"), "another quantiser"),
        }
    }
    Ok(())
}

fn check_linear(
    format: &'static str,
    linear: &LinearSpec,
    scheme: LinearScheme,
    params: &LinearParams,
    scale_type: FloatType,
) -> Result<()> {
    let (module, shape) = (linear.module.as_str(), linear.shape());
    let wrong = |expected: String, found: String| Err(not_encodable(format, module, expected, found));
    if params.weight.dim() != shape {
        return wrong(format!("a weight of shape {shape:?}"), format!("{:?}", params.weight.dim()));
    }
    let bias = params.bias.as_ref().map(ndarray::ArrayBase::len);
    if bias != linear.bias.then_some(linear.outputs) {
        return wrong(format!("bias: {}", linear.bias), format!("a bias of length {bias:?}"));
    }
    match (scheme.weight, &params.weight) {
        (None, LinearWeight::Float(_)) => {}
        (Some(want), LinearWeight::Binary(found)) => {
            let block = want.group.unwrap_or(shape.1);
            if want.form != WeightForm::BinaryResidual || found.block() != block {
                let found = format!("binary residual codes in blocks of {}", found.block());
                return wrong(format!("{want:?}"), found);
            }
        }
        (Some(want), LinearWeight::Quantized(found)) => {
            let mixed = want.form == WeightForm::MixedInteger;
            if want.form == WeightForm::BinaryResidual || mixed != found.widths().per_group().is_some() {
                let found = if mixed { "levels of one width" } else { "integer levels" };
                return wrong(want.form.name().to_owned(), found.to_owned());
            }
            let groups = match (want.act_order, want.group, found.groups()) {
                (ActOrder::Dynamic, Some(g), Groups::Index { size, .. }) => *size == g,
                (ActOrder::None | ActOrder::Static, Some(g), Groups::Size(size)) => *size == g,
                (_, None, Groups::Channel) => true,
                _ => false,
            };
            if (!mixed && want.bits != found.bits()) || !groups {
                return wrong(
                    format!("{want:?}"),
                    format!("{} bits, {} groups", found.bits().get(), found.scales().ncols()),
                );
            }
            if want.symmetric && want.form == WeightForm::Integer && !found.is_symmetric() {
                return wrong("symmetric levels".to_owned(), "a zero level off the middle".to_owned());
            }
            if let Some(bad) = found.scales().iter().find(|s| !s.is_finite() || **s <= 0.0) {
                return wrong("positive scales".to_owned(), bad.to_string());
            }
            // A static linear executes the product of its scales, which formats keep finer; where one stores the weight
            // scale all the same, making its bytes checks it.
            let held = !matches!(params.input, Some(ActQuant::Static { .. }));
            if let Some(at) = found.scales().iter().position(|s| held && scale_type.round(*s) != *s) {
                let subject = format!("{module}.weight_scale, element {at}");
                let rough = found.scales().iter().nth(at).copied().unwrap_or_default();
                return Err(not_encodable(
                    format,
                    subject,
                    format!("a number that {scale_type:?} holds"),
                    format!("{rough:e}"),
                ));
            }
        }
        (want, found) => {
            let name = |quantized| if quantized { "a quantised weight" } else { "a float weight" }.to_owned();
            return wrong(name(want.is_some()), name(!found.is_float()));
        }
    }
    let input_fits = match (scheme.input, params.input) {
        (None, None) => true,
        (Some(want), Some(ActQuant::Dynamic { bits, rule, clip_ratio, shards })) => {
            want == InputScheme { bits, rule, dynamic: true, shards, ..want }
                && want.clip_ratio.admits(clip_ratio)
        }
        (Some(want), Some(ActQuant::Static { bits, params })) => {
            let exact = scale_type.round(params.scale) == params.scale;
            !want.dynamic && want.bits == bits && params.scale > 0.0 && params.scale.is_finite() && exact
        }
        _ => false,
    };
    if input_fits {
        Ok(())
    } else {
        wrong(format!("input {:?}", scheme.input), format!("{:?}", params.input))
    }
}
