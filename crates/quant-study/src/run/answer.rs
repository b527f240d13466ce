//! Items that a model answers with a text.

use super::TaskJob;
use super::judge::{Asked, Given, Judge};
use super::kept::{Kept, Speed};
use super::material::Material;
use crate::StudyError;
use crate::programs::Programs;
use crate::record::Record;
use quant_data::{Generation, Tokenizer, end_tokens};
use quant_model::{Completion, Finish, Request, Sampling};
use quant_pipeline::{
    CompletionRun, CompletionSettings, Events, PipelineError, Registry, complete, open_folder_with,
};

/// Answers the items that are not there yet, under every seed.
pub(super) fn run(
    material: &Material,
    job: &TaskJob,
    ask: &Generation,
    programs: Option<&Programs>,
    kept: &mut Kept,
    registry: &Registry,
    events: &mut dyn Events,
) -> Result<Speed, StudyError> {
    let stop = end_tokens(&job.model, &material.tokenizer)?;
    let judge = Judge::new(material, job, ask, programs)?;
    let asked = judge.missing(job, kept)?;
    let all: usize = asked.iter().map(Vec::len).sum();
    if all == 0 {
        return Ok(Speed::default());
    }
    let request = |asked: &Asked| Request {
        index: asked.question.number,
        prompt: asked.prompt.tokens.clone(),
        max_new_tokens: asked.room,
    };
    let runs: Vec<CompletionRun> = material
        .seeds
        .iter()
        .zip(&asked)
        .map(|(&seed, asked)| CompletionRun {
            requests: asked.iter().map(request).collect(),
            sampling: sampling(ask, job.top_k, seed),
        })
        .collect();
    let settings = CompletionSettings {
        stop: stop.clone(),
        batch: job.batch,
        execution: Some(job.execution),
        processor: job.processor.clone(),
        compute: job.compute,
        threads: job.threads,
        memory: job.memory,
    };
    let folder = open_folder_with(&job.model, registry)?;
    let (mut tokens, mut failed) = (vec![Vec::new(); all], None);
    let firsts: Vec<usize> =
        asked.iter().scan(0, |sum, a| Some(std::mem::replace(sum, *sum + a.len()))).collect();
    let mut see = |run: usize, new: quant_model::Generated<'_>| -> Result<(), PipelineError> {
        let own: &mut Vec<u32> = &mut tokens[firsts[run] + new.request];
        own.extend(new.token);
        let Some(finish) = new.finish else { return Ok(()) };
        let completion = Completion { tokens: std::mem::take(own), finish };
        let record = judged(&judge, &material.tokenizer, &stop, &asked[run][new.request], completion);
        record.and_then(|record| kept.add(vec![record])).map_err(|error| {
            failed = Some(error);
            PipelineError::Interrupted
        })
    };
    let result = complete(folder, &runs, &settings, events, &mut see);
    if let Some(error) = failed {
        return Err(error);
    }
    let completions = result?;
    let new = completions.runs.iter().flatten().map(|completion| completion.tokens.len()).sum();
    Ok(Speed {
        tokens: new,
        seconds: completions.seconds.iter().sum(),
        first_token: completions.first_token.into_iter().flatten().next(),
    })
}

/// The draws of a seed.
pub(super) fn sampling(ask: &Generation, top_k: Option<usize>, seed: u64) -> Sampling {
    ask.sampling.map_or(Sampling { seed, ..Sampling::GREEDY }, |sampling| Sampling {
        temperature: sampling.temperature,
        top_p: sampling.top_p,
        top_k: top_k.or(sampling.top_k).unwrap_or(0),
        seed,
    })
}

fn judged(
    judge: &Judge<'_>,
    tokenizer: &Tokenizer,
    stop: &[u32],
    asked: &Asked,
    completion: Completion,
) -> Result<Record, StudyError> {
    let ended = completion.finish == Finish::Stop;
    let tokens = match completion.tokens.split_last() {
        Some((last, before)) if ended && stop.contains(last) => before,
        _ => &completion.tokens,
    };
    debug_assert!(tokens.len() <= asked.room);
    let (text, whole) = (tokenizer.decode(tokens, true)?, tokenizer.decode(tokens, false)?);
    judge.record(
        asked,
        Given {
            text: &text,
            whole: &whole,
            tokens,
            marked: true,
            ended,
            finish: completion.finish.name(),
            recorded: completion.tokens.clone(),
        },
    )
}
