//! One try at a factorisation: its arithmetic and how it ended.

use quant_core::codec::{Bytes, Codec, bad_tag};
use quant_core::{CoreError, codec_of_fields};
use serde::{Deserialize, Serialize};
use std::fmt;

/// Arithmetic of the factorisation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Precision {
    /// f32, checked by its residual, repeated in f64 when the check fails.
    #[default]
    F32,
    /// f64 throughout; the finished factor is rounded to f32 for the column loop.
    F64,
}

impl fmt::Display for Precision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::F32 => "f32",
            Self::F64 => "f64",
        })
    }
}

/// How one factorisation ended.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    /// The factor was accepted with this residual (units of the mean diagonal).
    Accepted {
        /// See [`FactorSettings::residual_tolerance`](crate::FactorSettings::residual_tolerance).
        residual: f64,
    },
    /// A pivot was not positive.
    Pivot {
        /// Input channel of the pivot.
        column: usize,
    },
    /// The factor does not reproduce its matrix well enough.
    Residual {
        /// See [`FactorSettings::residual_tolerance`](crate::FactorSettings::residual_tolerance).
        residual: f64,
        /// What was accepted at this damping.
        tolerance: f64,
    },
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accepted { residual } => write!(f, "accepted, residual {residual:.1e}"),
            Self::Pivot { column } => write!(f, "the pivot of input channel {column} was not positive"),
            Self::Residual { residual, tolerance } => {
                write!(f, "residual {residual:.1e}, at most {tolerance:.1e} is accepted")
            }
        }
    }
}

/// One factorisation tried.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Attempt {
    /// Fraction of its unit, which [`FactorSettings::damping_unit`](crate::FactorSettings::damping_unit) names.
    pub damping: f64,
    /// What was added to the diagonal.
    pub lambda: f64,
    /// Arithmetic.
    pub precision: Precision,
    /// How it ended.
    pub outcome: Outcome,
}

codec_of_fields!(Attempt { damping, lambda, precision, outcome });

impl Codec for Precision {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(match self {
            Self::F32 => 0,
            Self::F64 => 1,
        });
    }
    fn decode(from: &mut Bytes<'_>) -> Result<Self, CoreError> {
        match u8::decode(from)? {
            0 => Ok(Self::F32),
            1 => Ok(Self::F64),
            tag => bad_tag("a precision", tag),
        }
    }
}

impl Codec for Outcome {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Accepted { residual } => {
                out.push(0);
                residual.encode(out);
            }
            Self::Pivot { column } => {
                out.push(1);
                column.encode(out);
            }
            Self::Residual { residual, tolerance } => {
                out.push(2);
                (*residual, *tolerance).encode(out);
            }
        }
    }
    fn decode(from: &mut Bytes<'_>) -> Result<Self, CoreError> {
        match u8::decode(from)? {
            0 => Ok(Self::Accepted { residual: f64::decode(from)? }),
            1 => Ok(Self::Pivot { column: usize::decode(from)? }),
            2 => Ok(Self::Residual { residual: f64::decode(from)?, tolerance: f64::decode(from)? }),
            tag => bad_tag("the end of a factorisation", tag),
        }
    }
}
