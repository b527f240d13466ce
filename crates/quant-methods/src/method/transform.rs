//! The interface of methods that rewrite a float block without changing its function.

use crate::{Method, MethodError, Need, SettingsError, SiteStatistics};
use ndarray::Array1;
use quant_core::{FloatType, Grid};
use quant_graph::{
    BlockForward, BlockParams, BlockSpec, EdgeSource, LinearId, LinearScheme, LinearWeight, Site,
};
use quant_kernels::Work;
use std::collections::BTreeMap;
use std::fmt::Debug;

/// What a transform may know of the block besides its numbers.
#[derive(Clone, Copy)]
pub struct BlockContext<'a> {
    /// Its linears, what feeds them, where scales can move.
    pub block: &'a BlockSpec,
    /// What happens to every linear afterwards.
    pub scheme: &'a BTreeMap<LinearId, LinearScheme>,
    /// The grid of every linear that will be rounded, and the columns of its groups.
    pub grids: &'a BTreeMap<LinearId, (Grid, Option<usize>)>,
    /// The type the target stores norms in.
    pub norm_type: FloatType,
    /// Runs the block as it is, for those that [`Transform::runs_block`].
    pub forward: Option<&'a dyn BlockForward>,
    /// Threads, and whether to go on.
    pub work: Work<'a>,
}

impl Debug for BlockContext<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlockContext")
            .field("scheme", self.scheme)
            .field("norm_type", &self.norm_type)
            .finish_non_exhaustive()
    }
}

/// What a transform did to the activations inside a block: the factors by which it divided the channels of a site, `[width]`.
pub type Scaled = BTreeMap<Site, Array1<f32>>;

/// A transform modifier of a recipe: a method and its settings.
pub trait Transform: Debug + Send + Sync {
    /// Its registry line.
    fn method(&self) -> &'static Method;
    /// Its settings in a few words, for model cards.
    fn describe(&self) -> String;
    /// Whether it can work on a block of that shape.
    ///
    /// # Errors
    /// A key of its section that asks for what such a block does not have.
    fn check(&self, block: &BlockSpec) -> Result<(), SettingsError> {
        let _ = block;
        Ok(())
    }
    /// What it wants gathered of a block of the float model.
    fn needs(&self, block: &BlockSpec) -> Vec<Need>;
    /// Whether it runs parts of the block.
    fn runs_block(&self) -> bool {
        false
    }
    /// Whether all it does to the weights follows from the factors it gives: edge by edge in the order of the block,
    /// columns are multiplied by them and, where an edge comes from rows, those are divided, as [`scale_weights`] does. A run
    /// that goes on after a break then repeats that instead of having kept the weights.
    fn only_scales(&self) -> bool {
        false
    }
    /// Bytes it holds at its peak besides the statistics and the block, given the calibration tokens.
    fn workspace(&self, block: &BlockSpec, tokens: usize) -> u64 {
        let _ = (block, tokens);
        0
    }
    /// Floating-point operations on one block, given the calibration tokens, as far as they weigh.
    fn operations(&self, block: &BlockSpec, tokens: usize) -> f64 {
        let _ = (block, tokens);
        0.0
    }
    /// Rewrites a float block and says what that did to its activations.
    ///
    /// # Errors
    /// A statistic that was not gathered or is not finite; arrays that do not fit together.
    fn apply(
        &self,
        block: &mut BlockParams,
        statistics: &BTreeMap<Site, SiteStatistics>,
        context: BlockContext<'_>,
    ) -> Result<Scaled, MethodError>;
}

/// Does to the float weights of a block what a transform did that gave these factors and [only
/// scales](Transform::only_scales); norms and biases are left alone.
///
/// # Errors
/// [`MethodError::Channels`] for factors of another width than the weights.
pub fn scale_weights(block: &mut BlockParams, spec: &BlockSpec, scaled: &Scaled) -> Result<(), MethodError> {
    let channels = |expected: usize, found: usize| MethodError::Channels {
        method: "a repeated transform",
        what: "a weight".into(),
        expected,
        found,
    };
    for edge in &spec.edges {
        let Some(factors) = scaled.get(&edge.to) else { continue };
        if let EdgeSource::Rows { linear, first } = edge.from
            && let Some(LinearWeight::Float(weight)) = block.linears.get_mut(&linear).map(|l| &mut l.weight)
        {
            let divisors = match edge.heads {
                None => factors.to_owned(),
                // Equal over the query heads of a value head: the first of each stands for all.
                Some((heads, kv_heads)) => {
                    let dim = (factors.len() / heads.max(1)).max(1);
                    let shared = heads / kv_heads.max(1);
                    let of = |i: usize| factors.get(i / dim * shared * dim + i % dim).copied();
                    (0..kv_heads * dim).filter_map(of).collect()
                }
            };
            if first + divisors.len() > weight.nrows() {
                return Err(channels(first + divisors.len(), weight.nrows()));
            }
            for (&c, row) in divisors.iter().zip(first..) {
                weight.row_mut(row).mapv_inplace(|w| w / c);
            }
        }
        for id in spec.at(edge.to) {
            let Some(LinearWeight::Float(weight)) = block.linears.get_mut(id).map(|l| &mut l.weight) else {
                continue;
            };
            if weight.ncols() != factors.len() {
                return Err(channels(factors.len(), weight.ncols()));
            }
            weight.rows_mut().into_iter().for_each(|mut row| row *= factors);
        }
    }
    Ok(())
}
