//! What a plan says beside what it decides.

use super::LinearPlan;
use crate::recipe::Recipe;
use quant_graph::{LinearId, ModelScheme};
use quant_methods::Solver;
use std::collections::BTreeMap;

/// What methods say of how they round, each with the number of linears of which it is true and the first of them.
pub(super) fn notices(blocks: &[BTreeMap<LinearId, LinearPlan>]) -> Vec<String> {
    let mut notices: Vec<(&str, usize, &LinearPlan)> = Vec::new();
    for linear in blocks.iter().flat_map(BTreeMap::values) {
        let Some(notice) = linear.solver().and_then(Solver::notice) else { continue };
        match notices.iter_mut().find(|(known, ..)| *known == notice) {
            Some((_, count, _)) => *count += 1,
            None => notices.push((notice, 1, linear)),
        }
    }
    let line = |(notice, count, first): (&str, usize, &LinearPlan)| match count {
        1 => format!("{}: {notice}", first.module),
        _ => format!("{} and {} more: {notice}", first.module, count - 1),
    };
    notices.into_iter().map(line).collect()
}

/// Keys of the recipe about activations or a cache that its scheme does not quantise.
pub(super) fn unused_keys(recipe: &Recipe, scheme: &ModelScheme) -> Vec<String> {
    let quantised = scheme.linears().any(|(_, _, linear)| linear.input.is_some());
    let of = |section: &'static str, part: &str, used: &dyn Fn(&str) -> bool| {
        let unused: Vec<&str> = recipe.written(section).filter(|key| !used(key)).collect();
        let (change, keys) = (if unused.len() == 1 { "changes" } else { "change" }, unused.join(", "));
        let text = || {
            let scheme = recipe.rounding().weights().scheme;
            format!("{section}: {keys} {change} nothing, because the scheme {scheme} has no {part} part")
        };
        (!unused.is_empty()).then(text)
    };
    let cache = scheme.kv.is_some();
    // What calibration quantises is the cache as well.
    let activations = of("activations", "A", &|key| quantised || (cache && key == "in_calibration"));
    activations.into_iter().chain(of("kv_cache", "KV", &|_| cache)).collect()
}
