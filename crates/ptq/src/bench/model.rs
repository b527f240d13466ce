//! A folder at prefill and decode.

use quant_core::operators::Processor;
use quant_kernels::{Compute, Par};
use quant_model::{Execution, GenerateOptions, Generated, Generator, Request, ResidentModel};
use quant_pipeline::{PipelineError, Registry, expect_generation, folder_arithmetic, open_folder_with};
use serde::Serialize;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

/// Tokens a second of a folder.
#[derive(Clone, Debug, Serialize)]
pub struct EndToEnd {
    /// `sim` or `int8`.
    pub execution: &'static str,
    /// What executed them, if not this program itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub processor: Option<String>,
    /// Bytes of the weights in memory.
    pub weight_bytes: usize,
    /// Tokens of the prompt of `prefill`.
    pub prompt: usize,
    /// Tokens a second while that prompt goes through.
    pub prefill: f64,
    /// Tokens in front of those of `decode`.
    pub position: usize,
    /// Tokens a second at that position, one request.
    pub decode: f64,
    /// Tokens a second of all requests of a batch.
    pub decode_batch: f64,
    /// Requests of that batch.
    pub batch: usize,
}

/// Measures a folder: prefill of half the context, at most 2048 tokens; 32 new tokens behind half the context, at most 1024; then a
/// batch of 16.
///
/// # Errors
/// Folders that cannot be read.
pub fn measure(
    dir: &Path,
    execution: Option<Execution>,
    processor: Option<Arc<dyn Processor>>,
    compute: Compute,
    par: Par,
    registry: &Registry,
) -> Result<EndToEnd, PipelineError> {
    const NEW: usize = 32;
    const BATCH: usize = 16;
    let folder = open_folder_with(dir, registry)?;
    let arithmetic = folder_arithmetic(&folder, compute, execution, processor.clone())?;
    let spec = folder.spec.clone();
    let half = |most| (spec.max_position_embeddings / 2).clamp(1, most);
    let (prompt, position) = (half(2048), half(1024));
    let request = |index: usize, tokens: usize| Request {
        index: index as u64,
        prompt: (0..tokens).map(|i| ((i * 7919 + index * 31) % spec.vocab) as u32).collect(),
        max_new_tokens: NEW.min(spec.max_position_embeddings - tokens),
    };
    let batch: Vec<Request> = (0..BATCH).map(|index| request(index, 1)).collect();
    // The batch, and the longest of the others.
    let expected: Vec<Request> = batch.iter().cloned().chain([request(0, prompt)]).collect();
    expect_generation(&folder, &expected, expected.len(), processor.as_deref())?;
    let go_on = &mut |_, _| ControlFlow::Continue(());
    let mut model = ResidentModel::load(folder.into_source()?, arithmetic.clone(), par, go_on)?;
    // Seconds to the first new token, and of all behind it.
    let mut run = |requests: &[Request]| -> Result<(f64, f64, usize), PipelineError> {
        let began = Instant::now();
        let (mut first, mut count) = (None, 0);
        let options = GenerateOptions { batch: BATCH, ..GenerateOptions::default() };
        Generator::new(&mut model, options).run(requests, &mut |_: Generated<'_>| {
            count += 1;
            if count == requests.len() {
                first = Some(began.elapsed().as_secs_f64());
            }
            ControlFlow::Continue(())
        })?;
        let first = first.unwrap_or_default();
        Ok((first, began.elapsed().as_secs_f64() - first, count - requests.len()))
    };
    run(&[request(0, 1)])?;
    let (prefill, ..) = run(&[Request { max_new_tokens: 1, ..request(0, prompt) }])?;
    let (_, decode, behind) = run(&[request(0, position)])?;
    let (_, together, behind_batch) = run(&batch)?;
    Ok(EndToEnd {
        execution: if arithmetic.execution == Execution::Integer { "int8" } else { "sim" },
        processor: processor.map(|processor| processor.name()),
        weight_bytes: model.bytes(),
        prompt,
        prefill: prompt as f64 / prefill,
        position,
        decode: behind as f64 / decode,
        decode_batch: behind_batch as f64 / together,
        batch: BATCH,
    })
}
