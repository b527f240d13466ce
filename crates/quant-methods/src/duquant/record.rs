//! What was fitted to a block, as bytes and as a rewriting of the block.

use super::METHOD;
use super::observe::Scales;
use crate::folding::fold;
use crate::{BlockContext, BlockPlan, MethodError};
use ndarray::Array2;
use quant_core::{FloatType, codec_of_fields};
use quant_graph::{BlockParams, LinearWeight, Site};
use quant_kernels::Par;
use quant_rotate::{DuQuant, RotateError};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The transform of a site: rotations `[block, block]`, and which channel comes where between them.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Fitted {
    pub(super) first: Array2<f32>,
    pub(super) order: Vec<u32>,
    pub(super) second: Array2<f32>,
}

codec_of_fields!(Fitted { first, order, second });

impl Fitted {
    pub(super) fn transform(&self) -> Result<DuQuant, RotateError> {
        let wide = |rotation: &Array2<f32>| rotation.mapv(f64::from);
        let order = self.order.iter().map(|&from| from as usize).collect();
        DuQuant::new(wide(&self.first), order, wide(&self.second))
    }
}

/// Everything that was fitted to a block.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Record {
    pub(super) scales: Scales,
    pub(super) sites: BTreeMap<Site, Fitted>,
}

codec_of_fields!(Record { scales, sites });

impl Record {
    /// Rewrites the float block: factors go into what is before a site, and with the transforms into the linears behind it.
    pub(super) fn apply(
        &self,
        mut block: BlockParams,
        plan: &BlockPlan<'_>,
        par: Par,
    ) -> Result<BlockParams, MethodError> {
        let spec = plan.spec.block(plan.index);
        let context = BlockContext {
            block: &spec,
            scheme: plan.scheme,
            grids: &BTreeMap::new(),
            // Formats that hold such transforms have norms in f32.
            norm_type: FloatType::F32,
            forward: None,
            work: par.into(),
        };
        for edge in &spec.edges {
            if let Some(scales) = self.scales.get(&edge.to) {
                fold(METHOD.id, edge, scales.clone(), &mut block, &context)?;
            }
        }
        for (site, fitted) in &self.sites {
            let transform = fitted.transform()?;
            for id in spec.at(*site) {
                let Some(linear) = block.linears.get_mut(id) else { continue };
                let LinearWeight::Float(weight) = &mut linear.weight else {
                    let what = format!("the weight of {id} is quantised");
                    return Err(MethodError::NotFloat { method: METHOD.id, what });
                };
                *weight = turned(&transform, weight, par)?;
            }
            block.online.sites.insert(*site, Arc::new(transform.online()?));
        }
        Ok(block)
    }
}

/// A weight `[out, in]` behind the transform of its input, computed in f64.
pub(super) fn turned(
    transform: &DuQuant,
    weight: &Array2<f32>,
    par: Par,
) -> Result<Array2<f32>, MethodError> {
    let (expected, found) = (transform.permutation().len(), weight.ncols());
    if expected != found {
        return Err(MethodError::Channels { method: METHOD.id, what: "a weight".into(), expected, found });
    }
    Ok(transform.apply(weight.mapv(f64::from).view(), par).mapv(|w| w as f32))
}
