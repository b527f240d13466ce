//! How far an execution has come from its simulation: codes of inputs that differ.

use crate::block::{StageScratch, Walk};
use crate::error::expect_shape;
use crate::linear::{Activations, LinearOp, quantized_input};
use crate::{Arithmetic, Block, Execution, MLP_ROWS, ModelError, RopeTables};
use ndarray::{Array2, ArrayView2};
use quant_graph::{BlockSource, ModelSpec, Site};
use quant_kernels::Par;
use std::collections::BTreeMap;
use std::ops::ControlFlow;

/// Codes of inputs of a block.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Flips {
    /// Codes that products took.
    pub codes: u64,
    /// Of these, how many differ from those of the simulation.
    pub flipped: u64,
}

/// Runs sequences through the simulated and the executed model side by side, and counts by block how many codes of inputs differ.
///
/// Given one input, the codes are the same; but sums of floats are rounded as they go and sums of codes are not, so that outputs differ in
/// their last bits, and an input of a later linear that lies between two codes falls to either side.
///
/// # Errors
/// [`ModelError::Stopped`] after `go_on` has said `Break`; otherwise as [`StreamedModel::encode`](crate::StreamedModel::encode).
pub fn count_flips(
    source: &mut dyn BlockSource,
    arithmetic: Arithmetic,
    sequences: &[Vec<u32>],
    par: Par,
    go_on: &mut dyn FnMut(usize) -> ControlFlow<()>,
) -> Result<Vec<Flips>, ModelError> {
    let spec = source.spec().clone();
    let rope = RopeTables::new(&spec, sequences.iter().map(Vec::len));
    let mut streams = Vec::with_capacity(sequences.len());
    for ids in sequences {
        let h = source.embed(ids)?;
        expect_shape(ModelSpec::EMBEDDING, &[ids.len(), spec.hidden], h.shape())?;
        streams.push([h.clone(), h]);
    }
    let mut counts = Vec::with_capacity(spec.layers);
    for index in 0..spec.layers {
        if go_on(index).is_break() {
            return Err(ModelError::Stopped);
        }
        let params = source.block(index)?;
        let executed = Block::<f32>::new(&spec, index, params.clone(), arithmetic.clone().executed(), par)?;
        let simulated = Arithmetic { execution: Execution::Simulated, ..arithmetic.clone() };
        let simulated = Block::<f32>::new(&spec, index, params, simulated, par)?;
        let quantisers = quantisers(&executed);
        let mut flips = Flips::default();
        for [of_simulated, of_executed] in &mut streams {
            let want = codes(&simulated, &quantisers, of_simulated, &rope, par)?;
            let got = codes(&executed, &quantisers, of_executed, &rope, par)?;
            for (want, got) in want.values().zip(got.values()) {
                flips.codes += got.len() as u64;
                flips.flipped += want.iter().zip(got).filter(|(a, b)| a != b).count() as u64;
            }
        }
        counts.push(flips);
    }
    Ok(counts)
}

/// Of every site whose linears take codes, one of them.
fn quantisers(block: &Block<f32>) -> BTreeMap<Site, &dyn LinearOp<f32>> {
    let linears = block.spec().linears.iter().filter_map(|l| Some((l.id.site(), block.linear(l.id)?)));
    linears.filter(|(_, op)| op.takes_codes()).collect()
}

/// Takes a stream through a block; the codes of its sites come back.
fn codes(
    block: &Block<f32>,
    quantisers: &BTreeMap<Site, &dyn LinearOp<f32>>,
    h: &mut Array2<f32>,
    rope: &RopeTables,
    par: Par,
) -> Result<BTreeMap<Site, Vec<i8>>, ModelError> {
    let mut codes: BTreeMap<Site, Vec<i8>> = BTreeMap::new();
    let mut see = |site: Site, x: ArrayView2<'_, f32>| -> Result<ControlFlow<()>, ModelError> {
        if let Some(linear) = quantisers.get(&site)
            && let Some(quant) = linear.input_quant()
        {
            let failed = |cause| ModelError::Operator {
                block: block.index(),
                what: format!("quantisation at {site:?}"),
                cause,
            };
            let input = quantized_input(quant, Some(linear.backend()), x, par).map_err(failed)?;
            if let Activations::Codes(found) = input.activations() {
                codes.entry(site).or_default().extend(found.codes.iter());
            }
        }
        Ok(ControlFlow::Continue(()))
    };
    let (starts, table) = ([0, h.nrows()], |length| rope.table(length));
    let walk = Walk { starts: &starts, rope: &table };
    block.walk(h.view_mut(), &walk, MLP_ROWS, &mut StageScratch::default(), &mut see, par)?;
    Ok(codes)
}
