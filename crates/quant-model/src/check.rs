//! A checkpoint's tensors against what the config promises.

use crate::ModelError;
use quant_graph::ModelSpec;
use std::{collections::BTreeMap, fmt};

/// One tensor that does not fit.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum TensorProblem {
    /// The model needs it and the checkpoint does not have it.
    Missing {
        /// Tensor name.
        name: String,
        /// Shape it should have.
        expected: Vec<usize>,
    },
    /// It has another shape.
    Shape {
        /// Tensor name.
        name: String,
        /// Shape it should have.
        expected: Vec<usize>,
        /// Shape it has.
        found: Vec<usize>,
    },
    /// The model has no use for it, so the config describes another model.
    Unexpected {
        /// Tensor name.
        name: String,
        /// Shape it has.
        found: Vec<usize>,
    },
}

impl fmt::Display for TensorProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Missing { name, expected } => write!(f, "{name} {expected:?} is missing"),
            Self::Shape { name, expected, found } => {
                write!(f, "{name}: expected {expected:?}, found {found:?}")
            }
            Self::Unexpected { name, found } => write!(f, "{name} {found:?} is not part of this model"),
        }
    }
}

/// What a fitting checkpoint holds besides the model.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CrossCheck {
    /// Tensors that hold nothing a loader needs, sorted.
    pub ignored: Vec<String>,
    /// A stored head although the config ties it to the embedding, which is the one that is used.
    /// Equality of the two is the caller's to check: it needs the data.
    pub redundant_head: bool,
}

/// Checks names and shapes of all tensors of a float checkpoint.
///
/// # Errors
/// [`ModelError::Tensors`] with every missing, misshapen and unexpected tensor.
pub fn cross_check<'a>(
    spec: &ModelSpec,
    tensors: impl IntoIterator<Item = (&'a str, &'a [usize])>,
) -> Result<CrossCheck, ModelError> {
    let mut found: BTreeMap<&str, &[usize]> = tensors.into_iter().collect();
    let mut report = CrossCheck::default();
    let mut problems = Vec::new();
    for expected in spec.tensors() {
        match found.remove(expected.name.as_str()) {
            None => problems.push(TensorProblem::Missing { name: expected.name, expected: expected.shape }),
            Some(shape) if shape != expected.shape => problems.push(TensorProblem::Shape {
                name: expected.name,
                expected: expected.shape,
                found: shape.to_vec(),
            }),
            Some(_) => {}
        }
    }
    for (name, shape) in found {
        if spec.is_ignorable(name) {
            report.ignored.push(name.to_owned());
        } else if spec.tied && name == ModelSpec::HEAD {
            report.redundant_head = true;
            let expected = vec![spec.vocab, spec.hidden];
            if shape != expected {
                problems.push(TensorProblem::Shape { name: name.into(), expected, found: shape.to_vec() });
            }
        } else {
            problems.push(TensorProblem::Unexpected { name: name.into(), found: shape.to_vec() });
        }
    }
    if problems.is_empty() {
        Ok(report)
    } else {
        Err(ModelError::Tensors { architecture: spec.architecture.clone(), problems })
    }
}
