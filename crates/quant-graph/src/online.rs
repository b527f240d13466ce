//! What a block multiplies activations by while the model runs.

use crate::Site;
use quant_core::{OnlineShape, OnlineTransform, PairTransform};
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
