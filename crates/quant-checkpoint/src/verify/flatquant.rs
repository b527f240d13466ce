//! The rules of `W4A4_FLATQUANT_DYNAMIC`: what its kernel takes, and what fused linears have in common.

use quant_graph::{LinearId, LinearSpec, ModelSpec, PairKernel};

use super::cut::row_parallel;
use super::rules::Checks;
use crate::formats::ascend_description::Description;
use crate::formats::ascend_types::{AscendType, w4a4_flatquant};
use crate::formats::{ascend_flatquant, float_dtype};
use crate::source::Checkpoint;

/// The name of the type, as a description has it.
pub(super) const TYPE: &str = "W4A4_FLATQUANT_DYNAMIC";

/// Whether a linear is of this type.
fn is_flat(description: &Description, module: &str) -> bool {
    description.kind(module).ok() == Some(AscendType::W4A4FlatQuant)
}

/// The linears of this type, by block.
fn linears(description: &Description, spec: &ModelSpec) -> Vec<LinearSpec> {
    let block = |index| spec.block(index).linears;
    (0..spec.layers).flat_map(block).filter(|linear| is_flat(description, &linear.module)).collect()
}

/// The kernel takes the pair that belongs to the features of a linear.
pub(super) fn sizes(
    description: &Description,
    checkpoint: &Checkpoint,
    spec: &ModelSpec,
    checks: &mut Checks,
) {
    let linears = linears(description, spec);
    if linears.is_empty() {
        return;
    }
    let kernel = PairKernel::of(spec.dtype);
    let problem = |linear: &LinearSpec| {
        let part = linear.inputs / w4a4_flatquant::read_shards(checkpoint, linear).max(1);
        Some(format!("{}: {}", linear.module, kernel.sides(part).err()?))
    };
    let problems = linears.iter().filter_map(problem).collect();
    let passed = format!("the kernel takes the Kronecker pairs of {} linears", linears.len());
    checks.rule("pair-sizes", problems, passed);
    let shards = |linear: &LinearSpec| w4a4_flatquant::read_shards(checkpoint, linear);
    let cut: Vec<(usize, &LinearSpec)> =
        linears.iter().filter(|l| row_parallel(l.id)).map(|linear| (shards(linear), linear)).collect();
    let Some((devices, first)) = cut.first() else { return };
    let differs = |(found, linear): &(usize, &LinearSpec)| {
        (found != devices).then(|| {
            format!(
                "the transform of {} is of a part of its inputs in {found}, that of {} of one in {devices}: no number of devices \
                 loads both",
                linear.module, first.module
            )
        })
    };
    let passed = format!("the transforms of what is cut are for {devices} devices");
    checks.rule("pair-devices", cut.iter().filter_map(differs).collect(), passed);
}

/// On how many devices alone a folder loads because of its transforms; none where they do not matter.
pub(super) fn devices(description: &Description, checkpoint: &Checkpoint, spec: &ModelSpec) -> Option<usize> {
    let cut = linears(description, spec).into_iter().find(|linear| row_parallel(linear.id))?;
    Some(w4a4_flatquant::read_shards(checkpoint, &cut))
}

/// What the numbers of pairs and ratios must be, whoever loads them.
pub(super) fn content(
    description: &Description,
    checkpoint: &Checkpoint,
    spec: &ModelSpec,
    checks: &mut Checks,
) {
    let linears = linears(description, spec);
    if linears.is_empty() {
        return;
    }
    let ratio = |linear: &LinearSpec| w4a4_flatquant::read_clip(checkpoint, &linear.module).err();
    let problems = linears.iter().filter_map(ratio).map(|error| error.to_string()).collect();
    checks.rule("clip-ratios", problems, format!("{} clip ratios in (0, 1]", linears.len()));
    shared(description, checkpoint, spec, checks);
    exact(&linears, checkpoint, spec, checks);
}

/// The loader keeps one pair and one ratio for the linears of an input.
fn shared(description: &Description, checkpoint: &Checkpoint, spec: &ModelSpec, checks: &mut Checks) {
    let mut problems = Vec::new();
    for index in 0..spec.layers {
        let block = spec.block(index);
        for stage in &block.stages {
            let known =
                |id: &LinearId| block.linear(*id).filter(|linear| is_flat(description, &linear.module));
            let mut linears = stage.linears.iter().filter_map(known);
            let Some(first) = linears.next() else { continue };
            for other in linears {
                match ascend_flatquant::differ(checkpoint, first, other) {
                    Ok(None) => {}
                    Ok(Some(what)) => problems.push(format!(
                        "{} has {what} than {}, and the loader keeps one for both",
                        other.module, first.module
                    )),
                    Err(error) => problems.push(error.to_string()),
                }
            }
        }
    }
    checks.rule("shared-transforms", problems, "linears of an input share their transforms and clip ratio");
}

/// The kernel has the matrices in the model's type; the weights hold the inverses of what is in the file.
fn exact(linears: &[LinearSpec], checkpoint: &Checkpoint, spec: &ModelSpec, checks: &mut Checks) {
    let held = PairKernel::of(spec.dtype).held;
    let mut problems = Vec::new();
    for linear in linears {
        // What cannot be read is said by another rule.
        let Ok(pair) = w4a4_flatquant::read_pair(checkpoint, linear) else { continue };
        let entries = pair.matrices().into_iter().flatten();
        let rounded = entries.filter(|value| held.round(**value) != **value).count();
        if rounded > 0 {
            let to = float_dtype(held);
            problems.push(format!(
                "{}: {rounded} entries of its transforms are rounded to {to} when loaded",
                linear.module
            ));
        }
    }
    checks.advice(
        "exact-transforms",
        problems,
        "all transforms are exact in the type in which they are held",
    );
}
