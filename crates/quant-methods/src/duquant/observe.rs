//! What is looked at while the float block runs, and what stands in it as it will be deployed.

use ndarray::{Array1, Array2, ArrayView2, ArrayViewMut2, Axis};
use quant_core::{ActQuant, OnlineTransform};
use quant_graph::{BoxError, Insert, LinearId, Site, Spot};
use quant_kernels::{Par, tasks, vectorized};
use quant_rotate::{apply_online, per_head};
use std::collections::BTreeMap;

/// What the channels of the inputs of sites are divided by, `[width]`.
pub(super) type Scales = BTreeMap<Site, Array1<f32>>;

/// Divides channels by their factors, where they have some.
pub(super) fn divide(mut x: ArrayViewMut2<'_, f32>, scales: Option<&Array1<f32>>) {
    let Some(scales) = scales else { return };
    for mut row in x.rows_mut() {
        row.zip_mut_with(scales, |x, c| *x /= c);
    }
}

/// Raises `maxima` to the magnitudes of columns; one that has seen a NaN stays NaN.
fn raise(maxima: &mut Array1<f32>, x: ArrayView2<'_, f32>) {
    for row in x.rows() {
        maxima.zip_mut_with(&row, |most, x| {
            if x.abs() > *most || x.is_nan() {
                *most = x.abs();
            }
        });
    }
}

/// The largest magnitudes of the channels of some sites, over all tokens that come by, `[width]`: as they arrive, or divided by their
/// factors and behind a first rotation.
#[derive(Default)]
pub(super) struct Maxima<'a> {
    pub(super) scales: Option<&'a Scales>,
    pub(super) rotations: BTreeMap<Site, ArrayView2<'a, f32>>,
    pub(super) of: BTreeMap<Site, Array1<f32>>,
}

impl<'a> Maxima<'a> {
    /// Of these sites, as tokens arrive.
    pub(super) fn of(sites: impl IntoIterator<Item = (Site, usize)>) -> Self {
        let of = sites.into_iter().map(|(site, width)| (site, Array1::zeros(width))).collect();
        Self { of, ..Self::default() }
    }
}

impl Insert<f32> for Maxima<'_> {
    fn covers(&self, spot: Spot) -> bool {
        matches!(spot, Spot::Site(site) if self.of.contains_key(&site))
    }
    fn forward(&mut self, spot: Spot, x: Array2<f32>, _: bool, par: Par) -> Result<Array2<f32>, BoxError> {
        let Spot::Site(site) = spot else { return Ok(x) };
        let Some(maxima) = self.of.get_mut(&site) else { return Ok(x) };
        match self.rotations.get(&site) {
            None => raise(maxima, x.view()),
            Some(rotation) => {
                let mut scaled = x.clone();
                divide(scaled.view_mut(), self.scales.and_then(|scales| scales.get(&site)));
                raise(maxima, per_head(scaled.view(), rotation.view(), par).view());
            }
        }
        Ok(x)
    }
    fn backward(&mut self, _: Spot, grad: Array2<f32>, _: Par) -> Result<Array2<f32>, BoxError> {
        Ok(grad)
    }
}

/// The tokens with the largest values at some sites, divided by their factors.
pub(super) struct Loudest<'a> {
    pub(super) scales: &'a Scales,
    pub(super) of: BTreeMap<Site, Ranking>,
}

impl Insert<f32> for Loudest<'_> {
    fn covers(&self, spot: Spot) -> bool {
        matches!(spot, Spot::Site(site) if self.of.contains_key(&site))
    }
    fn forward(&mut self, spot: Spot, x: Array2<f32>, _: bool, _: Par) -> Result<Array2<f32>, BoxError> {
        if let Spot::Site(site) = spot
            && let Some(ranking) = self.of.get_mut(&site)
        {
            let mut scaled = x.clone();
            divide(scaled.view_mut(), self.scales.get(&site));
            ranking.add(scaled.view());
        }
        Ok(x)
    }
    fn backward(&mut self, _: Spot, grad: Array2<f32>, _: Par) -> Result<Array2<f32>, BoxError> {
        Ok(grad)
    }
}

/// Rows with the largest values of all that come by; of equal ones the earlier.
pub(super) struct Ranking {
    limit: usize,
    width: usize,
    seen: usize,
    /// The largest value, which row it was, and the row.
    rows: Vec<(f32, usize, Array1<f32>)>,
}

impl Ranking {
    /// Of at most `limit` rows of this width.
    pub(super) fn new(limit: usize, width: usize) -> Self {
        Self { limit, width, seen: 0, rows: Vec::new() }
    }
    fn add(&mut self, x: ArrayView2<'_, f32>) {
        for row in x.rows() {
            let peak = row.iter().fold(0.0_f32, |peak, x| peak.max(x.abs()));
            self.rows.push((peak, self.seen, row.to_owned()));
            self.seen += 1;
            if self.rows.len() >= 2 * self.limit {
                self.cut();
            }
        }
    }
    fn cut(&mut self) {
        self.rows.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        self.rows.truncate(self.limit);
    }
    /// The rows in the order in which they came, `[rows, width]`.
    pub(super) fn into_rows(mut self) -> Array2<f32> {
        self.cut();
        self.rows.sort_by_key(|(_, at, _)| *at);
        let mut all = Array2::zeros((self.rows.len(), self.width));
        for (mut to, (_, _, row)) in all.axis_iter_mut(Axis(0)).zip(&self.rows) {
            to.assign(row);
        }
        all
    }
}

/// A block as it will be deployed: factors and transforms at sites, quantisers before linears.
pub(super) struct Deployed<'a> {
    pub(super) scales: &'a Scales,
    pub(super) transforms: &'a BTreeMap<Site, OnlineTransform>,
    pub(super) inputs: BTreeMap<LinearId, ActQuant>,
}

impl Insert<f32> for Deployed<'_> {
    fn covers(&self, spot: Spot) -> bool {
        match spot {
            Spot::Site(site) => self.transforms.contains_key(&site),
            Spot::Linear(id) => self.inputs.contains_key(&id),
            Spot::Query | Spot::Key | Spot::Value => false,
        }
    }
    fn forward(
        &mut self,
        spot: Spot,
        mut x: Array2<f32>,
        _: bool,
        par: Par,
    ) -> Result<Array2<f32>, BoxError> {
        match spot {
            Spot::Site(site) => {
                divide(x.view_mut(), self.scales.get(&site));
                if let Some(transform) = self.transforms.get(&site) {
                    apply_online(transform, x.view_mut(), par);
                }
            }
            Spot::Linear(id) => {
                if let Some(quantiser) = self.inputs.get(&id) {
                    tasks::for_rows(x.view_mut(), par, |_, rows| {
                        vectorized(
                            #[inline(always)]
                            || quantiser.fake_quantize(rows),
                        );
                    });
                }
            }
            Spot::Query | Spot::Key | Spot::Value => {}
        }
        Ok(x)
    }
    fn backward(&mut self, _: Spot, grad: Array2<f32>, _: Par) -> Result<Array2<f32>, BoxError> {
        Ok(grad)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ndarray::array;

    #[test]
    fn the_loudest_rows_are_kept_in_their_order() {
        let x = array![[1.0_f32, 0.0], [0.0, -9.0], [3.0, 1.0], [9.0, 0.0], [2.0, 2.0], [-3.0, 0.0]];
        let mut ranking = Ranking::new(3, 2);
        let (first, second) = x.view().split_at(Axis(0), 4);
        ranking.add(first);
        ranking.add(second);
        // Of the two with 3 the earlier.
        assert_eq!(ranking.into_rows(), array![[0.0, -9.0], [3.0, 1.0], [9.0, 0.0]]);
        assert_eq!(Ranking::new(3, 2).into_rows().dim(), (0, 2));
    }

    #[test]
    fn a_maximum_that_has_seen_a_nan_stays_one() {
        let mut maxima = array![0.0_f32, 0.0];
        raise(&mut maxima, array![[f32::NAN, -2.0], [5.0, 1.0]].view());
        assert!(maxima[0].is_nan());
        assert_eq!(maxima[1], 2.0);
    }
}
