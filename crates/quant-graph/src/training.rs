//! The seam through which a method trains pieces of its own in a block that it cannot see.

use crate::{BoxError, ForwardError, LinearId, Site};
use ndarray::{Array1, Array2, ArrayView1, ArrayView2};
use quant_core::{Par, Real};
use std::collections::BTreeMap;
use std::fmt;

/// A place of the block's data flow where a method may put a piece of its own.
///
/// A forward comes by in this order: the site of q, k and v and the linears there, queries, keys, values, the site of o and
/// o, the site of gate and up and the linears there, the site of down and down. A backward comes by in the opposite order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Spot {
    /// The common input of the linears of a site, `[tokens, features of the site]`.
    Site(Site),
    /// The input of one linear alone, behind [`Spot::Site`].
    Linear(LinearId),
    /// Queries behind their norm and rope, `[tokens, heads · head_dim]`.
    Query,
    /// Keys behind their norm and rope, `[tokens, kv_heads · head_dim]`.
    Key,
    /// Values behind their projection, `[tokens, kv_heads · head_dim]`.
    Value,
}

/// What a method puts into a block: transforms and quantisers of activations, queries, keys and values.
///
/// It keeps a tape of its own and sums the gradients of its own parameters. Its forward is called with some sequences at
/// a time, spot after spot; where `keep` is said, a backward of the same rows follows. Tapes are stacks: of all calls of
/// one spot that were kept, the last comes back first.
///
/// ```
/// use quant_core::Par;
/// use quant_graph::ndarray::{Array1, Array2, Axis};
/// use quant_graph::{BoxError, Insert, Spot};
///
/// /// Multiplies the channels of queries by learnable factors.
/// struct Diagonal {
///     factors: Array1<f32>,
///     gradient: Array1<f32>,
///     tape: Vec<Array2<f32>>,
/// }
///
/// impl Insert<f32> for Diagonal {
///     fn covers(&self, spot: Spot) -> bool {
///         spot == Spot::Query
///     }
///     fn forward(&mut self, _: Spot, x: Array2<f32>, keep: bool, _: Par) -> Result<Array2<f32>, BoxError> {
///         let y = &x * &self.factors;
///         if keep {
///             self.tape.push(x);
///         }
///         Ok(y)
///     }
///     fn backward(&mut self, _: Spot, grad: Array2<f32>, _: Par) -> Result<Array2<f32>, BoxError> {
///         let x = self.tape.pop().ok_or("a backward without a forward")?;
///         self.gradient += &(&x * &grad).sum_axis(Axis(0));
///         Ok(grad * &self.factors)
///     }
/// }
///
/// let ones = Array1::ones(4);
/// let mut insert = Diagonal { gradient: Array1::zeros(4), factors: ones.clone() * 2.0, tape: Vec::new() };
/// let y = insert.forward(Spot::Query, Array2::ones((3, 4)), true, Par::Seq)?;
/// assert_eq!(insert.backward(Spot::Query, y, Par::Seq)?, Array2::ones((3, 4)) * 4.0);
/// assert_eq!(insert.gradient, ones * 6.0);
/// # Ok::<(), BoxError>(())
/// ```
pub trait Insert<T> {
    /// Whether anything stands at a spot; where nothing does, nothing is called and nothing copied. Asked before every
    /// call, and the same from a forward to its backward.
    fn covers(&self, spot: Spot) -> bool;
    /// What goes on in place of `x`, in its shape. `keep` says that [`Self::backward`] will be called for it.
    ///
    /// # Errors
    /// Whatever a piece cannot do; the pass ends with it as the cause.
    fn forward(&mut self, spot: Spot, x: Array2<T>, keep: bool, par: Par) -> Result<Array2<T>, BoxError>;
    /// The gradient of the loss with respect to what came in at the last forward of this spot that was kept and has not
    /// come back; `grad` is the one with respect to what it gave.
    ///
    /// # Errors
    /// As [`Self::forward`].
    fn backward(&mut self, spot: Spot, grad: Array2<T>, par: Par) -> Result<Array2<T>, BoxError>;
}

/// Nothing at any spot: the block as it is.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoInsert;

impl<T> Insert<T> for NoInsert {
    fn covers(&self, _: Spot) -> bool {
        false
    }
    fn forward(&mut self, _: Spot, x: Array2<T>, _: bool, _: Par) -> Result<Array2<T>, BoxError> {
        Ok(x)
    }
    fn backward(&mut self, _: Spot, grad: Array2<T>, _: Par) -> Result<Array2<T>, BoxError> {
        Ok(grad)
    }
}

/// What a linear multiplies by and adds, in place of its own.
#[derive(Clone, Copy, Debug)]
pub struct EffectiveWeight<'a, T> {
    /// `[out, in]`.
    pub weight: ArrayView2<'a, T>,
    /// `[out]`; none is no bias, also where the model has one.
    pub bias: Option<ArrayView1<'a, T>>,
}

impl<T> EffectiveWeight<'_, T> {
    /// The same for a shorter time.
    #[must_use]
    pub fn view(&self) -> EffectiveWeight<'_, T> {
        EffectiveWeight { weight: self.weight.view(), bias: self.bias.as_ref().map(|b| b.view()) }
    }
}

/// The effective weights of some linears. The others have their own and are frozen: nobody forms their gradients.
pub type EffectiveWeights<'a, T> = BTreeMap<LinearId, EffectiveWeight<'a, T>>;

/// Gradient of the loss with respect to an [`EffectiveWeight`].
#[derive(Clone, Debug, PartialEq)]
pub struct WeightGradient<T> {
    /// `[out, in]`.
    pub weight: Array2<T>,
    /// `[out]`, where a bias was given.
    pub bias: Option<Array1<T>>,
}

/// What a backward through a block gives, beside what the insert has summed.
#[derive(Clone, Debug, PartialEq)]
pub struct BlockGradients<T> {
    /// With respect to the input of the block, `[tokens, hidden]`: the gradient of the output of the block before it.
    pub input: Array2<T>,
    /// Of every effective weight that was given.
    pub weights: BTreeMap<LinearId, WeightGradient<T>>,
}

/// The output of a block, `[tokens, hidden]`, and the tape that leads back.
pub type Recorded<'s, T> = (Array2<T>, Box<dyn BlockTape<T> + 's>);

/// Runs one decoder block forward and backward with effective weights and a method's pieces in it.
///
/// `x` is the residual stream `[tokens, hidden]`; `starts` holds the first row of every sequence and the number of rows at
/// the end, and each sequence begins at its first position.
pub trait BlockTraining<T: Real>: Sync {
    /// The output of the block, `[tokens, hidden]`, when no backward follows.
    ///
    /// # Errors
    /// If shapes do not fit the block, it lacks a weight, or the insert fails.
    fn forward(
        &self,
        x: ArrayView2<'_, T>,
        starts: &[usize],
        with: &EffectiveWeights<'_, T>,
        insert: &mut dyn Insert<T>,
        par: Par,
    ) -> Result<Array2<T>, ForwardError>;
    /// The same output, and the tape that leads back.
    ///
    /// # Errors
    /// As [`Self::forward`].
    fn record<'s, 'w: 's>(
        &'s self,
        x: ArrayView2<'s, T>,
        starts: &'s [usize],
        with: &'s EffectiveWeights<'w, T>,
        insert: &mut dyn Insert<T>,
        par: Par,
    ) -> Result<Recorded<'s, T>, ForwardError>;
}

/// What [`BlockTraining::record`] remembers of a forward.
pub trait BlockTape<T: Real>: fmt::Debug {
    /// The gradients of a loss whose gradient with respect to the output of the block is `grad` `[tokens, hidden]`. `insert`
    /// is the one of the forward; it may be asked for a forward again, where activations were not kept.
    ///
    /// # Errors
    /// As [`BlockTraining::forward`].
    fn backward(
        self: Box<Self>,
        grad: Array2<T>,
        insert: &mut dyn Insert<T>,
        par: Par,
    ) -> Result<BlockGradients<T>, ForwardError>;
}
