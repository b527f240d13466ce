//! From the cache section of a recipe to the quantiser of the cache.

use crate::error::RecipeError;
use crate::recipe::Recipe;
use quant_core::{ActRule, KvGranularity};
use quant_graph::{Clipping, KvScheme, ModelSpec};

/// Storage of the cache, and what the person should know about it; none where the scheme leaves it alone.
///
/// # Errors
/// Keys that contradict each other, or the model.
pub(crate) fn plan_cache(
    recipe: &Recipe,
    spec: &ModelSpec,
    warnings: &mut Vec<String>,
) -> Result<Option<KvScheme>, RecipeError> {
    let Some(bits) = recipe.rounding().weights().scheme.kv_cache else { return Ok(None) };
    let asked = recipe.kv_cache();
    let keys = asked.granularity.unwrap_or_else(|| match asked.symmetric {
        // What a channel keeps before rope is its range.
        _ if asked.before_rope => KvGranularity::ChannelStatic,
        Some(false) => KvGranularity::TokenHead,
        _ => recipe.format().kv_granularity(),
    });
    let values = if asked.before_rope { KvGranularity::TokenHead } else { keys };
    let values = asked.value_granularity.unwrap_or(values);
    let usual = keys == KvGranularity::ChannelStatic && !asked.before_rope;
    let rule = if asked.symmetric.unwrap_or(usual) { ActRule::Symmetric } else { ActRule::Asymmetric };
    if asked.clip_ratio != 1.0 && ![keys, values].contains(&KvGranularity::TokenHead) {
        return Err(RecipeError::conflict(
            "kv_cache.clip_ratio",
            "it is a factor on ranges found at run time, and channel_static has none; drop it, or use granularity: token_head",
        ));
    }
    let pre_bias = asked.pre_bias && spec.qkv_bias;
    if asked.pre_bias && !spec.qkv_bias {
        warnings
            .push("kv_cache: pre_bias changes nothing, because the keys of this model have no bias".into());
    }
    if pre_bias && spec.qk_norm {
        return Err(RecipeError::conflict(
            "kv_cache.pre_bias",
            "the keys of this model are normed behind their bias, so that it is no constant part of them; drop it",
        ));
    }
    let (before_rope, clip_ratio) = (asked.before_rope, Clipping::Fixed(asked.clip_ratio));
    Ok(Some(KvScheme { bits, rule, keys, values, before_rope, pre_bias, clip_ratio }))
}
