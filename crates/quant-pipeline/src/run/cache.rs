//! The quantiser of a block's cache from the deployed stream, and how hard its keys are to quantise.

use super::Run;
use super::stats::KvRanges;
use super::stream::ActivationStream;
use crate::PipelineError;
use crate::report::CacheReport;
use ndarray::Array2;
use quant_core::KvQuant;
use quant_core::elementary::ln;
use quant_graph::{KvScheme, Site};
use quant_kernels::vectorized;
use quant_model::Block;
use std::ops::Range;
use std::time::Instant;

impl Run<'_> {
    /// Takes the deployed stream through attention of `block`, whose linears are set, and gives the quantiser of the cache,
    /// which attention sees if the recipe says so: `dynamic` if it needs no ranges.
    pub(super) fn advance_cached(
        &mut self,
        index: usize,
        scheme: KvScheme,
        dynamic: Option<KvQuant>,
        block: &mut Block<f32>,
        deployed: &mut ActivationStream,
    ) -> Result<Option<KvQuant>, PipelineError> {
        let plan = self.plan;
        let ahead = self.cache_ahead(block, dynamic, deployed)?;
        block.set_kv(ahead.clone().filter(|_| plan.cache_in_calibration()))?;
        // What attention sees while it runs is enough for ranges that nothing of it depends on.
        let mut passing = ahead.is_none().then(|| KvRanges::new(&plan.spec));
        deployed.advance(self, index, Site::AttentionInput, block, passing.as_mut())?;
        block.set_kv(None)?;
        let kv = ahead.or_else(|| passing?.quant(scheme, plan));
        if let Some(kv) = &kv {
            self.measure_cache(&scheme, kv, block, deployed)?;
        }
        Ok(kv)
    }

    /// The float block with the cache that attention of the deployed stream sees, by the ranges of the float block's own keys
    /// and values.
    pub(super) fn cached_ahead(
        &mut self,
        block: &Block<f32>,
        dynamic: Option<&KvQuant>,
        deployed: &ActivationStream,
    ) -> Result<Block<f32>, PipelineError> {
        let mut cached = block.clone();
        if self.plan.cache_in_calibration() {
            cached.set_kv(self.cache_ahead(block, dynamic.cloned(), deployed)?)?;
        }
        Ok(cached)
    }

    /// The quantiser of the cache before attention has run; none where attention is to show the ranges.
    fn cache_ahead(
        &mut self,
        block: &Block<f32>,
        dynamic: Option<KvQuant>,
        deployed: &ActivationStream,
    ) -> Result<Option<KvQuant>, PipelineError> {
        match self.plan.cache_ahead() {
            Some(scheme) => Ok(self.cache_ranges(&scheme, block, deployed)?.quant(scheme, self.plan)),
            None => Ok(dynamic),
        }
    }

    /// Ranges of all keys and values that a block with its linears makes of the stream, as a quantiser by `scheme` takes them:
    /// a pass over k and v alone.
    fn cache_ranges(
        &mut self,
        scheme: &KvScheme,
        block: &Block<f32>,
        stream: &ActivationStream,
    ) -> Result<KvRanges, PipelineError> {
        self.phase("cache ranges")?;
        let started = Instant::now();
        let mut ranges = KvRanges::new(&self.plan.spec);
        for chunk in &self.layout.chunks {
            self.go_on()?;
            self.entries(scheme, block, stream, chunk, &mut |[keys, values]| {
                ranges.observe(keys.view(), values.view());
            })?;
        }
        self.spent("cache ranges", started);
        Ok(ranges)
    }

    /// Shows keys and values of every sequence of a chunk, `[tokens, kv_heads · head_dim]`, as a quantiser by `scheme` takes them.
    fn entries(
        &self,
        scheme: &KvScheme,
        block: &Block<f32>,
        stream: &ActivationStream,
        chunk: &Range<usize>,
        see: &mut dyn FnMut([Array2<f32>; 2]),
    ) -> Result<(), PipelineError> {
        let x = stream.input(self, Site::AttentionInput, block, chunk)?;
        let first = self.layout.rows_of(chunk).start;
        for ends in self.layout.starts_of(chunk).windows(2) {
            let rows = x.slice_axis(ndarray::Axis(0), (ends[0] - first..ends[1] - first).into());
            see(block.cache_entries(rows, self.rope.table(rows.nrows()), scheme, self.par())?);
        }
        Ok(())
    }

    /// What the quantiser of a block's cache does to the keys of the first chunk of tokens.
    fn measure_cache(
        &mut self,
        scheme: &KvScheme,
        quant: &KvQuant,
        block: &Block<f32>,
        stream: &ActivationStream,
    ) -> Result<(), PipelineError> {
        let Some(chunk) = self.layout.chunks.first() else { return Ok(()) };
        let started = Instant::now();
        let mut measured = KeyMeasure::default();
        let head_dim = self.plan.spec.head_dim;
        self.entries(scheme, block, stream, chunk, &mut |[keys, _]| measured.add(keys, quant, head_dim))?;
        // A block that passes again after a break was measured before.
        let caches = &mut self.state.report.caches;
        if caches.iter().all(|known| known.block != block.index()) {
            caches.push(measured.report(block.index()));
        }
        self.spent("measure", started);
        Ok(())
    }
}

/// Sums over keys, in the order of the tokens.
#[derive(Default)]
struct KeyMeasure {
    signal: f64,
    noise: f64,
    magnitudes: Vec<f32>,
}

impl KeyMeasure {
    fn add(&mut self, keys: Array2<f32>, quant: &KvQuant, head_dim: usize) {
        let mut held = keys.clone();
        vectorized(
            #[inline(always)]
            || quant.keys.fake_quantize(head_dim, held.view_mut()),
        );
        for (&held, &key) in held.iter().zip(&keys) {
            self.signal += f64::from(key).powi(2);
            self.noise += (f64::from(held) - f64::from(key)).powi(2);
        }
        self.magnitudes.extend(keys.iter().map(|k| k.abs()));
    }

    fn report(mut self, block: usize) -> CacheReport {
        let largest = self.magnitudes.iter().copied().fold(0.0, f32::max);
        let middle = self.magnitudes.len() / 2;
        let median = match self.magnitudes.len() {
            0 => 0.0,
            _ => *self.magnitudes.select_nth_unstable_by(middle, f32::total_cmp).1,
        };
        CacheReport {
            block,
            key_outliers: if largest > 0.0 { f64::from(largest) / f64::from(median) } else { 0.0 },
            // Keys that are held as they are have no noise, and no key no signal: neither is a finding.
            key_snr_db: (self.noise > 0.0 && self.signal > 0.0)
                .then(|| 10.0 * ln(self.signal / self.noise) / std::f64::consts::LN_10),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quant_core::{ActRule, Bits, EntryQuant};

    #[test]
    fn keys_are_measured_as_they_are_defined() {
        let entries = |bits| {
            let (bits, rule) = (Bits::new(bits).unwrap(), ActRule::Asymmetric);
            KvQuant::both(EntryQuant::TokenHead { bits, rule, clip_ratio: 1.0.into() })
        };
        let keys = Array2::from_shape_fn((4, 6), |(t, j)| (t * 6 + j) as f32 - 11.0);
        let mut measured = KeyMeasure::default();
        for rows in keys.axis_chunks_iter(ndarray::Axis(0), 2) {
            measured.add(rows.to_owned(), &entries(4), 3);
        }
        let mut held = keys.clone();
        entries(4).keys.fake_quantize(3, held.view_mut());
        let of = |x: Array2<f32>| x.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>();
        let snr = 10.0 * (of(keys.clone()) / of(&held - &keys)).log10();
        let report = measured.report(7);
        assert!((report.key_snr_db.unwrap() - snr).abs() < 1e-9, "{report:?} {snr}");
        // |k| is 0, 1, 1, … 11, 11, 12: the thirteenth of 24 is 6.
        assert_eq!((report.block, report.key_outliers), (7, 2.0));
        let nothing = KeyMeasure::default().report(0);
        assert_eq!((nothing.key_outliers, nothing.key_snr_db), (0.0, None));
    }
}
