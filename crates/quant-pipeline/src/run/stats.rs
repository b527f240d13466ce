//! Quantisers of inputs and cache from what was gathered.

use crate::plan::Plan;
use ndarray::ArrayView2;
use quant_core::{ActQuant, Bits, ChannelRanges, FloatType, KvQuant};
use quant_graph::{Clipping, InputScheme, KvScheme, ModelSpec};
use quant_kernels::vectorized;
use quant_methods::Gathered;

/// The quantiser of a linear's input, by its scheme and, where it is static, by the range that was gathered; one that was
/// learned stays.
pub(super) fn input_quant(
    scheme: InputScheme,
    learned: Option<ActQuant>,
    gathered: &Gathered,
    scale_type: FloatType,
) -> Option<ActQuant> {
    learned.or_else(|| scheme.dynamic()).or_else(|| {
        let params = gathered.range()?.params(scheme.bits, scheme.rule, scale_type);
        Some(ActQuant::Static { bits: scheme.bits, params })
    })
}

/// Ranges of every channel of keys and of values.
pub(super) struct KvRanges {
    keys: ChannelRanges,
    values: ChannelRanges,
}

impl KvRanges {
    pub(super) fn new(spec: &ModelSpec) -> Self {
        let side = || ChannelRanges::new(spec.kv_width());
        Self { keys: side(), values: side() }
    }

    /// Takes in keys and values of one sequence, `[tokens, kv_heads · head_dim]`.
    pub(super) fn observe(&mut self, keys: ArrayView2<'_, f32>, values: ArrayView2<'_, f32>) {
        vectorized(
            #[inline(always)]
            || {
                self.keys.observe(keys);
                self.values.observe(values);
            },
        );
    }

    /// The quantiser by a scheme.
    pub(super) fn quant(&self, scheme: KvScheme, plan: &Plan) -> Option<KvQuant> {
        scheme.quant(Some([&self.keys, &self.values]), plan.scale_type)
    }
}

/// The quantiser of a cache that needs no data. Where clip ratios are learned it is that of a block in which none were.
pub(super) fn dynamic_kv(plan: &Plan) -> Option<KvQuant> {
    let mut scheme = plan.scheme.kv?;
    if scheme.clip_ratio.fixed().is_none() {
        scheme.clip_ratio = Clipping::NONE;
    }
    scheme.quant(None, plan.scale_type)
}

/// `W8A8g32`-like text of one linear.
pub(super) fn scheme_text(weights: Option<Bits>, group: Option<usize>, input: Option<Bits>) -> String {
    quant_core::Scheme { weights, group, activations: input, kv_cache: None }.to_string()
}
