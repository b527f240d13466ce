//! The interface of methods that turn weights into levels, at work: what they ask for, what the linears of a stage share,
//! and the rounding itself.

use crate::{Method, MethodError, SiteStatistics, Statistic, Stream};
use ndarray::{Array1, ArrayView1, ArrayView2};
use quant_graph::LinearWeight;
use quant_hessian::{FactorReport, Precision};
use quant_kernels::{Par, Work};
use std::any::Any;
use std::collections::BTreeMap;
use std::fmt::{self, Debug, Formatter};

/// Figures by name, for reports.
pub type Figures = BTreeMap<&'static str, f64>;

/// A rounded weight and what the method knows about it.
#[derive(Clone, Debug)]
pub struct Rounded {
    /// The stored form.
    pub weight: LinearWeight,
    /// `½ Σ ((w − q)/U_ii)²` of second-order methods.
    pub loss: Option<f64>,
    /// What is to be added to the linear's bias, `[out]`: a correction of the mean error.
    pub bias: Option<Array1<f32>>,
    /// What else the method has to say of this weight, by names of its own.
    pub figures: Figures,
}

impl Rounded {
    /// A stored form, and nothing more to say.
    #[must_use]
    pub fn new(weight: LinearWeight) -> Self {
        Self { weight, loss: None, bias: None, figures: Figures::new() }
    }
    /// Levels, and nothing more to say.
    #[must_use]
    pub fn levels(matrix: quant_core::QuantizedMatrix) -> Self {
        Self::new(LinearWeight::Quantized(matrix))
    }
}

/// What the statistics of a site became, ready for every linear that is fed from it.
#[derive(Default)]
pub struct Prepared {
    state: Option<Box<dyn Any + Send + Sync>>,
    /// What happened while a Hessian was factorised.
    pub factor: Option<FactorReport>,
}

impl Debug for Prepared {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.debug_struct("Prepared").field("factor", &self.factor).finish_non_exhaustive()
    }
}

impl Prepared {
    /// A state of the method's own.
    #[must_use]
    pub fn new(state: impl Any + Send + Sync, factor: Option<FactorReport>) -> Self {
        Self { state: Some(Box::new(state)), factor }
    }
    /// The state, for the method that made it.
    ///
    /// # Errors
    /// [`MethodError::Prepared`] if another has.
    pub fn state<T: Any>(&self, method: &'static Method) -> Result<&T, MethodError> {
        let state = self.state.as_ref().and_then(|state| state.downcast_ref());
        state.ok_or(MethodError::Prepared { method: method.id })
    }
}

/// Bytes that a solver holds besides the statistics it asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Workspace {
    /// While it prepares, the statistics it consumes included.
    pub prepare: u64,
    /// What repeating that in wider numbers takes beyond, should it fail.
    pub retry: u64,
    /// What it has prepared, while the linears are rounded.
    pub prepared: u64,
    /// Beside the weight that is being rounded.
    pub weight: u64,
    /// Of every thread that rounds.
    pub thread: u64,
}

/// Floating-point operations of a solver, as far as they weigh.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Operations {
    /// Products of preparing what the linears of a stage share.
    pub prepare: f64,
    /// Loops over columns, which run below the rate of a product.
    pub round: f64,
}

/// A rounding method on the weights of one stage.
pub trait Solver: Debug + Send + Sync {
    /// Its registry line.
    fn method(&self) -> &'static Method;
    /// What it wants gathered of its input.
    fn needs(&self) -> Vec<(Stream, Statistic)> {
        Vec::new()
    }
    /// Linears of a stage with equal keys share what [`Self::prepare`] makes. Settings that change it are in the key; those
    /// that concern one weight alone are not. Empty where nothing is prepared.
    fn sharing_key(&self) -> String {
        String::new()
    }
    /// Arithmetic of its factorisations, if it makes any.
    fn precision(&self) -> Option<Precision> {
        None
    }
    /// What a person should know of how it rounds, beside what the scheme says.
    fn notice(&self) -> Option<&'static str> {
        None
    }
    /// Bytes it holds for a weight `(out, in)`, given the calibration tokens.
    fn workspace(&self, shape: (usize, usize), tokens: usize) -> Workspace {
        let _ = (shape, tokens);
        Workspace::default()
    }
    /// Calibration tokens that a weight of `inputs` columns should see at least.
    fn tokens_wanted(&self, inputs: usize) -> usize {
        inputs
    }
    /// Operations on a weight `(out, in)`, given the calibration tokens.
    fn operations(&self, shape: (usize, usize), tokens: usize) -> Operations {
        let _ = (shape, tokens);
        Operations::default()
    }
    /// Makes of the statistics what rounding needs, for weights of `rows` rows in all; what is used up is taken out and freed
    /// on the way.
    ///
    /// # Errors
    /// A statistic that was not gathered or is not finite, a Hessian that cannot be factorised.
    fn prepare(
        &self,
        statistics: &mut SiteStatistics,
        rows: usize,
        work: Work<'_>,
    ) -> Result<Prepared, MethodError> {
        let _ = (statistics, rows, work);
        Ok(Prepared::default())
    }
    /// Rounds `weight` `[out, in]`. What takes long asks `work` between its pieces whether to go on.
    ///
    /// # Errors
    /// A NaN in the weight, a state that another method prepared, shapes that do not fit; [`MethodError::Stopped`].
    fn round(
        &self,
        weight: ArrayView2<'_, f32>,
        prepared: &Prepared,
        work: Work<'_>,
    ) -> Result<Rounded, MethodError>;
    /// The same where the linear's `bias` `[out]` is known, for methods that compare outputs.
    ///
    /// # Errors
    /// As [`Self::round`].
    fn round_linear(
        &self,
        weight: ArrayView2<'_, f32>,
        bias: Option<ArrayView1<'_, f32>>,
        prepared: &Prepared,
        work: Work<'_>,
    ) -> Result<Rounded, MethodError> {
        let _ = bias;
        self.round(weight, prepared, work)
    }
    /// What a person should know of a linear of whose rounding this method gave these figures, by their names in
    /// [`Rounded::figures`]: that it went as it should not, and what would help.
    fn doubt(&self, figure: &dyn Fn(&str) -> Option<f64>) -> Option<String> {
        let _ = figure;
        None
    }
    /// Whether [`Self::round`] makes of some rows of a weight what it makes of them within the whole, given the same state: then
    /// a table that is too large for memory can be rounded some rows at a time. Its loss is a sum over rows, and beyond that
    /// nothing is reported and no bias corrected.
    fn rows_alone(&self) -> bool {
        false
    }
    /// A weight `(out, in)` to be rounded as its rows arrive; none for methods that want all of it, or statistics.
    fn by_rows(&self, shape: (usize, usize)) -> Option<Box<dyn RowRounding>> {
        let _ = shape;
        None
    }
}

/// A weight that is rounded some rows at a time: no row needs to know another.
pub trait RowRounding: Send {
    /// Rounds `rows` `[rows, in]`, the first of which is row `first` of the weight.
    ///
    /// # Errors
    /// A NaN or infinity, named by the row of the weight and the column; rows outside the weight.
    fn rows(&mut self, first: usize, rows: ArrayView2<'_, f32>, par: Par) -> Result<(), MethodError>;
    /// The weight so far; rows that have not arrived are zero.
    fn matrix(&self) -> &quant_core::QuantizedMatrix;
    /// The weight, when all rows have arrived.
    fn finish(self: Box<Self>) -> quant_core::QuantizedMatrix;
}
