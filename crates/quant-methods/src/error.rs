use quant_core::{CoreError, Stopped};
use quant_graph::ForwardError;
use quant_hessian::HessianError;
use quant_rotate::RotateError;
use thiserror::Error;

/// What can go wrong while a method works on one block or matrix.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum MethodError {
    /// A number format or a matrix refused by `quant-core`.
    #[error(transparent)]
    Core(#[from] CoreError),
    /// A Hessian that cannot be factorised, or a solve that left the finite numbers.
    #[error(transparent)]
    Hessian(#[from] HessianError),
    /// A transform or its training.
    #[error(transparent)]
    Rotate(#[from] RotateError),
    /// A learned transform without a part that the block needs: parameters of another block or scheme.
    #[error("flatquant: the parameters have no {what}; they belong to another block or another scheme")]
    Learned {
        /// The part.
        what: String,
    },
    /// A block that something was done to already, where one as its checkpoint has it is needed.
    #[error("{method}: {what}; it needs the float block as its checkpoint has it")]
    NotFloat {
        /// Registry id.
        method: &'static str,
        /// What is not as it was.
        what: String,
    },
    /// Too little calibration data for one training step.
    #[error(
        "{method}: {found} calibration sequences make no batch of {batch}: give it more of them or a smaller batch_size"
    )]
    Sequences {
        /// Registry id.
        method: &'static str,
        /// Sequences given.
        found: usize,
        /// Sequences of a batch.
        batch: usize,
    },
    /// A diary that could not be written, or a person who asked to stop.
    #[error("{0}")]
    Diary(#[source] quant_graph::BoxError),
    /// The caller wanted no more of it.
    #[error("{0}")]
    Stopped(#[from] Stopped),
    /// A statistic the method declared was not handed in: an error of the caller.
    #[error("{method} needs {what} and the caller did not gather it")]
    MissingStatistic {
        /// Registry id.
        method: &'static str,
        /// The statistic.
        what: &'static str,
    },
    /// A statistic that does not follow a scaling of the channels, and that a transform scaled under it.
    #[error(
        "ranges and cross moments must be gathered behind the transforms that scale the channels of the float model"
    )]
    Unscalable,
    /// A part of the block that could not be run.
    #[error(transparent)]
    Forward(#[from] ForwardError),
    /// A state that another method prepared: an error of the caller.
    #[error("{method} was handed what another method prepared")]
    Prepared {
        /// Registry id.
        method: &'static str,
    },
    /// Arrays that do not fit together.
    #[error("{method}: {what} has {found} channels, expected {expected}")]
    Channels {
        /// Registry id.
        method: &'static str,
        /// The array.
        what: String,
        /// Channels required.
        expected: usize,
        /// Channels given.
        found: usize,
    },
    /// A statistic with a NaN or an infinity.
    #[error(
        "{method}: {what} of channel {channel} is {value}; the calibration activations overflowed before this block"
    )]
    NotFinite {
        /// Registry id.
        method: &'static str,
        /// The statistic.
        what: &'static str,
        /// Input channel.
        channel: usize,
        /// Its value.
        value: f32,
    },
}

impl MethodError {
    /// Of a method that does not find what it asked for.
    pub(crate) fn missing(method: &'static str, what: &'static str) -> Self {
        Self::MissingStatistic { method, what }
    }
    /// The same error of a weight whose row `first` is row 0 of the one it was found in.
    #[must_use]
    pub fn in_rows_from(self, first: usize) -> Self {
        match self {
            Self::Core(error) => Self::Core(error.in_rows_from(first)),
            Self::Hessian(HessianError::Core(error)) => {
                Self::Hessian(HessianError::Core(error.in_rows_from(first)))
            }
            Self::Hessian(HessianError::NotFiniteResult { row, column }) => {
                Self::Hessian(HessianError::NotFiniteResult { row: first + row, column })
            }
            other => other,
        }
    }
}
