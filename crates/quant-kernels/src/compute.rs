//! Which arithmetic the products use.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Level;

/// Arithmetic of a matrix product: a named setting that reports print, because it changes numbers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[non_exhaustive]
pub enum Compute {
    /// Operands as they are, products accumulated in the element type.
    #[default]
    F32,
    /// Operands rounded to bfloat16 (nearest, ties to even), products accumulated in the element type.
    ///
    /// Nothing is lost when the operands already are bf16 values, as the weights of a bf16 model are. For `f64`
    /// elements this is the plain f64 product of the rounded operands.
    Bf16,
}

impl Compute {
    /// The name used in recipes and reports: `f32` or `bf16`.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
        }
    }

    /// The level whose instructions multiply f32 operands with this setting on this machine, where that decides their bits: always with
    /// bf16, never with f32, in which all levels agree.
    ///
    /// ```
    /// use quant_kernels::{Compute, Level};
    ///
    /// assert_eq!(Compute::F32.instructions(), None);
    /// assert_eq!(Compute::Bf16.instructions(), Some(Level::detect()));
    /// ```
    #[must_use]
    pub fn instructions(self) -> Option<Level> {
        (self == Self::Bf16).then(Level::detect)
    }
}

impl fmt::Display for Compute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no [`Compute`] setting.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown compute setting `{found}`, expected `f32` or `bf16`")]
pub struct UnknownCompute {
    /// The name that was given.
    pub found: String,
}

impl FromStr for Compute {
    type Err = UnknownCompute;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        match name {
            "f32" => Ok(Self::F32),
            "bf16" => Ok(Self::Bf16),
            other => Err(UnknownCompute { found: other.to_owned() }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for compute in [Compute::F32, Compute::Bf16] {
            assert_eq!(compute.to_string().parse::<Compute>(), Ok(compute));
        }
        assert!("fp16".parse::<Compute>().is_err());
        assert_eq!(Compute::default(), Compute::F32);
    }
}
