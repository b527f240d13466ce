//! A block of a float checkpoint.

use std::collections::BTreeMap;

use ndarray::Array1;
use quant_graph::{BlockParams, LinearParams, LinearWeight, ModelSpec, Role};

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
pub(crate) fn read_linear(
    checkpoint: &Checkpoint,
    spec: &ModelSpec,
    index: usize,
    role: Role,
) -> Result<LinearParams> {
    let linear = spec.linear(role);
    let module = spec.module(index, role);
    let name = format!("{module}.weight");
    checkpoint.tensor_shaped(&name, &[linear.outputs, linear.inputs])?;
    let weight = LinearWeight::Float(checkpoint.read_matrix_f32(&name)?);
    Ok(LinearParams { weight, bias: read_bias(checkpoint, spec, index, role)?, input: None })
}

/// The bias of a linear, if the model has one there.
pub(crate) fn read_bias(
    checkpoint: &Checkpoint,
    spec: &ModelSpec,
    index: usize,
    role: Role,
) -> Result<Option<Array1<f32>>> {
    let linear = spec.linear(role);
    let name = format!("{}.bias", spec.module(index, role));
    linear.bias.then(|| read_vector(checkpoint, &name, linear.outputs)).transpose()
}

/// Reads a float block; with `hashes`, hashes every tensor in the same pass.
pub(crate) fn read_block(
    checkpoint: &Checkpoint,
    spec: &ModelSpec,
    index: usize,
    hashes: Option<&mut BTreeMap<String, TensorHash>>,
) -> Result<BlockParams> {
    let Some(hashes) = hashes else {
        let linears =
            Role::ALL.into_iter().map(|role| Ok((role, read_linear(checkpoint, spec, index, role)?)));
        let linears = linears.collect::<Result<_>>()?;
        return Ok(BlockParams { linears, norms: read_norms(checkpoint, spec, index)?, kv: None });
    };
    let mut vector = |name: String, length: usize| -> Result<Array1<f32>> {
        checkpoint.tensor_shaped(&name, &[length])?;
        let (values, hash) = checkpoint.read_vector_f32_hashed(&name)?;
        hashes.insert(name, hash);
        Ok(values)
    };
    let mut norms = BTreeMap::new();
    for (norm, width) in spec.norms() {
        norms.insert(norm, vector(spec.norm(index, norm), width)?);
    }
    let mut biases = BTreeMap::new();
    for role in Role::ALL {
        let linear = spec.linear(role);
        if linear.bias {
            biases.insert(role, vector(format!("{}.bias", spec.module(index, role)), linear.outputs)?);
        }
    }
    let mut linears = BTreeMap::new();
    for role in Role::ALL {
        let linear = spec.linear(role);
        let name = format!("{}.weight", spec.module(index, role));
        checkpoint.tensor_shaped(&name, &[linear.outputs, linear.inputs])?;
        let (values, hash) = checkpoint.read_matrix_f32_hashed(&name)?;
        hashes.insert(name, hash);
        let weight = LinearWeight::Float(values);
        linears.insert(role, LinearParams { weight, bias: biases.remove(&role), input: None });
    }
    Ok(BlockParams { linears, norms, kv: None })
}
