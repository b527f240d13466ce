//! Refusals of what no loader does to the input of a linear.

use quant_graph::Clipping;

use super::Unsupported;

/// Refuses parts of a token with scales of their own.
pub(super) fn refuse_shards(format: &'static str, module: &str, shards: usize) -> Result<(), Unsupported> {
    if shards <= 1 {
        return Ok(());
    }
    Err(Unsupported {
        format,
        what: format!("activations quantised in {shards} shards ({module})"),
        alternatives: "use input_shards: 1, or export to dequantized".to_owned(),
    })
}

/// Refuses ranges that are clipped.
pub(super) fn refuse_clipping(
    format: &'static str,
    module: &str,
    clip_ratio: Clipping,
) -> Result<(), Unsupported> {
    let (what, alternatives) = match clip_ratio {
        Clipping::NONE => return Ok(()),
        Clipping::Fixed(ratio) => (
            format!("an activation clip_ratio of {ratio} ({module})"),
            "use clip_ratio: 1.0, or export to dequantized",
        ),
        Clipping::Learned | Clipping::Tied => (
            format!("a learned activation clip_ratio ({module})"),
            "do not learn it (for flatquant: lac: false), or export to dequantized",
        ),
    };
    Err(Unsupported { format, what, alternatives: alternatives.to_owned() })
}
