//! The interface of methods that rewrite a whole model without changing its function.

use crate::{Method, SettingsError};
use quant_graph::{BlockSource, ModelSpec, OnlineScheme, SourceError};
use quant_kernels::Par;
use std::fmt::Debug;

/// What a plan must know of a rewritten model.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WholePlan {
    /// What every block multiplies activations by while the model runs.
    pub online: OnlineScheme,
    /// What the person should know.
    pub notices: Vec<String>,
}

/// A modifier that rewrites embedding, blocks and head together, before anything else looks at them: a decorator around the source
/// of blocks, so that nobody behind it has to know. The embedding and the head of what it gives are tables of their own.
pub trait ModelTransform: Debug + Send + Sync {
    /// Its registry line.
    fn method(&self) -> &'static Method;
    /// Its settings in a few words, for model cards.
    fn describe(&self) -> String;
    /// What becomes of a model of this shape.
    ///
    /// # Errors
    /// A key of its section that asks for what such a model does not have.
    fn plan(&self, spec: &ModelSpec) -> Result<WholePlan, SettingsError>;
    /// The rewritten model. Parts of it are made as they are asked for, the numbers of one block at a time.
    ///
    /// # Errors
    /// If the source cannot say what the rewriting needs to know of it beforehand.
    fn fuse<'a>(
        &self,
        source: &'a mut dyn BlockSource,
        par: Par,
    ) -> Result<Box<dyn BlockSource + 'a>, SourceError>;
}
