//! Which blocks a learner trains in, and what it leaves there.

use super::{LinearPlan, plan_linear};
use crate::error::{PipelineError, RecipeError};
use crate::recipe::Recipe;
use quant_graph::{Clipping, KvScheme, LinearId, LinearScheme, ModelSpec, OnlineScheme};
use quant_methods::BlockPlan;
use std::collections::BTreeMap;

/// Which blocks the recipe's learner trains in. Its transforms go to `online`, and that it learns clip ratios to the schemes; what it
/// rounds otherwise is planned anew.
pub(super) fn plan_learned(
    recipe: &Recipe,
    spec: &ModelSpec,
    blocks: &mut [BTreeMap<LinearId, LinearPlan>],
    kv: &mut Option<KvScheme>,
    (online, warnings): (&mut Vec<OnlineScheme>, &mut Vec<String>),
) -> Result<Vec<bool>, PipelineError> {
    let mut learned = vec![false; spec.layers];
    let Some(learner) = recipe.learner() else { return Ok(learned) };
    let (as_asked, kernel) = (*kv, recipe.format().pair_kernel(spec));
    let mut notices: Vec<(String, usize)> = Vec::new();
    let float = |block: &BTreeMap<_, LinearPlan>| block.values().all(|linear| linear.scheme.is_float());
    let cache_only = blocks.iter().all(float);
    for (index, block) in blocks.iter_mut().enumerate().filter(|(_, block)| cache_only || !float(block)) {
        let mut scheme = schemes(block);
        let of_recipe = BlockPlan { spec, index, scheme: &scheme, kv: as_asked, kernel };
        for linear in &spec.block(index).linears {
            if let Some(rounding) = learner.rounding(&of_recipe, linear.id) {
                block.insert(linear.id, plan_linear(recipe, spec, rounding, linear)?);
            }
        }
        scheme = schemes(block);
        let block_plan = BlockPlan { spec, index, scheme: &scheme, kv: as_asked, kernel };
        let Some(left) = learner.plan(&block_plan).map_err(RecipeError::from)? else { continue };
        learned[index] = true;
        if !left.online.is_empty() {
            online.resize(spec.layers, OnlineScheme::default());
            online[index] = left.online;
        }
        for (id, clipping) in left.clips {
            if let Some(input) = block.get_mut(&id).and_then(|linear| linear.scheme.input.as_mut()) {
                input.clip_ratio = clipping;
            }
        }
        if let Some(kv) = kv.as_mut().filter(|_| left.cache_clips) {
            kv.clip_ratio = Clipping::Learned;
        }
        for notice in left.notices {
            match notices.iter_mut().find(|(known, _)| *known == notice) {
                Some((_, count)) => *count += 1,
                None => notices.push((notice, 1)),
            }
        }
    }
    let blocks =
        |(notice, count): (String, usize)| format!("{}: in {count} blocks {notice}", learner.method().id);
    warnings.extend(notices.into_iter().map(blocks));
    Ok(learned)
}

/// Storage of the linears of a block.
pub(super) fn schemes(block: &BTreeMap<LinearId, LinearPlan>) -> BTreeMap<LinearId, LinearScheme> {
    block.iter().map(|(id, linear)| (*id, linear.scheme)).collect()
}
