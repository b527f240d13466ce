//! A processor that runs the operators of a model: the host's, or a device beside it.

use std::fmt::Debug;

use ndarray::{Array1, ArrayView2, ArrayViewMut2};

use super::{DynamicQuant, QuantMatmul, QuantizedActivations, Reference, StaticNumerics};
use crate::{Bits, CoreError, FloatType, Par, QParams, QuantizedMatrix};

/// Makes codes of activations under one scale and zero of all tokens.
pub trait StaticQuant: Send + Sync {
    /// Codes of `x` `[tokens, features]` under unsigned parameters: bit for bit those of [`StaticNumerics::quantize`]. A device that has
    /// no f32 input gives those of `x` rounded to the type of its model.
    ///
    /// # Errors
    /// [`CoreError::Processor`] for arithmetic that a device lacks, or what went wrong on it.
    fn quantize_static(
        &self,
        numerics: StaticNumerics,
        bits: Bits,
        params: QParams,
        x: ArrayView2<'_, f32>,
        par: Par,
    ) -> Result<QuantizedActivations, CoreError>;
}

/// What runs the operators of a model.
///
/// ```
/// use quant_core::operators::{Processor, Reference};
///
/// let processor: &dyn Processor = &Reference;
/// assert_eq!((processor.name().as_str(), processor.float_type()), ("reference", None));
/// ```
pub trait Processor: DynamicQuant + StaticQuant + QuantMatmul + Debug {
    /// What reports call it.
    fn name(&self) -> String;

    /// The type that activations have on it; none where they stay f32.
    fn float_type(&self) -> Option<FloatType> {
        None
    }

    /// Told before the weights of a run are prepared: what the run will ask of its memory. One with memory of its own makes its plans for it,
    /// or says here that there is too little, before anything is run.
    ///
    /// # Errors
    /// [`CoreError::Processor`] where its memory does not hold that.
    fn expect(&self, demand: &Demand) -> Result<(), CoreError> {
        let _ = demand;
        Ok(())
    }

    /// An empty cache whose attention runs on the processor. None where it has no such attention, or not for this form: attention then
    /// runs on the host.
    ///
    /// # Errors
    /// What went wrong on the processor.
    fn code_cache(&self, form: &CodeCacheForm) -> Result<Option<Box<dyn CodeCache>>, CoreError> {
        let _ = form;
        Ok(None)
    }

    /// A coded weight `[out, in]` with a bias `[out]`, to multiply floats with. None where it has no product of its own for such
    /// weights: the host then computes it, in the arithmetic of a device.
    ///
    /// # Errors
    /// [`CoreError::Processor`] for a weight that it cannot multiply, or what went wrong on it.
    fn weight_only(
        &self,
        weight: &QuantizedMatrix,
        bias: Option<&Array1<f32>>,
    ) -> Result<Option<Box<dyn WeightOnlyProduct>>, CoreError> {
        let _ = (weight, bias);
        Ok(None)
    }
}

/// What a run asks of the memory of a processor, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Demand {
    /// Coded weights that are prepared at a time, both axes of each rounded up to whole tiles of 32.
    pub weights: u64,
    /// The largest of them.
    pub largest: u64,
    /// Scales, zero levels and biases beside them.
    pub parameters: u64,
    /// Codes and results of the largest step.
    pub step: u64,
    /// Caches of codes, where there are any.
    pub caches: Option<CacheDemand>,
}

/// The caches of a run, all of one form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheDemand {
    /// How many: one of each block.
    pub blocks: usize,
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values.
    pub kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Positions of a page.
    pub page: usize,
    /// Pages of each at most.
    pub pages: usize,
}

/// A coded weight on a processor that floats are multiplied with.
pub trait WeightOnlyProduct: Debug + Send + Sync {
    /// Output and input features.
    fn shape(&self) -> (usize, usize);

    /// `out` `[tokens, out]` becomes the product of `x` `[tokens, in]` and the weight, plus the bias. Activations are rounded to the type of
    /// the processor's model, and so are results.
    ///
    /// # Errors
    /// [`CoreError::Shape`] where they do not fit, or what went wrong on the processor.
    fn forward(&self, x: ArrayView2<'_, f32>, out: ArrayViewMut2<'_, f32>) -> Result<(), CoreError>;
}

/// Scale and zero code of every channel of one side of a cache, `[kv_heads · head_dim]`: a number is `scale · (code − zero)`.
#[derive(Clone, Debug, PartialEq)]
pub struct ChannelCodes {
    /// Scales.
    pub scales: Array1<f32>,
    /// Signed zero codes, whole numbers from −128 to 127.
    pub zeros: Array1<f32>,
}

/// The cache of one block as codes of eight bits with fixed parameters of each channel.
#[derive(Clone, Debug, PartialEq)]
pub struct CodeCacheForm {
    /// Heads of queries.
    pub heads: usize,
    /// Heads of keys and values, a divisor of `heads`.
    pub kv_heads: usize,
    /// Channels of a head.
    pub head_dim: usize,
    /// Positions of a page.
    pub page: usize,
    /// Of keys.
    pub keys: ChannelCodes,
    /// Of values.
    pub values: ChannelCodes,
}

/// Where the positions of one sequence lie.
#[derive(Clone, Copy, Debug)]
pub struct Cached<'a> {
    /// Its pages in the order of positions.
    pub pages: &'a [u32],
    /// How many positions it has, the newest included.
    pub length: usize,
}

/// Keys and values of one block as codes, and attention over them where they are.
pub trait CodeCache: Debug + Send + Sync {
    /// Makes room for pages with numbers below `pages`; what is there stays.
    ///
    /// # Errors
    /// [`CoreError::Processor`], its memory for instance.
    fn reserve(&mut self, pages: usize) -> Result<(), CoreError>;

    /// The codes of key and value of one token, `[kv_heads · head_dim]` each, for a slot of a page that there is room for.
    ///
    /// # Errors
    /// [`CoreError::Shape`] for a place that there is no room for or another number of codes.
    fn write(&mut self, page: u32, slot: usize, key: &[i8], value: &[i8]) -> Result<(), CoreError>;

    /// Queries `[sequences, heads · head_dim]` of the newest token of each sequence become what attention gives them,
    /// `softmax(q kᵀ / √head_dim) v` over all positions of the sequence.
    ///
    /// # Errors
    /// [`CoreError::Processor`], or [`CoreError::Shape`] for queries or sequences that do not fit.
    fn attend(&mut self, queries: ArrayViewMut2<'_, f32>, sequences: &[Cached<'_>]) -> Result<(), CoreError>;
}

impl StaticQuant for Reference {
    fn quantize_static(
        &self,
        numerics: StaticNumerics,
        bits: Bits,
        params: QParams,
        x: ArrayView2<'_, f32>,
        _par: Par,
    ) -> Result<QuantizedActivations, CoreError> {
        Ok(numerics.quantize(bits, params, x))
    }
}

impl Processor for Reference {
    fn name(&self) -> String {
        "reference".to_owned()
    }
}
