//! Which blocks, and which linears of the worst, a loss comes from: each is put back as float, and what is regained is measured.

use crate::StudyError;
use quant_checkpoint::FolderSource;
use quant_core::Par;
use quant_eval::EvalReport;
use quant_graph::{BlockSource, ModelSpec};
use quant_model::Arithmetic;
use quant_pipeline::{Events, PipelineError, PutBack};
use serde::{Deserialize, Serialize};

/// Windows of the sample on which blocks are put back.
pub(crate) const BLAMED: usize = 8;

/// What looking for the causes of a loss takes.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct BlameCost {
    /// Times that the sample goes through a block, at most ([`PutBack::block_passes`]).
    #[serde(default)]
    pub block_passes: usize,
    /// Tokens of the sample, at most.
    pub tokens: usize,
    /// Seconds, good to a factor of about 1.5 where products weigh, which they do not in tiny models.
    pub seconds: f64,
}

impl BlameCost {
    /// Of a model in so many ways to run it, on windows of so many tokens.
    pub(crate) fn new(spec: &ModelSpec, window: usize, ways: usize, seconds_of_token: f64) -> Self {
        let (block_passes, tokens) = (ways * PutBack::block_passes(spec), BLAMED * window);
        let seconds = seconds_of_token * (block_passes * tokens) as f64 / spec.layers.max(1) as f64;
        Self { block_passes, tokens, seconds }
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

/// How a sample is put through the mixtures.
pub(crate) struct BlameOptions<'a> {
    /// The sample.
    pub(crate) sequences: &'a [Vec<u32>],
    /// How products are computed.
    pub(crate) arithmetic: Arithmetic,
    /// Bytes that the work may take; streams that would take more than a quarter of them are kept on disk.
    pub(crate) memory: Option<u64>,
    /// Threads.
    pub(crate) par: Par,
}

/// Finds where the loss of a model comes from, by what each block regains where it is put back, and each linear of the worst.
///
/// # Errors
/// Blocks that cannot be read; [`PipelineError::Interrupted`].
pub(crate) fn blame(
    mut quantised: FolderSource,
    mut float: FolderSource,
    options: BlameOptions<'_>,
    events: &mut dyn Events,
) -> Result<Blame, StudyError> {
    let BlameOptions { sequences, arithmetic, memory, par } = options;
    let spec = quantised.spec().clone();
    let some: Vec<u32> = sequences.iter().flatten().copied().take(16).collect();
    let embed = |source: &mut FolderSource| source.embed(&some).map_err(PipelineError::from);
    let same_stream = embed(&mut quantised)? == embed(&mut float)?;
    let tokens = sequences.iter().map(Vec::len).sum();
    let spilled = memory.is_some_and(|allowed| PutBack::stream_bytes(&spec, tokens) > allowed / 4);
    let mut mixtures = PutBack::new(&mut quantised, &mut float, sequences, arithmetic, par)
        .spilled_to(spilled.then(std::env::temp_dir));
    let kl = |report: &EvalReport| report.comparison.as_ref().and_then(|comparison| comparison.kl);
    if !same_stream {
        let report = mixtures.whole(events)?;
        let note = "the recipe rotates what flows from block to block, so a float block cannot stand among quantised ones";
        let (blocks, linears) = (Vec::new(), Vec::new());
        return Ok(Blame {
            kl: kl(&report),
            tokens: report.tokens,
            blocks,
            linears,
            note: Some(note.to_owned()),
        });
    }
    let (whole, blocks) = mixtures.blocks(events)?;
    let lost = kl(&whole);
    let regained = |part: &str, report: &EvalReport| {
        let left = kl(report);
        let regained = lost.zip(left).map(|(before, after)| before - after);
        Regained { part: part.to_owned(), kl: left, regained }
    };
    let prefix = |index: usize| spec.block_prefix(index);
    let of_block = |(index, report)| regained(prefix(index).trim_end_matches('.'), report);
    let mut found = Blame {
        kl: lost,
        tokens: whole.tokens,
        blocks: blocks.iter().enumerate().map(of_block).collect(),
        linears: Vec::new(),
        note: None,
    };
    // Of a model whose numbers break down, the block that mends them; of several, the first.
    let left = |part: &Regained| part.kl.unwrap_or(f64::INFINITY);
    let worst = (0..spec.layers).min_by(|&a, &b| left(&found.blocks[a]).total_cmp(&left(&found.blocks[b])));
    if let Some(index) = worst {
        if mixtures.has_places_for_linears(index)? {
            let reports = mixtures.linears(index, events)?;
            let linears = spec.block(index).linears;
            found.linears = linears
                .iter()
                .zip(&reports)
                .map(|(linear, report)| regained(&linear.module, report))
                .collect();
        } else {
            let note = "the recipe moves scales between the parts of a block, so a float linear cannot stand among quantised ones";
            found.note = Some(note.to_owned());
        }
    }
    let order = |a: &Regained, b: &Regained| left(a).total_cmp(&left(b)).then_with(|| a.part.cmp(&b.part));
    found.blocks.sort_by(order);
    found.linears.sort_by(order);
    Ok(found)
}
