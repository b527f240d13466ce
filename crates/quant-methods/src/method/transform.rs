//! The interface of methods that rewrite a float block without changing its function.

use crate::{Method, MethodError, Need, SettingsError, SiteStatistics};
use ndarray::Array1;
use quant_core::{FloatType, Grid};
use quant_graph::{BlockForward, BlockParams, BlockSpec, LinearId, LinearScheme, Site};
use quant_kernels::Par;
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
    /// Threads.
    pub par: Par,
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
