//! Statistics of one stage's input.

use super::Run;
use crate::PipelineError;
use ndarray::{Array2, ArrayView2};
use quant_core::{ActQuant, Bits, ChannelMaxima, FloatType, KvQuant, Observer};
use quant_graph::{InputScheme, KvScheme, ModelSpec, Site};
use quant_hessian::Hessian;
use quant_model::KvObserver;

/// Tokens on which output errors are measured.
pub(crate) const SAMPLE: usize = 128;

/// What is gathered of a stage's input over all calibration tokens.
pub(super) struct InputStats {
    pub(super) hessian: Option<Hessian>,
    observer: Option<Observer>,
    /// Evenly spaced rows, `[≤ SAMPLE, features]`.
    pub(super) sample: Array2<f32>,
    every: usize,
    seen: usize,
    taken: usize,
}

impl InputStats {
    pub(super) fn new(run: &Run<'_>, block: usize, site: Site) -> Self {
        let width = run.plan.spec.site_width(site);
        let rows = run.layout.rows();
        let every = rows.div_ceil(SAMPLE).max(1);
        let fixed = site
            .stage()
            .linears
            .iter()
            .any(|role| run.plan.blocks[block][role].scheme.input.is_some_and(|i| !i.dynamic));
        Self {
            hessian: run.plan.hessian_at(block, site).then(|| Hessian::new(width)),
            observer: fixed.then(|| Observer::new(run.plan.recipe.activations().observer)),
            sample: Array2::zeros((rows.div_ceil(every), width)),
            every,
            seen: 0,
            taken: 0,
        }
    }

    /// Takes in rows `[tokens, features]` of whole sequences.
    pub(super) fn add(
        &mut self,
        run: &Run<'_>,
        x: ArrayView2<'_, f32>,
        sequences: usize,
        at: &str,
    ) -> Result<(), PipelineError> {
        if let Some(hessian) = &mut self.hessian {
            hessian
                .add(x, sequences, run.plan.recipe.compute(), run.par())
                .map_err(PipelineError::hessian(at))?;
        }
        if let Some(observer) = &mut self.observer {
            observer.observe(x);
        }
        for row in x.rows() {
            if self.seen.is_multiple_of(self.every) {
                self.sample.row_mut(self.taken).assign(&row);
                self.taken += 1;
            }
            self.seen += 1;
        }
        Ok(())
    }

    /// The quantiser of a linear's input.
    pub(super) fn input_quant(&self, scheme: InputScheme, scale_type: FloatType) -> Option<ActQuant> {
        scheme.dynamic().or_else(|| {
            let params = self.observer.as_ref()?.params(scheme.bits, scheme.rule, scale_type);
            Some(ActQuant::Static { bits: scheme.bits, params })
        })
    }
}

/// Largest `|k|` and `|v|` of every cache channel.
pub(super) struct KvMaxima {
    key: ChannelMaxima,
    value: ChannelMaxima,
}

impl KvMaxima {
    pub(super) fn new(spec: &ModelSpec) -> Self {
        Self { key: ChannelMaxima::new(spec.kv_width()), value: ChannelMaxima::new(spec.kv_width()) }
    }

    /// Symmetric scales per channel, rounded to what the loader holds them in.
    pub(super) fn quant(&self, scheme: KvScheme, scale_type: FloatType) -> KvQuant {
        KvQuant::from_maxima(scheme.bits, scheme.rule, scale_type, &self.key, &self.value)
    }
}

impl KvObserver<f32> for KvMaxima {
    fn observe(&mut self, keys: ArrayView2<'_, f32>, values: ArrayView2<'_, f32>) {
        self.key.observe(keys);
        self.value.observe(values);
    }
}

/// A dynamic cache needs no data.
pub(super) fn dynamic_kv(scheme: Option<KvScheme>) -> Option<KvQuant> {
    let scheme = scheme?;
    (scheme.granularity == quant_core::KvGranularity::TokenHead)
        .then_some(KvQuant::TokenHead { bits: scheme.bits, rule: scheme.rule })
}

/// `W8A8g32`-like text of one linear.
pub(super) fn scheme_text(weights: Option<Bits>, group: Option<usize>, input: Option<Bits>) -> String {
    quant_core::Scheme { weights, group, activations: input, kv_cache: None }.to_string()
}
