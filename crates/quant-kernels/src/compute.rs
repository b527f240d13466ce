//! Which arithmetic the products use.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

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
    /// Every operand as a sum of two bfloat16 values, `x = x0 + x1`, `x0` the nearest to `x` and `x1` the nearest to what it leaves; three
    /// products, `x1 y0 + x0 y1 + x0 y0`, added in this order. Off by at most `3 · 2^-16 |x| |y|`, a third of it in the mean.
    ///
    /// Three times the work of [`Compute::Bf16`]: for processors whose tiles do that faster than one product in f32. Where the
    /// instructions take subnormal bf16 values as zero, a part below `2^-126` is lost: up to `2^-126 (|x| + |y|)` of a product, and
    /// `2^-126` of every product or sum that is smaller.
    /// An operand that rounds to infinity makes NaN, since it meets parts that are zero.
    Bf16x2,
    /// Three bfloat16 values, six products: `x2 y0 + x1 y1 + x0 y2 + x1 y0 + x0 y1 + x0 y0`. Off by at most `2^-22 |x| |y|` beside the
    /// roundings of sums in f32; the floor is that of [`Compute::Bf16x2`].
    Bf16x3,
}

impl Compute {
    /// All settings, in the order of their names.
    pub const ALL: [Self; 4] = [Self::F32, Self::Bf16, Self::Bf16x2, Self::Bf16x3];

    /// The name used in recipes and reports: `f32`, `bf16`, `bf16x2` or `bf16x3`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Bf16 => "bf16",
            Self::Bf16x2 => "bf16x2",
            Self::Bf16x3 => "bf16x3",
        }
    }

    /// The products of parts that are added, in this order: how often the left and the right operand are rounded and the rest
    /// taken, before the kernel rounds what is left.
    pub(crate) const fn terms(self) -> &'static [(u8, u8)] {
        match self {
            Self::F32 | Self::Bf16 => &[(0, 0)],
            Self::Bf16x2 => &[(1, 0), (0, 1), (0, 0)],
            Self::Bf16x3 => &[(2, 0), (1, 1), (0, 2), (1, 0), (0, 1), (0, 0)],
        }
    }

    /// Parts of an operand.
    pub(crate) const fn parts(self) -> u8 {
        match self {
            Self::F32 | Self::Bf16 => 1,
            Self::Bf16x2 => 2,
            Self::Bf16x3 => 3,
        }
    }
}

impl fmt::Display for Compute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A name that is no [`Compute`] setting.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown compute setting `{found}`, expected `f32`, `bf16`, `bf16x2` or `bf16x3`")]
pub struct UnknownCompute {
    /// The name that was given.
    pub found: String,
}

impl FromStr for Compute {
    type Err = UnknownCompute;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let known = Self::ALL.into_iter().find(|compute| compute.name() == name);
        known.ok_or_else(|| UnknownCompute { found: name.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_round_trip() {
        for compute in Compute::ALL {
            assert_eq!(compute.to_string().parse::<Compute>(), Ok(compute));
        }
        assert!("fp16".parse::<Compute>().is_err());
        assert_eq!(Compute::default(), Compute::F32);
    }

    #[test]
    fn terms_are_of_the_parts_there_are_and_end_with_the_largest() {
        for compute in Compute::ALL {
            let (terms, parts) = (compute.terms(), compute.parts());
            assert_eq!(terms.last(), Some(&(0, 0)));
            assert!(
                terms.iter().all(|(a, b)| a + b < parts)
                    && terms.len() == usize::from(parts * (parts + 1) / 2)
            );
        }
    }
}
