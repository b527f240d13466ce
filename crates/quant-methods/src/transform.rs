//! The interface of methods that rewrite a float block without changing its function.

use crate::{Method, MethodError};
use quant_core::{ChannelMaxima, FloatType};
use quant_graph::{BlockParams, LinearScheme, Role, Site};
use std::collections::BTreeMap;
use std::fmt::Debug;

/// Statistics of the float model that a transform wants gathered before it sees a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Needs {
    /// Largest `|x|` of every channel at the sites of the scale edges.
    pub channel_max: bool,
}

/// The statistics of one block that were asked for.
#[derive(Clone, Debug, Default)]
pub struct Statistics {
    /// Largest `|x|` of every channel, by site.
    pub channel_max: BTreeMap<Site, ChannelMaxima>,
}

/// What a transform may know of the block besides its numbers.
#[derive(Clone, Copy, Debug)]
pub struct BlockContext<'a> {
    /// What happens to every linear afterwards.
    pub scheme: &'a BTreeMap<Role, LinearScheme>,
    /// The type the target stores norms in.
    pub norm_type: FloatType,
}

/// A transform modifier of a recipe: a method and its settings.
pub trait Transform: Debug + Send + Sync {
    /// Its registry line.
    fn method(&self) -> &'static Method;
    /// Its settings in a few words, for model cards.
    fn describe(&self) -> String;
    /// What it wants gathered.
    fn needs(&self) -> Needs;
    /// Rewrites a float block.
    ///
    /// # Errors
    /// A statistic that was not gathered or is not finite; arrays that do not fit together.
    fn apply(
        &self,
        block: &mut BlockParams,
        statistics: &Statistics,
        context: BlockContext<'_>,
    ) -> Result<(), MethodError>;
}
