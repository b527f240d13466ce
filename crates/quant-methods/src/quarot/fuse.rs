//! The rotated model as a source of blocks.

use super::METHOD;
use super::rotations::Rotations;
use ndarray::{Array1, Array2, ArrayViewMut2, Axis, Slice};
use quant_graph::{
    BlockParams, BlockSource, LinearId, LinearWeight, ModelSpec, Norm, Outer, Role, Rows, Site, SourceError,
};
use quant_kernels::Par;
use quant_rotate::apply_online;
use std::ops::Range;

/// Rows or columns that are f64 at a time.
const CHUNK: usize = 256;

/// A model whose parts are rotated as they are read.
pub(super) struct RotatedSource<'a> {
    inner: &'a mut dyn BlockSource,
    rotations: Rotations,
    /// Folded into the head.
    final_norm: Array1<f32>,
    par: Par,
}

impl<'a> RotatedSource<'a> {
    pub(super) fn new(
        inner: &'a mut dyn BlockSource,
        rotations: Rotations,
        par: Par,
    ) -> Result<Self, SourceError> {
        let final_norm = inner.final_norm()?;
        Ok(Self { inner, rotations, final_norm, par })
    }
    /// Turns rows of the residual stream's width, multiplied by `gain` first: a table, or a weight that reads the stream.
    fn turn_rows(&self, rows: &mut Array2<f32>, gain: Option<&Array1<f32>>) {
        let gain = gain.map(|gain| gain.mapv(f64::from));
        inputs(rows, |mut part| {
            if let Some(gain) = &gain {
                part *= gain;
            }
            if let Some(residual) = &self.rotations.residual {
                residual.apply(part, self.par);
            }
        });
    }
    fn turn(&self, block: &mut BlockParams, index: usize) -> Result<(), SourceError> {
        let spec = self.inner.spec().block(index);
        let place = self.inner.spec().block_prefix(index);
        let failed = |what: &str| SourceError::new(place.clone(), METHOD.id, what);
        for linear in &spec.linears {
            let Some(params) = block.linears.get_mut(&linear.id) else {
                return Err(failed("a linear of the block is missing"));
            };
            let LinearWeight::Float(weight) = &mut params.weight else {
                return Err(failed("a weight is rounded already"));
            };
            match linear.id.site() {
                site @ (Site::AttentionInput | Site::MlpInput) => {
                    let norm = if site == Site::MlpInput { Norm::PostAttention } else { Norm::Input };
                    let gain = block.norms.get(&norm);
                    let gain = gain.ok_or_else(|| failed("a norm of the block is missing"))?;
                    self.turn_rows(weight, Some(gain));
                }
                site @ Site::AttentionOutput => inputs(weight, |mut part| {
                    if let Some(head) = &self.rotations.head {
                        head.apply(part.view_mut(), self.par);
                    }
                    if let Some(heads) = self.rotations.online().sites.get(&site) {
                        apply_online(heads, part, self.par);
                    }
                }),
                Site::MlpActivation => inputs(weight, |part| {
                    if let Some(down) = &self.rotations.down {
                        down.apply(part, self.par);
                    }
                }),
            }
            if let Some((_, rows)) = linear.parts.iter().find(|(role, _)| *role == Role::V)
                && let Some(head) = &self.rotations.head
            {
                outputs((weight, params.bias.as_mut()), rows.clone(), |part| head.apply(part, self.par));
            }
            if writes_residual(linear.id)
                && let Some(residual) = &self.rotations.residual
            {
                let all = 0..weight.nrows();
                outputs((weight, params.bias.as_mut()), all, |part| residual.apply(part, self.par));
            }
        }
        for norm in [Norm::Input, Norm::PostAttention] {
            if let Some(gain) = block.norms.get_mut(&norm) {
                gain.fill(1.0);
            }
        }
        block.online = self.rotations.online().clone();
        Ok(())
    }
}

fn writes_residual(id: LinearId) -> bool {
    matches!(id.site(), Site::AttentionOutput | Site::MlpActivation)
}

/// Hands the rows of a weight to `work` in f64, some at a time: what its input is multiplied by.
fn inputs(weight: &mut Array2<f32>, work: impl Fn(ArrayViewMut2<'_, f64>)) {
    for mut rows in weight.axis_chunks_iter_mut(Axis(0), CHUNK) {
        let mut wide = rows.mapv(f64::from);
        work(wide.view_mut());
        rows.zip_mut_with(&wide, |to, from| *to = *from as f32);
    }
}

/// Hands columns of some rows of a weight to `work` as rows in f64, and the same part of the bias: what its output is multiplied
/// by.
fn outputs(
    (weight, bias): (&mut Array2<f32>, Option<&mut Array1<f32>>),
    rows: Range<usize>,
    work: impl Fn(ArrayViewMut2<'_, f64>),
) {
    let mut part = weight.slice_axis_mut(Axis(0), Slice::from(rows.clone()));
    for mut columns in part.axis_chunks_iter_mut(Axis(1), CHUNK) {
        let mut wide = columns.t().mapv(f64::from).as_standard_layout().into_owned();
        work(wide.view_mut());
        columns.zip_mut_with(&wide.t(), |to, from| *to = *from as f32);
    }
    if let Some(bias) = bias {
        let mut bias = bias.slice_axis_mut(Axis(0), Slice::from(rows));
        let mut wide = bias.mapv(f64::from).insert_axis(Axis(0));
        work(wide.view_mut());
        bias.zip_mut_with(&wide.row(0), |to, from| *to = *from as f32);
    }
}

impl BlockSource for RotatedSource<'_> {
    fn spec(&self) -> &ModelSpec {
        self.inner.spec()
    }
    fn block(&mut self, index: usize) -> Result<BlockParams, SourceError> {
        let mut block = self.inner.block(index)?;
        self.turn(&mut block, index)?;
        Ok(block)
    }
    fn is_stored(&self, _: Outer) -> bool {
        false
    }
    fn embed(&mut self, ids: &[u32]) -> Result<Array2<f32>, SourceError> {
        let mut rows = self.inner.embed(ids)?;
        self.turn_rows(&mut rows, None);
        Ok(rows)
    }
    fn final_norm(&mut self) -> Result<Array1<f32>, SourceError> {
        Ok(Array1::ones(self.final_norm.len()))
    }
    fn head(&mut self, rows: Rows) -> Result<Array2<f32>, SourceError> {
        let mut rows = self.inner.head(rows)?;
        self.turn_rows(&mut rows, Some(&self.final_norm));
        Ok(rows)
    }
}
