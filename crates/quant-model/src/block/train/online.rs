//! What a block multiplies activations by on its own, in a training pass.

use super::{BlockTrainer, Pass};
use ndarray::{Array2, ArrayViewMut2};
use quant_core::{OnlineTransform, PairTransform};
use quant_graph::{Online, Site};
use quant_kernels::Element;
use quant_rotate::{apply_online, apply_online_per_head};
use std::collections::BTreeMap;

/// What gradients are multiplied by where activations are by the transforms of the block.
#[derive(Debug)]
pub(super) struct Back {
    sites: BTreeMap<Site, OnlineTransform>,
    /// Of keys, and of queries.
    pair: Option<[OnlineTransform; 2]>,
}

impl Back {
    pub(super) fn new(online: &Online) -> Self {
        let sites = online.sites.iter().map(|(site, transform)| (*site, transform.transposed()));
        let pair =
            online.pair.as_ref().map(|pair| [pair.key(), pair.query()].map(OnlineTransform::transposed));
        Self { sites: sites.collect(), pair }
    }
}

impl<T: Element> BlockTrainer<'_, T> {
    /// The input of a site as the linears behind it expect it.
    pub(super) fn transform(&self, site: Site, x: &mut Array2<T>, pass: &Pass<'_, '_, T>) {
        if self.back.sites.contains_key(&site) {
            self.block.transform(site, x.view_mut(), pass.par);
            self.precision.round(x.view_mut(), pass.par);
        }
    }
    pub(super) fn transform_back(&self, site: Site, grad: &mut Array2<T>, pass: &Pass<'_, '_, T>) {
        if let Some(back) = self.back.sites.get(&site) {
            apply_online(back, grad.view_mut(), pass.par);
            self.precision.round(grad.view_mut(), pass.par);
        }
    }
    /// Queries and keys behind rope as attention is to meet them.
    pub(super) fn transform_pair(
        &self,
        queries: &mut Array2<T>,
        keys: &mut Array2<T>,
        pass: &Pass<'_, '_, T>,
    ) {
        if self.back.pair.is_some() {
            self.block.transform_heads(queries, PairTransform::query, pass.par);
            self.block.transform_heads(keys, PairTransform::key, pass.par);
            [queries, keys].into_iter().for_each(|x| self.precision.round(x.view_mut(), pass.par));
        }
    }
    pub(super) fn transform_pair_back(
        &self,
        queries: &mut Array2<T>,
        keys: &mut Array2<T>,
        pass: &Pass<'_, '_, T>,
    ) {
        let Some([key, query]) = &self.back.pair else { return };
        let back = |transform: &OnlineTransform, mut grad: ArrayViewMut2<'_, T>| {
            apply_online_per_head(transform, grad.view_mut(), pass.par);
            self.precision.round(grad, pass.par);
        };
        back(query, queries.view_mut());
        back(key, keys.view_mut());
    }
}
