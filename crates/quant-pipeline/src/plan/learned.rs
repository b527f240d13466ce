//! Which blocks a learner trains in, and what it leaves there.

use super::{LinearPlan, plan_linear};
use crate::error::{PipelineError, RecipeError};
use crate::recipe::Recipe;
use quant_checkpoint::formats::{Format, TensorDecl, Unsupported};
use quant_graph::{Clipping, KvScheme, LinearId, LinearScheme, ModelScheme, ModelSpec, OnlineScheme};
use quant_methods::BlockPlan;
use std::collections::BTreeMap;

/// What a learner does to the blocks of a model.
pub(super) struct LearnedBlocks {
    /// Per block, whether it trains in it.
    pub(super) learned: Vec<bool>,
    /// Per block, how it is stored where it falls back to more bits; none where it does not.
    pub(super) fallbacks: Vec<Option<FallbackPlan>>,
}

/// How a block is stored that has fallen back to more bits.
#[derive(Clone, Debug)]
pub struct FallbackPlan {
    /// Its linears.
    pub linears: BTreeMap<LinearId, LinearPlan>,
    /// What it multiplies activations by while the model runs.
    pub online: OnlineScheme,
}

/// Which blocks the recipe's learner trains in, behind what `whole` says of all of them. Its transforms go to `online`, and that it
/// learns clip ratios to the schemes; what it rounds otherwise is planned anew.
pub(super) fn plan_learned(
    recipe: &Recipe,
    spec: &ModelSpec,
    blocks: &mut [BTreeMap<LinearId, LinearPlan>],
    kv: &mut Option<KvScheme>,
    whole: &OnlineScheme,
    (online, warnings): (&mut Vec<OnlineScheme>, &mut Vec<String>),
) -> Result<LearnedBlocks, PipelineError> {
    let mut learned = vec![false; spec.layers];
    let mut fallbacks = vec![None; spec.layers];
    let Some(learner) = recipe.learner() else { return Ok(LearnedBlocks { learned, fallbacks }) };
    let (as_asked, kernel) = (*kv, recipe.format().pair_kernel(spec));
    let mut notices: Vec<(String, usize)> = Vec::new();
    let float = |block: &BTreeMap<_, LinearPlan>| block.values().all(|linear| linear.scheme.is_float());
    let cache_only = blocks.iter().all(float);
    for (index, block) in blocks.iter_mut().enumerate().filter(|(_, block)| cache_only || !float(block)) {
        let mut scheme = schemes(block);
        let of_recipe = BlockPlan { spec, index, scheme: &scheme, kv: as_asked, kernel, online: whole };
        for linear in &spec.block(index).linears {
            if let Some(rounding) = learner.rounding(&of_recipe, linear.id) {
                block.insert(linear.id, plan_linear(recipe, spec, rounding, linear)?);
            }
        }
        scheme = schemes(block);
        let block_plan = BlockPlan { spec, index, scheme: &scheme, kv: as_asked, kernel, online: whole };
        let Some(left) = learner.plan(&block_plan).map_err(RecipeError::from)? else { continue };
        learned[index] = true;
        let mut linears = block.clone();
        let mut falls_back = false;
        for linear in &spec.block(index).linears {
            if let Some(rounding) = learner.fallback(&block_plan, linear.id) {
                linears.insert(linear.id, plan_linear(recipe, spec, rounding, linear)?);
                falls_back = true;
            }
        }
        let of_fallback = learner.plan_fallback(&block_plan);
        let of_fallback = of_fallback.as_ref().unwrap_or(&left);
        for (linears, left) in [(&mut *block, &left), (&mut linears, of_fallback)] {
            for (id, linear) in linears {
                let Some(input) = &mut linear.scheme.input else { continue };
                input.clip_ratio = left.clips.get(id).copied().unwrap_or(input.clip_ratio);
                input.shards = left.shards.get(id).copied().unwrap_or(input.shards);
            }
        }
        if falls_back {
            fallbacks[index] = Some(FallbackPlan { linears, online: both(whole, &of_fallback.online) });
        }
        if !left.online.is_empty() {
            online.resize(spec.layers, OnlineScheme::default());
            online[index] = both(whole, &left.online);
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
    if !learned.contains(&true) {
        let id = learner.method().id;
        warnings.push(format!(
            "{id}: there is nothing for it to do: no linear and no cache is quantised that it works on"
        ));
    }
    Ok(LearnedBlocks { learned, fallbacks })
}

/// What a transform of the whole model leaves to be multiplied in a block, and a learner behind it, whose own goes first.
fn both(whole: &OnlineScheme, learned: &OnlineScheme) -> OnlineScheme {
    let mut both = whole.clone();
    both.sites.extend(learned.sites.iter().map(|(site, shape)| (*site, *shape)));
    both.pair = learned.pair.or(whole.pair);
    both
}

/// Refuses a format that could not hold what the run may find necessary: all blocks that may fall back, or the first of them alone.
///
/// Most tensors of a folder are laid out before the first block is trained, so those that both have must be alike; those that only one has
/// come in a shard of their own, behind the last block.
pub(super) fn check_fallbacks(
    format: &dyn Format,
    stored: &ModelSpec,
    scheme: &ModelScheme,
    fallbacks: &[Option<FallbackPlan>],
) -> Result<(), PipelineError> {
    let Some(first) = fallbacks.iter().position(Option::is_some) else { return Ok(()) };
    let refused = |what: String| Unsupported {
        format: format.id(),
        what: format!("{what}, which a block may fall back to"),
        alternatives: "leave bits8 out of fallback, or export to dequantized".to_owned(),
    };
    let tensors = |scheme: &ModelScheme| -> BTreeMap<String, TensorDecl> {
        let declared = format.declare(stored, scheme, &|_| None);
        declared.into_iter().map(|decl| (decl.name.clone(), decl)).collect()
    };
    let usual = tensors(scheme);
    for only in [None, Some(first)] {
        let fallen = fallen(scheme, fallbacks, |index| only.is_none_or(|only| only == index));
        format.supports(stored, &fallen).map_err(|error| refused(error.what))?;
        let differs = |(name, decl): (&String, &TensorDecl)| usual.get(name).is_some_and(|own| own != decl);
        if let Some((name, _)) = tensors(&fallen).iter().find(|tensor| differs(*tensor)) {
            let what = format!("{name} of another type or shape than is laid out before the training");
            return Err(refused(what).into());
        }
    }
    Ok(())
}

/// A scheme in which some of the blocks that may have fallen back.
pub(super) fn fallen(
    scheme: &ModelScheme,
    fallbacks: &[Option<FallbackPlan>],
    which: impl Fn(usize) -> bool,
) -> ModelScheme {
    let mut scheme = scheme.clone();
    for (index, fallback) in fallbacks.iter().enumerate().filter(|(index, _)| which(*index)) {
        let Some(fallback) = fallback else { continue };
        if let Some(block) = scheme.blocks.get_mut(index) {
            *block = schemes(&fallback.linears);
        }
        if let Some(online) = scheme.online.get_mut(index) {
            *online = fallback.online.clone();
        }
    }
    // As where no block has any to begin with.
    if scheme.online.iter().all(OnlineScheme::is_empty) {
        scheme.online.clear();
    }
    scheme
}

/// Storage of the linears of a block.
pub(super) fn schemes(block: &BTreeMap<LinearId, LinearPlan>) -> BTreeMap<LinearId, LinearScheme> {
    block.iter().map(|(id, linear)| (*id, linear.scheme)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Plan;
    use quant_checkpoint::formats::{
        BlockSideData, ConfigNotes, Decoder, Dequantized, Encoded, ExpectedTensor,
    };
    use quant_checkpoint::{Checkpoint, CheckpointError, Dtype, ShardNaming};
    use quant_core::{ActRule, FloatType, KvGranularity};
    use quant_graph::BlockParams;
    use serde_json::{Value, json};

    type Read<T> = Result<T, CheckpointError>;

    /// A format like `dequantized` that has no eight bits, or has other tensors for them.
    #[derive(Debug)]
    struct Narrow {
        refuses: bool,
    }

    fn has_eight(scheme: &ModelScheme) -> bool {
        scheme.linears().any(|(_, _, linear)| linear.weight.is_some_and(|weight| weight.bits.get() == 8))
    }

    impl Format for Narrow {
        fn id(&self) -> &'static str {
            "narrow"
        }
        fn summary(&self) -> &'static str {
            Dequantized.summary()
        }
        fn tier(&self) -> u8 {
            Dequantized.tier()
        }
        fn schemes(&self) -> &'static str {
            Dequantized.schemes()
        }
        fn clients(&self) -> &'static [&'static str] {
            Dequantized.clients()
        }
        fn scale_type(&self, spec: &ModelSpec) -> FloatType {
            Dequantized.scale_type(spec)
        }
        fn float_type(&self, spec: &ModelSpec) -> FloatType {
            Dequantized.float_type(spec)
        }
        fn activation_rule(&self, dynamic: bool, symmetric: Option<bool>) -> Result<ActRule, Unsupported> {
            Dequantized.activation_rule(dynamic, symmetric)
        }
        fn kv_granularity(&self) -> KvGranularity {
            Dequantized.kv_granularity()
        }
        fn supports(&self, _: &ModelSpec, scheme: &ModelScheme) -> Result<(), Unsupported> {
            if !self.refuses || !has_eight(scheme) {
                return Ok(());
            }
            let (what, alternatives) = ("8-bit weights".to_owned(), String::new());
            Err(Unsupported { format: "narrow", what, alternatives })
        }
        fn naming(&self) -> ShardNaming {
            Dequantized.naming()
        }
        fn declare(
            &self,
            spec: &ModelSpec,
            scheme: &ModelScheme,
            source: &dyn Fn(&str) -> Option<Dtype>,
        ) -> Vec<TensorDecl> {
            let mut declared = Dequantized.declare(spec, scheme, source);
            if has_eight(scheme) {
                declared[0].dtype = Dtype::I8;
            }
            declared
        }
        fn encode_block(
            &self,
            spec: &ModelSpec,
            scheme: &ModelScheme,
            index: usize,
            block: BlockParams,
        ) -> Read<Vec<Encoded>> {
            Dequantized.encode_block(spec, scheme, index, block)
        }
        fn config(
            &self,
            spec: &ModelSpec,
            scheme: &ModelScheme,
            config: &Value,
            notes: &ConfigNotes,
        ) -> Value {
            Dequantized.config(spec, scheme, config, notes)
        }
        fn side_files(
            &self,
            spec: &ModelSpec,
            scheme: &ModelScheme,
            declared: &[TensorDecl],
            blocks: &[BlockSideData],
        ) -> Vec<(String, Vec<u8>)> {
            Dequantized.side_files(spec, scheme, declared, blocks)
        }
        fn detect(&self, checkpoint: &Checkpoint) -> bool {
            Dequantized.detect(checkpoint)
        }
        fn scheme(&self, checkpoint: &Checkpoint, spec: &ModelSpec) -> Read<ModelScheme> {
            Dequantized.scheme(checkpoint, spec)
        }
        fn expected(&self, checkpoint: &Checkpoint, spec: &ModelSpec) -> Read<Vec<ExpectedTensor>> {
            Dequantized.expected(checkpoint, spec)
        }
        fn decoder(&self, checkpoint: &Checkpoint, spec: &ModelSpec) -> Read<Box<dyn Decoder>> {
            Dequantized.decoder(checkpoint, spec)
        }
    }

    /// What a format could not hold is refused before anything is trained.
    #[test]
    fn eight_bits_that_no_folder_could_hold_are_refused() {
        let config = json!({ "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 32,
            "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 10 });
        let spec = quant_model::model_spec(&config).unwrap();
        let recipe =
            Recipe::parse("version: 1\nmodifiers: [flatquant: { scheme: W4A4, fallback: [bits8] }]\n")
                .unwrap();
        let plan = Plan::new(&recipe, &spec).unwrap();
        let check = |format: &dyn Format, fallbacks: &[Option<FallbackPlan>]| {
            check_fallbacks(format, &plan.stored, &plan.scheme, fallbacks)
        };
        check(&Dequantized, &plan.fallbacks).unwrap();
        for (refuses, words) in
            [(true, "8-bit weights, which a block may fall back to"), (false, "of another type or shape")]
        {
            let format = Narrow { refuses };
            check(&format, &[None, None]).unwrap();
            let error = check(&format, &plan.fallbacks).unwrap_err();
            let told = error.to_string();
            assert!(matches!(error, PipelineError::Unsupported(_)), "{told}");
            assert!(told.contains(words) && told.contains("leave bits8 out"), "{told}");
        }
    }
}
