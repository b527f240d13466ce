//! Quantisers of inputs and cache from what was gathered.

use quant_core::{ActQuant, Bits, ChannelMaxima, FloatType, KvQuant};
use quant_graph::{InputScheme, KvScheme, ModelSpec};
use quant_methods::Gathered;
use quant_model::{KvCache, KvStore};

/// The quantiser of a linear's input, by its scheme and, where it is static, by the range that was gathered.
pub(super) fn input_quant(
    scheme: InputScheme,
    gathered: &Gathered,
    scale_type: FloatType,
) -> Option<ActQuant> {
    scheme.dynamic().or_else(|| {
        let params = gathered.range()?.params(scheme.bits, scheme.rule, scale_type);
        Some(ActQuant::Static { bits: scheme.bits, params })
    })
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

    /// Takes in the keys and values of one sequence.
    pub(super) fn observe(&mut self, cache: &KvCache<f32>) {
        self.key.observe(cache.keys());
        self.value.observe(cache.values());
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
