//! SliM-LLM: groups of columns with a bit more or a bit less than the nominal width, by their salience.
//!
//! The solver is [`quant_hessian::slim`]; this module gives it a recipe's settings. The search for widths compares outputs on
//! sampled inputs, which it asks for beside the second moments.

use crate::gptq::{DAMPING, FACTOR, factor_workspace};
use crate::rounding::{SCHEME, VARIANT};
use crate::settings::FieldKind;
use crate::{
    Field, Figures, Method, MethodError, MethodKind, Modifier, Operations, PlannedRounding, Prepared,
    Rounded, Rounding, Settings, SettingsError, SiteStatistics, Solver, Spacing, Statistic, Stream,
    WeightSettings, Workspace,
};
use ndarray::{Array2, ArrayView1, ArrayView2};
use quant_core::{ActOrder, Convention, CoreError, FloatType, Variant};
use quant_graph::{WeightForm, WeightScheme, WeightSpec};
use quant_hessian::{
    FactorSettings, Precision, SlimConfig, SlimFactor, slim, slim_most, slim_operations, slim_workspace_bytes,
};
use quant_kernels::Work;
use std::sync::Arc;

/// Registry line.
pub static METHOD: Method = Method {
    id: "slim-llm",
    summary: "GPTQ with a bit more for the most salient groups of columns and a bit less for as many of the least salient",
    source: "arXiv 2405.14917",
    kind: MethodKind::Rounding,
    build: |settings| Ok(Modifier::rounding(Rounds::read(settings)?)),
    fields: &[
        SCHEME,
        Field {
            name: "lambda",
            kind: FieldKind::Number(0.0, 1000.0),
            default: "1.0",
            help: "how much more the error of a salient weight counts in the search for the range of a group",
            run_wide: false,
        },
        DAMPING,
        VARIANT,
    ],
    tier: 1,
};

/// Tokens on which the search of [`Variant::Exact`] compares outputs.
const TOKENS: usize = 512;

/// The modifier of a recipe.
#[derive(Debug)]
struct Rounds {
    weights: WeightSettings,
    lambda: f32,
    factor: FactorSettings,
}

impl Rounds {
    fn read(settings: &Settings) -> Result<Self, SettingsError> {
        let weights = WeightSettings::read_scheme(settings, Convention::QAsym)?;
        if let Some(bits) = weights.scheme.weights.filter(|bits| !(2..=7).contains(&bits.get())) {
            let problem = format!(
                "scheme: W{0} has groups of {1} and {2} bits; use W2 to W7, so that both exist",
                bits.get(),
                bits.get() - 1,
                bits.get() + 1
            );
            return Err(SettingsError::Conflict { path: settings.path().to_owned(), problem });
        }
        Ok(Self {
            weights,
            lambda: settings.number("lambda")? as f32,
            factor: FactorSettings { damping: settings.number("damping")?, ..FactorSettings::default() },
        })
    }
}

impl Rounding for Rounds {
    fn method(&self) -> &'static Method {
        &METHOD
    }
    fn weights(&self) -> &WeightSettings {
        &self.weights
    }
    /// The published code gathers all Hessians of a block in one pass.
    fn true_sequential(&self) -> bool {
        false
    }
    fn plan(
        &self,
        weight: WeightSpec<'_>,
        scale_type: FloatType,
    ) -> Result<Option<PlannedRounding>, CoreError> {
        let inputs = weight.inputs;
        let stored = self.weights.stored(weight, scale_type, ActOrder::None)?;
        Ok(stored.map(|(grid, weight)| {
            let group = weight.group.unwrap_or(inputs.max(1));
            let mixed = slim_most(inputs.div_ceil(group)) > 0;
            let form = if mixed { WeightForm::MixedInteger } else { weight.form };
            let variant = self.weights.variant;
            let lambda = self.lambda;
            let config = SlimConfig { lambda, variant, scale_type, ..SlimConfig::new(grid.bits, group) };
            let solver = Arc::new(Slim { config, factor: self.factor, mixed });
            PlannedRounding { weight: WeightScheme { form, ..weight }, grid, solver }
        }))
    }
}

/// Arrays from here on always get pages of their own from the allocator (glibc), and leave no hole.
const OWN_PAGES: u64 = 32 << 20;

/// Settings of SliM-LLM on one weight.
#[derive(Clone, Debug, PartialEq)]
pub struct Slim {
    /// Settings of the solver.
    pub config: SlimConfig,
    /// How the Hessian of its input becomes a factor.
    pub factor: FactorSettings,
    /// Whether there are groups enough for different widths.
    pub mixed: bool,
}

/// What the linears of a stage share.
struct State {
    factor: SlimFactor,
    sample: Array2<f32>,
}

impl Slim {
    /// The inputs on which outputs are compared: evenly spaced ones, or all of them as in the published code.
    fn sample(&self) -> Spacing {
        Spacing::AtMost(match self.config.variant {
            Variant::Exact => TOKENS,
            Variant::Official => usize::MAX,
        })
    }
}

impl Solver for Slim {
    fn method(&self) -> &'static Method {
        &METHOD
    }
    fn needs(&self) -> Vec<(Stream, Statistic)> {
        vec![(Stream::Deployed, Statistic::Gram), (Stream::Deployed, Statistic::Sample(self.sample()))]
    }
    fn sharing_key(&self) -> String {
        format!("{:?}, {:?}", self.factor, self.config.variant)
    }
    fn precision(&self) -> Option<Precision> {
        Some(self.factor.precision)
    }
    fn notice(&self) -> Option<&'static str> {
        (!self.mixed).then_some("fewer than four groups of columns: all of them get the same width")
    }
    fn workspace(&self, shape: (usize, usize), tokens: usize) -> Workspace {
        let (_, inputs) = shape;
        let factor = factor_workspace(&self.factor, inputs);
        // The published code factorises a copy first; unlike a sum, a copy is written to as a whole.
        let copy = match self.config.variant {
            Variant::Exact => 0,
            Variant::Official => (inputs * inputs * size_of::<f32>()) as u64,
        };
        // Its search adds 0.01 to a diagonal of any size: with fewer tokens than inputs f32 does not get through.
        let doubled = self.config.variant == Variant::Official && tokens < inputs;
        let retry = if doubled { factor.retry } else { 0 };
        let tokens = self.sample().count(tokens);
        let weight = slim_workspace_bytes(shape, self.config.group, tokens) as u64;
        // Outputs of the last linear leave a hole that those of the next do not fit into, unless they have pages of their own.
        let outputs = (tokens * shape.0 * size_of::<f32>()) as u64;
        let weight = weight + if outputs < OWN_PAGES { outputs } else { 0 };
        Workspace {
            prepare: factor.prepare + copy + retry,
            retry: factor.retry - retry,
            weight,
            thread: 0,
            ..factor
        }
    }
    fn operations(&self, shape: (usize, usize), tokens: usize) -> Operations {
        let factorised = match self.config.variant {
            Variant::Exact => 1.0,
            Variant::Official => 2.0,
        };
        let tokens = self.sample().count(tokens);
        Operations {
            prepare: factorised * FACTOR * (shape.1 as f64).powi(3),
            round: slim_operations(shape, self.config.group, tokens),
        }
    }
    fn prepare(
        &self,
        statistics: &mut SiteStatistics,
        _: usize,
        work: Work<'_>,
    ) -> Result<Prepared, MethodError> {
        let par = work.par;
        let seen = &mut statistics.deployed;
        let sample = seen.take_sample(self.sample(), METHOD.id)?;
        let factor = SlimFactor::new(seen.take_gram(METHOD.id)?, &self.factor, self.config.variant, par)?;
        let report = factor.report().clone();
        Ok(Prepared::new(State { factor, sample }, Some(report)))
    }
    fn round(
        &self,
        weight: ArrayView2<'_, f32>,
        prepared: &Prepared,
        work: Work<'_>,
    ) -> Result<Rounded, MethodError> {
        self.round_linear(weight, None, prepared, work)
    }
    fn round_linear(
        &self,
        weight: ArrayView2<'_, f32>,
        bias: Option<ArrayView1<'_, f32>>,
        prepared: &Prepared,
        work: Work<'_>,
    ) -> Result<Rounded, MethodError> {
        let State { factor, sample } = prepared.state(&METHOD)?;
        let result = slim(weight, factor, sample.view(), bias, &self.config, work)?;
        let loss = Some(result.loss());
        // How clearly the widths were chosen: a flat curve chooses by noise.
        let least = result.divergences.iter().copied().reduce(f64::min);
        let most = result.divergences.iter().copied().reduce(f64::max);
        let mut figures = Figures::new();
        if let (Some(least), Some(most)) = (least, most) {
            let tokens = sample.nrows().max(1) as f64;
            figures.extend([("least_divergence", least / tokens), ("largest_divergence", most / tokens)]);
        }
        Ok(Rounded { loss, figures, ..Rounded::levels(result.matrix) })
    }
}
