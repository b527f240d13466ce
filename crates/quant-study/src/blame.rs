//! Which blocks, and which linears of the worst, a loss comes from: each is put back as float, and what is regained is measured.

use crate::StudyError;
use crate::run::Reference;
use quant_checkpoint::FolderSource;
use quant_core::Par;
use quant_eval::{EvalOptions, LanguageModel};
use quant_graph::{BlockParams, BlockSource, LinearId, ModelSpec, Rows, SourceError};
use quant_model::Arithmetic;
use quant_model::ndarray::{Array1, Array2};
use quant_pipeline::{Event, Events, PipelineError, Scored};
use serde::{Deserialize, Serialize};

/// Windows of the sample on which blocks are put back.
pub(crate) const BLAMED: usize = 8;

/// What looking for the causes of a loss takes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BlameCost {
    /// Times that the sample goes through the whole model: once as it is, once for every block, and for every linear of the worst.
    pub passes: usize,
    /// Tokens of the sample, at most.
    pub tokens: usize,
    /// Seconds, good to a factor of about 1.5 where products weigh, which they do not in tiny models.
    pub seconds: f64,
}

impl BlameCost {
    /// Of a model in so many ways to run it, on windows of so many tokens.
    pub(crate) fn new(spec: &ModelSpec, window: usize, ways: usize, seconds_of_token: f64) -> Self {
        let linears = (0..spec.layers).map(|index| spec.block(index).linears.len()).max().unwrap_or(0);
        let (passes, tokens) = (ways * (1 + spec.layers + linears), BLAMED * window);
        Self { passes, tokens, seconds: seconds_of_token * (passes * tokens) as f64 }
    }
}

/// What putting one part back regains.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Regained {
    /// Name of the block or linear.
    pub part: String,
    /// KL divergence from the float model that is left, nats per token; none where logits are not finite.
    pub kl: Option<f64>,
    /// How much less that is than with everything quantised; none where either is not finite.
    pub regained: Option<f64>,
}

/// Where a loss comes from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Blame {
    /// KL divergence of the quantised model on the sample, nats per token.
    pub kl: Option<f64>,
    /// Tokens of the sample.
    pub tokens: usize,
    /// Every block, the one that regains most first.
    pub blocks: Vec<Regained>,
    /// Linears of the first of them, the one that regains most first.
    pub linears: Vec<Regained>,
    /// Why parts are missing here.
    pub note: Option<String>,
}

/// A quantised model with a part put back.
struct Mixed<'s> {
    quantised: &'s mut FolderSource,
    float: &'s mut FolderSource,
    part: Option<(usize, Option<LinearId>)>,
}

impl BlockSource for Mixed<'_> {
    fn spec(&self) -> &ModelSpec {
        self.quantised.spec()
    }
    fn block(&mut self, index: usize) -> Result<BlockParams, SourceError> {
        match self.part {
            Some((block, None)) if block == index => {
                let own = self.quantised.block(index)?;
                // The cache is no part of a block's weights.
                Ok(BlockParams { kv: own.kv, ..self.float.block(index)? })
            }
            Some((block, Some(id))) if block == index => {
                let mut own = self.quantised.block(index)?;
                if let Some(linear) = self.float.block(index)?.linears.remove(&id) {
                    own.linears.insert(id, linear);
                }
                Ok(own)
            }
            _ => self.quantised.block(index),
        }
    }
    fn embed(&mut self, ids: &[u32]) -> Result<Array2<f32>, SourceError> {
        self.quantised.embed(ids)
    }
    fn final_norm(&mut self) -> Result<Array1<f32>, SourceError> {
        self.quantised.final_norm()
    }
    fn head(&mut self, rows: Rows) -> Result<Array2<f32>, SourceError> {
        self.quantised.head(rows)
    }
}

/// Finds where the loss of a model comes from. `sequences` are the sample; costs a pass over it for every block, and for every linear of
/// the worst.
///
/// # Errors
/// Blocks that cannot be read; [`PipelineError::Interrupted`].
pub(crate) fn blame(
    mut quantised: FolderSource,
    mut float: FolderSource,
    arithmetic: Arithmetic,
    reference: &mut Reference,
    sequences: &[Vec<u32>],
    par: Par,
    events: &mut dyn Events,
) -> Result<Blame, StudyError> {
    let spec = quantised.spec().clone();
    let prefix = |index: usize| spec.block_prefix(index).trim_end_matches('.').to_owned();
    let mut measure =
        |quantised: &mut FolderSource, float: &mut FolderSource, part, events: &mut dyn Events| {
            let mut model = Scored::new(Mixed { quantised, float, part }, arithmetic.clone(), par);
            divergence(&mut model, reference, sequences, events)
        };
    let (kl, tokens) = measure(&mut quantised, &mut float, None, events)?;
    let mut found = Blame { kl, tokens, blocks: Vec::new(), linears: Vec::new(), note: None };
    let some: Vec<u32> = sequences.iter().flatten().copied().take(16).collect();
    let embed = |source: &mut FolderSource| source.embed(&some).map_err(PipelineError::from);
    if embed(&mut quantised)? != embed(&mut float)? {
        found.note = Some(
            "the recipe rotates what flows from block to block, so a float block cannot stand among quantised ones".to_owned(),
        );
        return Ok(found);
    }
    let regained = |part: String, left: Option<f64>| Regained {
        part,
        kl: left,
        regained: kl.zip(left).map(|(before, after)| before - after),
    };
    let mut worst: Option<(usize, f64)> = None;
    for index in 0..spec.layers {
        events.event(Event::Evaluated { what: "block put back", done: index, of: spec.layers, inside: 0.0 });
        let (left, _) = measure(&mut quantised, &mut float, Some((index, None)), events)?;
        // Of a model whose numbers break down, the block that mends them.
        let gain = kl.map_or_else(
            || left.map_or(f64::NEG_INFINITY, |kl| -kl),
            |kl| kl - left.unwrap_or(f64::INFINITY),
        );
        if worst.is_none_or(|(_, most)| gain > most) {
            worst = Some((index, gain));
        }
        found.blocks.push(regained(prefix(index), left));
    }
    if let Some((index, _)) = worst {
        let own = quantised.block(index).map_err(PipelineError::from)?;
        let whole = float.block(index).map_err(PipelineError::from)?;
        if own.norms == whole.norms && own.online == whole.online {
            for linear in &spec.block(index).linears {
                let part = Some((index, Some(linear.id)));
                let (left, _) = measure(&mut quantised, &mut float, part, events)?;
                found.linears.push(regained(linear.module.clone(), left));
            }
        } else {
            found.note = Some(
                "the recipe moves scales between the parts of a block, so a float linear cannot stand among quantised ones"
                    .to_owned(),
            );
        }
    }
    let order = |a: &Regained, b: &Regained| {
        let left = |part: &Regained| part.kl.unwrap_or(f64::INFINITY);
        left(a).total_cmp(&left(b)).then_with(|| a.part.cmp(&b.part))
    };
    found.blocks.sort_by(order);
    found.linears.sort_by(order);
    Ok(found)
}

fn divergence(
    model: &mut dyn LanguageModel,
    reference: &mut Reference,
    sequences: &[Vec<u32>],
    events: &mut dyn Events,
) -> Result<(Option<f64>, usize), StudyError> {
    let mut progress = |_, _, _| events.flow();
    let options = EvalOptions {
        reference: Some(reference as &mut dyn LanguageModel),
        progress: Some(&mut progress),
        ..EvalOptions::default()
    };
    let report = quant_eval::evaluate(model, sequences, options)?;
    Ok((report.comparison.and_then(|comparison| comparison.kl), report.tokens))
}
