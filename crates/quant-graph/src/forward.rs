//! The seam through which a method runs a part of a block that it cannot see.

use crate::{BoxError, LinearId};
use ndarray::{Array2, ArrayView2};
use quant_core::Work;
use std::collections::BTreeMap;
use std::error::Error;
use std::fmt;

/// Half of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// From the input of q, k and v to the output of o.
    Attention,
    /// From the input of gate and up to the output of down.
    Mlp,
}

/// Runs parts of one block with other weights: what a search over weights needs whose error is not that of a single linear.
pub trait BlockForward: Sync {
    /// The output of a part, `[tokens, hidden]`, for its input `x` `[tokens, hidden]` (behind the norm), o or down included
    /// and the residual left out. `starts` holds the first row of every sequence and the number of rows at the end; each
    /// sequence begins at its first position. The linears in `with` have these weights `[out, in]`, the others their own.
    ///
    /// # Errors
    /// If the shapes do not fit the block, or it lacks a linear; if the work is not wanted any more.
    fn part(
        &self,
        part: Part,
        x: ArrayView2<'_, f32>,
        starts: &[usize],
        with: &BTreeMap<LinearId, ArrayView2<'_, f32>>,
        work: Work<'_>,
    ) -> Result<Array2<f32>, ForwardError>;
}

/// A part of a block that could not be run, and why.
#[derive(Debug)]
pub struct ForwardError {
    what: String,
    cause: BoxError,
}

impl ForwardError {
    /// `what` is the part that was asked for.
    #[must_use]
    pub fn new(what: impl Into<String>, cause: impl Into<BoxError>) -> Self {
        Self { what: what.into(), cause: cause.into() }
    }
}

impl fmt::Display for ForwardError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} could not be run", self.what)
    }
}

impl Error for ForwardError {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        Some(&*self.cause)
    }
}
