//! A block of a float checkpoint.

use std::collections::BTreeMap;

use ndarray::Array1;
use quant_graph::{
    BlockFrame, BlockParams, BoxError, LinearParams, LinearSpec, LinearWeight, ModelSpec, Online, RowVisitor,
};

use crate::at_once::at_once;
use crate::error::Result;
use crate::hash::TensorHash;
use crate::source::Checkpoint;

/// Reads one vector of the given length.
pub(crate) fn read_vector(checkpoint: &Checkpoint, name: &str, length: usize) -> Result<Array1<f32>> {
    checkpoint.tensor_shaped(name, &[length])?;
    checkpoint.read_vector_f32(name)
}

/// The norms of a block, without hashes.
pub(crate) fn read_norms(
    checkpoint: &Checkpoint,
    spec: &ModelSpec,
    index: usize,
) -> Result<BTreeMap<quant_graph::Norm, Array1<f32>>> {
    spec.norms()
        .into_iter()
        .map(|(norm, width)| Ok((norm, read_vector(checkpoint, &spec.norm(index, norm), width)?)))
        .collect()
}

/// A float linear, without hashes.
pub(crate) fn read_linear(checkpoint: &Checkpoint, linear: &LinearSpec) -> Result<LinearParams> {
    let name = format!("{}.weight", linear.module);
    checkpoint.tensor_shaped(&name, &[linear.outputs, linear.inputs])?;
    let weight = LinearWeight::Float(checkpoint.read_matrix_f32(&name)?);
    Ok(LinearParams { weight, bias: read_bias(checkpoint, linear)?, input: None })
}

/// The bias of a linear, if the model has one there.
pub(crate) fn read_bias(checkpoint: &Checkpoint, linear: &LinearSpec) -> Result<Option<Array1<f32>>> {
    let name = format!("{}.bias", linear.module);
    linear.bias.then(|| read_vector(checkpoint, &name, linear.outputs)).transpose()
}

/// Tensors of a float block on their way in; with hashes, every tensor is hashed in the pass that reads it.
struct Reader<'a> {
    checkpoint: &'a Checkpoint,
    spec: &'a ModelSpec,
    hashes: Option<&'a mut BTreeMap<String, TensorHash>>,
}

impl Reader<'_> {
    fn vector(&mut self, name: String, length: usize) -> Result<Array1<f32>> {
        self.checkpoint.tensor_shaped(&name, &[length])?;
        let Some(hashes) = &mut self.hashes else { return self.checkpoint.read_vector_f32(&name) };
        let (values, hash) = self.checkpoint.read_vector_f32_hashed(&name)?;
        hashes.insert(name, hash);
        Ok(values)
    }

    fn frame(&mut self, index: usize) -> Result<BlockFrame> {
        let mut frame =
            BlockFrame { norms: BTreeMap::new(), biases: BTreeMap::new(), online: Online::default() };
        for (norm, width) in self.spec.norms() {
            frame.norms.insert(norm, self.vector(self.spec.norm(index, norm), width)?);
        }
        for linear in self.spec.block(index).linears {
            if linear.bias {
                let name = format!("{}.bias", linear.module);
                frame.biases.insert(linear.id, self.vector(name, linear.outputs)?);
            }
        }
        Ok(frame)
    }

    /// The weights of a block and their names; their shapes are right.
    fn weights(&self, index: usize) -> Result<Vec<(String, LinearSpec)>> {
        let named = |linear: LinearSpec| {
            let name = format!("{}.weight", linear.module);
            self.checkpoint.tensor_shaped(&name, &[linear.outputs, linear.inputs])?;
            Ok((name, linear))
        };
        self.spec.block(index).linears.into_iter().map(named).collect()
    }

    fn remember(&mut self, name: String, hash: Option<TensorHash>) {
        if let (Some(hashes), Some(hash)) = (&mut self.hashes, hash) {
            hashes.insert(name, hash);
        }
    }
}

/// Reads a float block; with `hashes`, hashes every tensor in the same pass.
pub(crate) fn read_block(
    checkpoint: &Checkpoint,
    spec: &ModelSpec,
    index: usize,
    hashes: Option<&mut BTreeMap<String, TensorHash>>,
) -> Result<BlockParams> {
    let mut reader = Reader { checkpoint, spec, hashes };
    let BlockFrame { norms, mut biases, .. } = reader.frame(index)?;
    let weights = reader.weights(index)?;
    let hash = reader.hashes.is_some();
    let read = at_once(&weights, |(name, _)| {
        if !hash {
            return checkpoint.read_matrix_f32(name).map(|values| (values, None));
        }
        checkpoint.read_matrix_f32_hashed(name).map(|(values, hash)| (values, Some(hash)))
    })?;
    let mut linears = BTreeMap::new();
    for ((name, linear), (values, hash)) in weights.into_iter().zip(read) {
        reader.remember(name, hash);
        let weight = LinearWeight::Float(values);
        let bias = biases.remove(&linear.id);
        linears.insert(linear.id, LinearParams { weight, bias, input: None });
    }
    Ok(BlockParams { linears, norms, online: Online::default(), kv: None })
}

/// Reads a float block, its weights by rows; with `hashes`, hashes every tensor in the same pass.
pub(crate) fn visit_block(
    checkpoint: &Checkpoint,
    spec: &ModelSpec,
    index: usize,
    hashes: Option<&mut BTreeMap<String, TensorHash>>,
    visit: &RowVisitor<'_>,
) -> std::result::Result<BlockFrame, BoxError> {
    let mut reader = Reader { checkpoint, spec, hashes };
    let frame = reader.frame(index)?;
    let weights = reader.weights(index)?;
    let hash = reader.hashes.is_some();
    let hashes = at_once(&weights, |(name, linear)| {
        checkpoint.visit_rows_f32(name, hash, |first, rows| visit(linear.id, first, rows))
    })?;
    for ((name, _), hash) in weights.into_iter().zip(hashes) {
        reader.remember(name, hash);
    }
    Ok(frame)
}
