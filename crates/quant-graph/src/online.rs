//! What a block multiplies activations by while the model runs.

use crate::Site;
use quant_core::{AxisShape, FloatType, OnlineShape, OnlineTransform, PairTransform, kronecker_sides};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The transforms of a block that no weight could take in. The linears behind a site have the inverse of its transform in
/// their weights, so that the block computes what it did.
///
/// ```
/// use quant_core::{AxisTransform, OnlineTransform};
/// use quant_graph::{Online, Site};
///
/// let rotation = OnlineTransform::kronecker(vec![AxisTransform::Walsh(8)])?;
/// let mut online = Online::default();
/// online.sites.insert(Site::MlpActivation, rotation.into());
/// assert_eq!(online.scheme().unwrap().sites[&Site::MlpActivation].width(), 8);
/// # Ok::<(), quant_core::CoreError>(())
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Online {
    /// Of the input of a stage, before it is quantised: rows of the site's width.
    pub sites: BTreeMap<Site, Arc<OnlineTransform>>,
    /// Of keys and queries, head by head, behind rope and before keys are quantised.
    pub pair: Option<Arc<PairTransform>>,
}

impl Online {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sites.is_empty() && self.pair.is_none()
    }
    /// Kinds and sizes; none where one of them has no shape that a format could store.
    #[must_use]
    pub fn scheme(&self) -> Option<OnlineScheme> {
        let shape = |(site, transform): (&Site, &Arc<OnlineTransform>)| Some((*site, transform.shape()?));
        let pair = match &self.pair {
            Some(pair) => Some([pair.key().shape()?, pair.query().shape()?]),
            None => None,
        };
        Some(OnlineScheme { sites: self.sites.iter().map(shape).collect::<Option<_>>()?, pair })
    }
}

/// Kinds and sizes of the transforms of a block: what a plan knows and a format answers for.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OnlineScheme {
    /// Of the inputs of stages.
    pub sites: BTreeMap<Site, OnlineShape>,
    /// Of keys, and of queries.
    pub pair: Option<[OnlineShape; 2]>,
}

impl OnlineScheme {
    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.sites.is_empty() && self.pair.is_none()
    }
}

/// A kernel that multiplies the input of a linear by a Kronecker pair `P_L` `[L, L]`, `P_R` `[R, R]` (`x` as `X` `[L, R]` becomes
/// `P_L^T X P_R`), clips both ends of every token by one ratio and quantises it to four bits, symmetrically: `aclnnFlatQuant` of
/// CANN, which vLLM-Ascend calls for its type `W4A4_FLATQUANT_DYNAMIC`.
///
/// ```
/// use quant_core::FloatType;
/// use quant_graph::PairKernel;
///
/// let kernel = PairKernel::of(FloatType::Bf16);
/// assert_eq!(kernel.sides(8960)?, (80, 112));
/// assert!(kernel.sides(18_944).unwrap_err().contains("128 x 148"));
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PairKernel {
    /// The type in which it has the matrices.
    pub held: FloatType,
}

impl PairKernel {
    /// The longest side it takes.
    pub const LONGEST: usize = 256;
    /// What the right side must be a multiple of: so many values of four bits are packed to a word.
    pub const PACKED: usize = 8;

    /// For a model of this type; models in float32 are held in bfloat16.
    #[must_use]
    pub fn of(model: FloatType) -> Self {
        Self { held: if model == FloatType::F32 { FloatType::Bf16 } else { model } }
    }

    /// The sides `(L, R)` of the pair of an input of so many features.
    ///
    /// # Errors
    /// In words, for features without a pair and for sides that it does not take.
    pub fn sides(&self, features: usize) -> Result<(usize, usize), String> {
        let (left, right) = kronecker_sides(features)
            .ok_or_else(|| format!("{features} features have no Kronecker pair (they are 2 modulo 4)"))?;
        let pair = format!("the Kronecker pair of {features} features is {left} x {right}");
        if right > Self::LONGEST {
            return Err(format!("{pair}, and the kernel takes sides of at most {}", Self::LONGEST));
        }
        if !right.is_multiple_of(Self::PACKED) {
            return Err(format!(
                "{pair}, and the kernel wants a right side in multiples of {}",
                Self::PACKED
            ));
        }
        Ok((left, right))
    }

    /// The pair of an input of so many features, as a transform.
    ///
    /// # Errors
    /// As [`Self::sides`].
    pub fn shape(&self, features: usize) -> Result<OnlineShape, String> {
        self.sides(features).map(|(left, right)| OnlineShape::new([left, right].map(AxisShape::Dense)))
    }
}
