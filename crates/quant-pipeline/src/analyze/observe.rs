//! How the activations of a block are distributed.

use crate::PipelineError;
use ndarray::{ArrayView2, Axis, Slice};
use quant_eval::{Distribution, Spread};
use quant_graph::{BlockParams, KvScheme, ModelSpec, Site};
use quant_kernels::Par;
use quant_model::{Block, RopeTables};
use serde::Serialize;
use std::collections::BTreeMap;

/// A place of a block where activations are quantised.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// The input of q, k and v, behind the transforms that run there.
    AttentionInput,
    /// The input of o.
    AttentionOutput,
    /// The input of gate and up.
    MlpInput,
    /// The input of down.
    MlpActivation,
    /// Keys as the quantiser of the cache takes them.
    Keys,
    /// Values as the quantiser of the cache takes them.
    Values,
}

impl From<Site> for Place {
    fn from(site: Site) -> Self {
        match site {
            Site::AttentionInput => Self::AttentionInput,
            Site::AttentionOutput => Self::AttentionOutput,
            Site::MlpInput => Self::MlpInput,
            Site::MlpActivation => Self::MlpActivation,
        }
    }
}

impl Place {
    /// What reads there, in a word or two.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::AttentionInput => "q, k, v",
            Self::AttentionOutput => "o",
            Self::MlpInput => "gate, up",
            Self::MlpActivation => "down",
            Self::Keys => "keys",
            Self::Values => "values",
        }
    }
}

/// The activations at one place of a block, before and after each transform.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Observed {
    /// The place.
    pub place: Place,
    /// First of the float model, then behind each transform in its order.
    pub steps: Vec<StepSpread>,
}

/// One step of them.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StepSpread {
    /// `float`, the transform behind which they are, or `folder`.
    pub after: String,
    /// How they are distributed.
    #[serde(flatten)]
    pub spread: Spread,
}

/// Distributions at every place of a block that runs.
pub(super) struct Observer {
    kv: Option<KvScheme>,
    seen: BTreeMap<Place, Distribution>,
}

impl Observer {
    /// For the blocks of a model whose cache is quantised by `kv`.
    pub(super) fn new(spec: &ModelSpec, kv: Option<KvScheme>) -> Self {
        let site = |site: Site| (Place::from(site), Distribution::new(spec.site_width(site)));
        let mut seen: BTreeMap<_, _> = Site::ALL.into_iter().map(site).collect();
        if kv.is_some() {
            seen.extend([Place::Keys, Place::Values].map(|p| (p, Distribution::new(spec.kv_width()))));
        }
        Self { kv, seen }
    }

    /// Bytes of one, and of what its tasks hold while it takes in rows of the widest place.
    pub(super) fn bytes(spec: &ModelSpec, kv: bool) -> [u64; 2] {
        let sites = Site::ALL.map(|site| spec.site_width(site));
        let widest = sites.into_iter().max().unwrap_or(0);
        let cache = std::iter::repeat_n(spec.kv_width(), if kv { 2 } else { 0 });
        let all = sites.into_iter().chain(cache).map(Distribution::bytes).sum::<usize>();
        [all as u64, Distribution::workspace_bytes(widest) as u64]
    }

    /// Takes in rows `x` of a stage's input. Where they are the first stage's they are whole sequences that begin at `starts`,
    /// counted from the first of them, for whose lengths `rope` has tables.
    pub(super) fn see(
        &mut self,
        block: &Block<f32>,
        site: Site,
        x: ArrayView2<'_, f32>,
        (starts, rope): (&[usize], &RopeTables),
        par: Par,
    ) -> Result<(), PipelineError> {
        self.add(site.into(), x, par);
        let Some(kv) = self.kv.filter(|_| site == Site::AttentionInput) else { return Ok(()) };
        let first = starts.first().copied().unwrap_or(0);
        for ends in starts.windows(2) {
            let rows = x.slice_axis(Axis(0), Slice::from(ends[0] - first..ends[1] - first));
            let [keys, values] = block.cache_entries(rows, rope.table(rows.nrows()), &kv, par)?;
            self.add(Place::Keys, keys.view(), par);
            self.add(Place::Values, values.view(), par);
        }
        Ok(())
    }

    fn add(&mut self, place: Place, x: ArrayView2<'_, f32>, par: Par) {
        if let Some(seen) = self.seen.get_mut(&place) {
            seen.add(x, par);
        }
    }

    /// What was seen, as the next step of each place.
    pub(super) fn into_steps(self, after: &str, observed: &mut Vec<Observed>) {
        for (place, seen) in self.seen {
            let step = StepSpread { after: after.to_owned(), spread: seen.spread() };
            match observed.iter_mut().find(|known| known.place == place) {
                Some(known) => known.steps.push(step),
                None => observed.push(Observed { place, steps: vec![step] }),
            }
        }
    }
}

/// A block without quantisers of activations, so that what is seen in it comes of its weights and transforms alone.
pub(super) fn unquantised(mut block: BlockParams) -> BlockParams {
    block.kv = None;
    block.linears.values_mut().for_each(|linear| linear.input = None);
    block
}
