//! `W4A4_FLATQUANT_DYNAMIC`: four bits behind a Kronecker pair.
//!
//! The loader sees an input of `n = L R` features as `X` `[L, R]`, row-major, and one kernel computes `left^T X right`, takes
//! `clip_ratio · absmax / 7` as the scale of the token and rounds to four bits. `left_trans` `[L, L]` and `right_trans` `[R, R]` are in
//! the model's type, `clip_ratio` is an f32 of one value in (0, 1]; the other tensors are those of `W4A4_DYNAMIC`. Linears that the
//! loader fuses have one pair and one ratio, those of the last shard, so each stores the same.
//!
//! On `N` devices each has `n / N` of the features that enter o and down, and all of them load the same pair and ratio, so that the pair must be
//! that of `n / N` features: such a folder loads on `N` devices alone. How many that are is told by the sizes of the matrices.

use quant_graph::{Clipping, LinearId, LinearSpec, ModelScheme, ModelSpec, Online, PairKernel, Site};

use super::description::Description;
use super::types::AscendType;
use super::types::w4a4_flatquant::{is_cut, read_clip, read_pair, read_shards, shape};
use super::{bad, unsupported};
use crate::error::Result;
use crate::formats::Unsupported;
use crate::formats::block::linear_scheme;
use crate::formats::online::site_name;
use crate::source::Checkpoint;

/// The parts in which a scheme transforms the input of a site.
pub(super) fn shards_at(scheme: &ModelScheme, index: usize, site: Site) -> usize {
    let transform = scheme.online.get(index).and_then(|online| online.sites.get(&site));
    transform.map_or(1, |shape| shape.shards)
}

/// On how many devices alone a scheme loads because of its transforms; none where they do not matter.
pub(crate) fn devices(scheme: &ModelScheme) -> Option<usize> {
    let sites = scheme.online.iter().flat_map(|online| &online.sites);
    sites.filter(|(site, _)| is_cut(**site)).map(|(_, shape)| shape.shards).next()
}

/// The transforms of a scheme: one pair for all linears of an input, all of them of four bits.
///
/// # Errors
/// [`Unsupported`] naming the first that the kernel does not take.
pub(super) fn check(spec: &ModelSpec, scheme: &ModelScheme) -> std::result::Result<(), Unsupported> {
    let kernel = PairKernel::of(spec.dtype);
    let devices = devices(scheme);
    for (index, online) in scheme.online.iter().enumerate() {
        let prefix = spec.block_prefix(index);
        for (&site, &found) in &online.sites {
            let (place, width) = (site_name(site), spec.site_width(site));
            let parts = if is_cut(site) { devices.unwrap_or(1) } else { 1 };
            if found.shards != parts {
                return Err(unsupported(
                    format!(
                        "the transform of {place} in {prefix} in {} parts (on {} devices each would have one of {parts})",
                        found.shards,
                        devices.unwrap_or(1)
                    ),
                    "for flatquant: the same tp in all blocks; or export to dequantized",
                ));
            }
            if shape(width, parts) != Some(found) {
                return Err(unsupported(
                    format!(
                        "the transform of {place} in {prefix} (its loader applies Kronecker pairs alone, one to an input)"
                    ),
                    "for flatquant: transforms: auto; leave out the rotations that run online (for quarot: rotations: [r1, r2]; \
                     flatquant or smoothquant in place of duquant), or export to dequantized",
                ));
            }
            if let Err(why) = kernel.sides(width / parts) {
                return Err(unsupported(
                    format!("the transform of {place} in {prefix}: {why}"),
                    "for flatquant: unpaired: w8a8 (or w4a4, without the transform), or an override of these linears with \
                     scheme: W8A8; or export to dequantized",
                ));
            }
            for &id in spec.block(index).at(site) {
                check_linear(&spec.module(index, id), scheme, index, id)?;
            }
        }
        if online.pair.is_some() {
            return Err(unsupported(
                format!("the transform of key in {prefix} (its loader applies none to keys)"),
                "use KV16, or KV8 with kv_cache: { granularity: channel_static }; leave out the rotations that run online (for \
                 quarot: rotations: [r1, r2]), or export to dequantized",
            ));
        }
    }
    Ok(())
}

/// A linear behind a transform.
fn check_linear(
    module: &str,
    scheme: &ModelScheme,
    index: usize,
    id: LinearId,
) -> std::result::Result<(), Unsupported> {
    let input = linear_scheme(scheme, index, id).input;
    let four_bits = input.is_some_and(|input| input.bits.get() == 4);
    if AscendType::at(scheme, index, id) != AscendType::W4A4FlatQuant || !four_bits {
        let what =
            format!("a transform before anything but W4A4 with symmetric activations per token ({module})");
        return Err(unsupported(
            what,
            "use scheme: W4A4 with symmetric activations, or export to dequantized",
        ));
    }
    let shards = shards_at(scheme, index, id.site());
    if let Some(found) = input.map(|input| input.shards).filter(|found| *found != shards) {
        let what = format!("activations in {found} parts behind a transform in {shards} ({module})");
        return Err(unsupported(what, "use input_shards: 1, or export to dequantized"));
    }
    match input.map(|input| input.clip_ratio) {
        Some(Clipping::Learned) => Err(unsupported(
            format!("learned clip ratios of each end, or of each linear of an input ({module})"),
            "for flatquant: share_inputs: true and transforms: auto, or lac: false; or export to dequantized",
        )),
        _ => Ok(()),
    }
}

/// Whether the ratio of an input is one that the kernel has: none, or a learned one for both ends.
pub(super) fn takes(clip_ratio: Clipping) -> bool {
    matches!(clip_ratio, Clipping::NONE | Clipping::Tied)
}

/// Which pairs a block has, by the types of its linears.
pub(super) fn sites_of(description: &Description, spec: &ModelSpec, index: usize) -> Result<Vec<Site>> {
    let block = spec.block(index);
    let mut sites = Vec::new();
    for stage in &block.stages {
        let mut kinds = Vec::new();
        for id in &stage.linears {
            kinds.push(description.kind(&spec.module(index, *id))?);
        }
        let flat = kinds.iter().filter(|kind| **kind == AscendType::W4A4FlatQuant).count();
        if flat != 0 && flat != kinds.len() {
            let names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
            let subject = spec.module(index, stage.linears[0]);
            return Err(bad(subject, "one type in the linears of an input", names.join(", ")));
        }
        if flat != 0 {
            sites.push(stage.site);
        }
    }
    Ok(sites)
}

/// The shapes of the pairs of a block.
pub(super) fn scheme(
    description: &Description,
    checkpoint: &Checkpoint,
    spec: &ModelSpec,
    index: usize,
) -> Result<quant_graph::OnlineScheme> {
    let block = spec.block(index);
    let mut online = quant_graph::OnlineScheme::default();
    for site in sites_of(description, spec, index)? {
        let width = spec.site_width(site);
        let first = block.at(site).iter().find_map(|id| block.linear(*id));
        let shards = first.map_or(1, |linear| read_shards(checkpoint, linear));
        let found = shape(width, shards).ok_or_else(|| {
            bad(spec.block_prefix(index), "features with a Kronecker pair", width.to_string())
        })?;
        online.sites.insert(site, found);
    }
    Ok(online)
}

/// The pairs of a block. Linears of one input must agree.
pub(super) fn read(
    description: &Description,
    checkpoint: &Checkpoint,
    spec: &ModelSpec,
    index: usize,
) -> Result<Online> {
    let block = spec.block(index);
    let mut online = Online::default();
    for site in sites_of(description, spec, index)? {
        let mut linears = block.at(site).iter().filter_map(|id| block.linear(*id));
        let Some(first) = linears.next() else { continue };
        let pair = read_pair(checkpoint, first)?;
        for other in linears {
            if let Some(problem) = differ(checkpoint, first, other)? {
                return Err(bad(&other.module, format!("what {} has", first.module), problem));
            }
        }
        online.sites.insert(site, pair.into());
    }
    Ok(online)
}

/// In what two linears of one input differ that the kernel has once for both.
pub(crate) fn differ(
    checkpoint: &Checkpoint,
    one: &LinearSpec,
    other: &LinearSpec,
) -> Result<Option<&'static str>> {
    if read_pair(checkpoint, one)? != read_pair(checkpoint, other)? {
        return Ok(Some("other transforms"));
    }
    let differs = read_clip(checkpoint, &one.module)? != read_clip(checkpoint, &other.module)?;
    Ok(differs.then_some("another clip ratio"))
}
