//! Attention of one query over a cache.

/// One head: scores, softmax and the weighted sum of values, in f32. `keys` and `values` are `[tokens, d]`.
pub(crate) fn one_token(
    query: &[f32],
    keys: &[f32],
    values: &[f32],
    scale: f64,
    round: &dyn Fn(f32) -> f32,
) -> Vec<f32> {
    let d = query.len();
    let tokens = keys.len() / d.max(1);
    let scores: Vec<f32> = (0..tokens)
        .map(|t| (0..d).fold(0.0_f32, |sum, i| sum + query[i] * keys[t * d + i]) * scale as f32)
        .collect();
    let highest = scores.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let weights: Vec<f32> = scores.iter().map(|s| (s - highest).exp()).collect();
    let total: f32 = weights.iter().sum();
    let mut out = vec![0.0_f32; d];
    for t in 0..tokens {
        for i in 0..d {
            out[i] += round(weights[t]) * values[t * d + i];
        }
    }
    out.iter_mut().for_each(|x| *x /= total);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_scores_give_the_mean() {
        let out = one_token(&[0.0, 0.0], &[1.0, 2.0, 3.0, 4.0], &[1.0, 2.0, 3.0, 6.0], 1.0, &|x| x);
        assert_eq!(out, [2.0, 4.0]);
        let out = one_token(&[1.0], &[0.0, 3.0_f32.ln()], &[0.0, 4.0], 1.0, &|x| x);
        assert!((out[0] - 3.0).abs() < 1e-6);
    }
}
