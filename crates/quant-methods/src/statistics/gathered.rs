//! The statistics of one stream at one site.

use super::sample::{Sample, Sequences};
use super::{Spacing, Statistic};
use crate::MethodError;
use ndarray::{Array2, ArrayView1, ArrayView2, Axis};
use quant_core::{ChannelMaxima, ChannelMeans, Observer};
use quant_hessian::{CrossGram, Hessian, HessianError};
use quant_kernels::{Compute, Par, tasks, vectorized};

/// The next tokens at a site, `[tokens, width]` of whole sequences.
#[derive(Clone, Copy, Debug)]
pub struct Batch<'a> {
    /// As they arrive.
    pub x: ArrayView2<'a, f32>,
    /// What the linears multiply, where that is something else: moments are of these.
    pub multiplied: Option<ArrayView2<'a, f32>>,
    /// The same tokens of the float model, where both are looked at together.
    pub float: Option<ArrayView2<'a, f32>>,
    /// How many sequences they are.
    pub sequences: usize,
}

impl<'a> Batch<'a> {
    /// Tokens that are multiplied as they arrive, and looked at alone.
    #[must_use]
    pub fn new(x: ArrayView2<'a, f32>, sequences: usize) -> Self {
        Self { x, multiplied: None, float: None, sequences }
    }
}

/// What was asked for of one stream at one site, as far as it has come.
#[derive(Clone, Debug, Default)]
pub struct Gathered {
    max: Option<ChannelMaxima>,
    means: Option<ChannelMeans>,
    range: Option<Observer>,
    gram: Option<Hessian>,
    cross: Option<CrossGram>,
    samples: Vec<Sample>,
    sequences: Vec<Sequences>,
}

/// Channels that one task looks at: whole lines of memory, and enough tasks for many threads.
const STRIP: usize = 256;
/// Observers beside each other at most: a histogram is 4 MiB.
const OBSERVERS: usize = 8;

/// Has as many observers as there are threads look at the tokens, and puts together what they saw, which depends on no order.
fn observe(range: &mut Observer, x: ArrayView2<'_, f32>, par: Par) {
    let rows = x.nrows().div_ceil(par.threads().min(OBSERVERS)).max(1);
    if rows >= x.nrows() {
        return vectorized(
            #[inline(always)]
            || range.observe(x),
        );
    }
    let seen = tasks::map(x.axis_chunks_iter(Axis(0), rows), par, |x| {
        let mut range = Observer::new(range.kind());
        vectorized(
            #[inline(always)]
            || range.observe(x),
        );
        range
    });
    seen.iter().for_each(|part| range.merge(part));
}

impl Gathered {
    /// Room for these statistics of activations `[tokens, width]` of sequences with the first rows `starts` (and the number of
    /// rows at the end). Statistics that are asked for twice are gathered once.
    #[must_use]
    pub fn new(statistics: &[Statistic], width: usize, starts: &[usize]) -> Self {
        let tokens = starts.last().copied().unwrap_or(0);
        let mut all = Self::default();
        for (i, statistic) in statistics.iter().enumerate() {
            if statistics[..i].contains(statistic) {
                continue;
            }
            match *statistic {
                Statistic::ChannelMax => all.max = Some(ChannelMaxima::new(width)),
                Statistic::ChannelMeanAbs => all.means = Some(ChannelMeans::new(width)),
                Statistic::Range(kind) => all.range = Some(Observer::new(kind)),
                Statistic::Gram => all.gram = Some(Hessian::new(width)),
                Statistic::CrossGram { .. } => {
                    // Who needs less is served by more.
                    let below = |s: &Statistic| matches!(s, Statistic::CrossGram { below: true, .. });
                    all.cross = Some(CrossGram::new(width, statistics.iter().any(below)));
                }
                Statistic::Sample(spacing) => all.samples.push(Sample::new(spacing, tokens, width)),
                Statistic::Sequences { tokens } => all.sequences.push(Sequences::new(tokens, starts, width)),
            }
        }
        all
    }

    /// Bytes that [`Self::new`] of the same arguments holds when all tokens have passed.
    #[must_use]
    pub fn bytes(statistics: &[Statistic], width: usize, starts: &[usize]) -> usize {
        const F32: usize = size_of::<f32>();
        let tokens = starts.last().copied().unwrap_or(0);
        let of = |statistic: &Statistic| match *statistic {
            Statistic::ChannelMax => F32 * width,
            Statistic::ChannelMeanAbs => size_of::<f64>() * width,
            Statistic::Range(_) => 0,
            Statistic::Gram => Hessian::bytes_for(width),
            Statistic::CrossGram { below, .. } => CrossGram::bytes_for(width, below),
            Statistic::Sample(spacing) => F32 * width * spacing.count(tokens),
            Statistic::Sequences { tokens } => F32 * width * Sequences::count(tokens, starts),
        };
        let first = |(i, s): &(usize, &Statistic)| !statistics[..*i].contains(s);
        statistics.iter().enumerate().filter(first).map(|(_, s)| of(s)).sum()
    }

    /// Whether anything is gathered.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.max.is_none()
            && self.means.is_none()
            && self.range.is_none()
            && self.gram.is_none()
            && self.cross.is_none()
            && self.samples.is_empty()
            && self.sequences.is_empty()
    }

    /// Takes in the next tokens.
    ///
    /// # Errors
    /// Activations of another width than was said; a cross statistic without the float tokens.
    pub fn add(&mut self, batch: &Batch<'_>, compute: Compute, par: Par) -> Result<(), HessianError> {
        let Batch { x, multiplied, float, sequences } = *batch;
        let seen = multiplied.unwrap_or(x);
        if let Some(max) = &mut self.max {
            tasks::for_each(max.strips(x, STRIP), par, |strip| {
                vectorized(
                    #[inline(always)]
                    || strip.observe(),
                );
            });
        }
        if let Some(means) = &mut self.means {
            tasks::for_each(means.strips(x, STRIP), par, |strip| {
                vectorized(
                    #[inline(always)]
                    || strip.observe(),
                );
            });
        }
        if let Some(gram) = &mut self.gram {
            gram.add(seen, sequences, compute, par)?;
        }
        if let Some(cross) = &mut self.cross {
            let float = float.ok_or_else(|| HessianError::Shape {
                what: "activations of the float model",
                expected: format!("{:?}", x.dim()),
                found: "none".to_owned(),
            })?;
            cross.add(float, seen, sequences, compute, par)?;
        }
        if let Some(range) = &mut self.range {
            observe(range, x, par);
        }
        self.samples.iter_mut().for_each(|sample| sample.add(x));
        self.sequences.iter_mut().for_each(|kept| kept.add(x));
        Ok(())
    }

    /// What the statistics are when every channel of the activations is divided by its factor, `[width]`.
    ///
    /// # Errors
    /// [`MethodError::Unscalable`] for a statistic that does not follow: it has to be gathered again.
    pub fn divide(&mut self, factors: ArrayView1<'_, f32>) -> Result<(), MethodError> {
        if self.range.is_some() || self.cross.is_some() {
            return Err(MethodError::Unscalable);
        }
        if let Some(gram) = &mut self.gram {
            gram.divide(factors);
        }
        if let Some(max) = &mut self.max {
            max.divide(factors);
        }
        if let Some(means) = &mut self.means {
            means.divide(factors);
        }
        self.samples.iter_mut().for_each(|sample| sample.divide(factors));
        self.sequences.iter_mut().for_each(|kept| kept.divide(factors));
        Ok(())
    }

    /// Largest `|x|` of every channel, if it was asked for.
    #[must_use]
    pub fn channel_max(&self) -> Option<&ChannelMaxima> {
        self.max.as_ref()
    }
    /// Mean `|x|` of every channel, if it was asked for.
    #[must_use]
    pub fn channel_means(&self) -> Option<&ChannelMeans> {
        self.means.as_ref()
    }
    /// The range of the tensor, if it was asked for.
    #[must_use]
    pub fn range(&self) -> Option<&Observer> {
        self.range.as_ref()
    }
    /// The second moments, if they were asked for.
    #[must_use]
    pub fn gram(&self) -> Option<&Hessian> {
        self.gram.as_ref()
    }
    /// Takes the second moments out for a method that asked for them: whoever factorises them frees them on the way.
    ///
    /// # Errors
    /// [`MethodError::MissingStatistic`].
    pub fn take_gram(&mut self, method: &'static str) -> Result<Hessian, MethodError> {
        self.gram.take().ok_or_else(|| MethodError::missing(method, "second moments"))
    }
    /// Takes the cross moments out for a method that asked for them.
    ///
    /// # Errors
    /// [`MethodError::MissingStatistic`].
    pub fn take_cross(&mut self, method: &'static str) -> Result<CrossGram, MethodError> {
        self.cross.take().ok_or_else(|| MethodError::missing(method, "cross moments with the float model"))
    }
    /// Sampled tokens `[tokens, width]`, if this sample was asked for.
    #[must_use]
    pub fn sample(&self, spacing: Spacing) -> Option<ArrayView2<'_, f32>> {
        self.samples.iter().find(|s| s.spacing() == spacing).map(Sample::view)
    }
    /// Takes sampled tokens `[tokens, width]` out for a method that asked for this sample.
    ///
    /// # Errors
    /// [`MethodError::MissingStatistic`].
    pub fn take_sample(
        &mut self,
        spacing: Spacing,
        method: &'static str,
    ) -> Result<Array2<f32>, MethodError> {
        let at = self.samples.iter().position(|s| s.spacing() == spacing);
        let at = at.ok_or_else(|| MethodError::missing(method, "sampled inputs"))?;
        Ok(self.samples.remove(at).into_rows())
    }
    /// Any sampled tokens.
    #[must_use]
    pub fn any_sample(&self) -> Option<ArrayView2<'_, f32>> {
        self.samples.first().map(Sample::view)
    }
    /// Beginnings of sequences, if that many tokens of them were asked for.
    #[must_use]
    pub fn sequences(&self, tokens: usize) -> Option<&Sequences> {
        self.sequences.iter().find(|s| s.limit() == tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::Axis;
    use quant_core::ObserverKind;
    use quant_testkit::Numbers;

    /// Every statistic of channels and ranges, to the bit, on any number of threads and with columns that do not fill a strip.
    #[test]
    fn threads_do_not_show() {
        let x = Numbers::new(5).activations(300, 2 * STRIP + 7);
        let starts = [0, 100, 300];
        for kind in [ObserverKind::Minmax, ObserverKind::Percentile, ObserverKind::Mse] {
            let statistics = [Statistic::ChannelMax, Statistic::ChannelMeanAbs, Statistic::Range(kind)];
            let gather = |par: Par| {
                let mut all = Gathered::new(&statistics, x.ncols(), &starts);
                for batch in x.axis_chunks_iter(Axis(0), 150) {
                    all.add(&Batch::new(batch, 1), Compute::F32, par).unwrap();
                }
                all
            };
            let one = gather(Par::Seq);
            let (bits, rule) = (quant_core::Bits::new(8).unwrap(), quant_core::ActRule::Asymmetric);
            let params = |all: &Gathered| all.range().unwrap().params(bits, rule, quant_core::FloatType::F32);
            for threads in [2, 3, 16] {
                let many = gather(Par::new(threads));
                assert_eq!(many.channel_max(), one.channel_max());
                assert_eq!(many.channel_means(), one.channel_means());
                assert_eq!(many.range().unwrap().extremes(), one.range().unwrap().extremes());
                assert_eq!(params(&many), params(&one), "{kind:?}, {threads} threads");
            }
        }
    }

    #[test]
    fn a_nan_that_one_thread_sees_stays() {
        let mut x = Array2::<f32>::ones((64, 10));
        x[(50, 3)] = f32::NAN;
        let mut all = Gathered::new(&[Statistic::Range(ObserverKind::Minmax)], 10, &[0, 64]);
        all.add(&Batch::new(x.view(), 1), Compute::F32, Par::new(4)).unwrap();
        assert!(all.range().unwrap().extremes().0.is_nan());
    }
}
