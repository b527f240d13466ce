use super::*;
use proptest::prelude::*;

/// Pages of a cache of `positions`, filled by a generator; what was not written is NaN.
struct Cache {
    head_dim: usize,
    positions: usize,
    keys: Vec<f32>,
    values: Vec<f32>,
}

impl Cache {
    fn new(positions: usize, head_dim: usize, seed: u64) -> Self {
        let numbers = numbers(2 * positions * head_dim, seed);
        let (keys, values) = numbers.split_at(positions * head_dim);
        Self { head_dim, positions, keys: keys.to_vec(), values: values.to_vec() }
    }
    fn pages(&self) -> Vec<(Vec<f32>, Vec<f32>)> {
        let size = PAGE * self.head_dim;
        let page = |p: usize| {
            let (mut keys, mut values) = (vec![f32::NAN; size], vec![f32::NAN; size]);
            for slot in 0..PAGE.min(self.positions - p * PAGE) {
                for j in 0..self.head_dim {
                    let from = (p * PAGE + slot) * self.head_dim + j;
                    keys[j * PAGE + slot] = self.keys[from];
                    values[slot * self.head_dim + j] = self.values[from];
                }
            }
            (keys, values)
        };
        (0..self.positions.div_ceil(PAGE)).map(page).collect()
    }
    fn attend(&self, q: &[f32], positions: &[usize], window: Option<usize>) -> Vec<f32> {
        let pages = self.pages();
        let look = |p: usize| (PageEntries::Float(&pages[p].0), PageEntries::Float(&pages[p].1));
        let queries = PagedQueries { queries: q, positions, head_dim: self.head_dim, window };
        let mut out = vec![f32::NAN; q.len()];
        attend_paged(&queries, &look, &mut PagedScratch::default(), &mut out);
        out
    }
    /// The definition, in f64.
    fn reference(&self, q: &[f32], position: usize, window: Option<usize>) -> Vec<f64> {
        let d = self.head_dim;
        let row = |x: &[f32], j: usize| x[j * d..(j + 1) * d].iter().map(|&x| f64::from(x)).collect();
        let first = window.map_or(0, |w| (position + 1).saturating_sub(w));
        let scores: Vec<f64> = (first..=position)
            .map(|j| {
                let key: Vec<f64> = row(&self.keys, j);
                let product = q.iter().zip(key).map(|(&q, k)| f64::from(q) * k);
                product.sum::<f64>() / (d as f64).sqrt()
            })
            .collect();
        let max = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = scores.iter().map(|s| (s - max).exp()).sum();
        let mut out = vec![0.0; d];
        for (j, score) in (first..=position).zip(&scores) {
            let value: Vec<f64> = row(&self.values, j);
            for (out, v) in out.iter_mut().zip(value) {
                *out += (score - max).exp() / total * v;
            }
        }
        out
    }
}

fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1_u32 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]
    /// The definition; and the bits of a row alone are those it has among others.
    #[test]
    fn rows_compute_the_definition_each_by_itself(
        past in 0_usize..200, tokens in 1_usize..20, group in 1_usize..8, head_dim in 1_usize..80,
        window in prop::option::of(1_usize..150), seed in any::<u64>(),
    ) {
        let cache = Cache::new(past + tokens, head_dim, seed);
        let positions: Vec<usize> = (0..tokens * group).map(|i| past + i / group).collect();
        let q = numbers(positions.len() * head_dim, seed ^ 5);
        let all = cache.attend(&q, &positions, window);
        for (i, &position) in positions.iter().enumerate() {
            let at = i * head_dim..(i + 1) * head_dim;
            let want = cache.reference(&q[at.clone()], position, window);
            for (got, want) in all[at.clone()].iter().zip(want) {
                prop_assert!((f64::from(*got) - want).abs() < 2e-5, "{got} {want}");
            }
            let alone = cache.attend(&q[at.clone()], &[position], window);
            prop_assert_eq!(&alone[..], &all[at]);
        }
    }
}

/// Codes give the bits of the floats they stand for, in both granularities.
#[test]
fn codes_have_the_bits_of_their_values() {
    let (d, count) = (24, PAGE * 24);
    let level = |i: usize| ((i * 97) % 256) as u8;
    let levels: Vec<u8> = (0..count).map(level).collect();
    let scales: Vec<f32> = numbers(PAGE, 3).iter().map(|x| 0.02 + 0.01 * x).collect();
    let zeros: Vec<f32> = (0..PAGE).map(|i| (100 + i) as f32).collect();
    let mut poison = vec![0.0; PAGE];
    // An unseen position may be anything.
    poison[PAGE - 1] = f32::NAN;
    let by_token = PageEntries::TokenHead { levels: &levels, scales: &scales, zeros: &zeros };
    let by_channel =
        PageEntries::Channel { levels: &levels, scales: &scales, zeros: &zeros, poison: &poison };
    let q = numbers(3 * d, 9);
    for (entries, token) in [(by_token, true), (by_channel, false)] {
        let value = |i: usize, feature: usize, slot: usize| {
            let at = if token { slot } else { feature };
            scales[at] * (f32::from(levels[i]) - zeros[at])
        };
        let keys: Vec<f32> = (0..count).map(|i| value(i, i / PAGE, i % PAGE)).collect();
        let values: Vec<f32> = (0..count).map(|i| value(i, i % d, i / d)).collect();
        let positions = [40, 41, 61];
        let queries = PagedQueries { queries: &q, positions: &positions, head_dim: d, window: None };
        let run = |page: (PageEntries<'_>, PageEntries<'_>)| {
            let mut out = vec![f32::NAN; q.len()];
            attend_paged(&queries, &|_| page, &mut PagedScratch::default(), &mut out);
            out
        };
        let floats = run((PageEntries::Float(&keys), PageEntries::Float(&values)));
        assert_eq!(run((entries, entries)), floats);
        assert!(floats.iter().all(|x| x.is_finite()));
    }
}

#[test]
fn a_row_with_a_nan_is_nan_and_spares_the_others() {
    let mut cache = Cache::new(70, 40, 4);
    // Position 66 alone.
    cache.keys[66 * 40 + 3] = f32::NAN;
    let q = numbers(4 * 40, 8);
    let out = cache.attend(&q, &[64, 65, 66, 69], None);
    assert!(out[..80].iter().all(|x| x.is_finite()) && out[80..].iter().all(|x| x.is_nan()));
}
