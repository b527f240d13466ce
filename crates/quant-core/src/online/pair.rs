//! What queries and keys are multiplied by.

use super::OnlineTransform;
use crate::CoreError;
use crate::codec::{Bytes, Codec};

/// How far `K Qᵀ` of a pair may be from the identity.
const TOLERANCE: f64 = 1e-3;

/// Transforms of keys and queries behind rope, head by head, whose product is the identity, so that scores stay what they are:
/// `(q Q)(k K)ᵀ = q Q Kᵀ kᵀ = q kᵀ`. The cache then holds keys without outliers (QuaRot; FlatQuant's `P_k`).
#[derive(Clone, Debug, PartialEq)]
pub struct PairTransform {
    key: OnlineTransform,
    query: OnlineTransform,
}

impl Codec for PairTransform {
    fn encode(&self, out: &mut Vec<u8>) {
        self.key.encode(out);
        self.query.encode(out);
    }
    fn decode(from: &mut Bytes<'_>) -> Result<Self, CoreError> {
        Self::new(OnlineTransform::decode(from)?, OnlineTransform::decode(from)?)
    }
}

impl PairTransform {
    /// Of rows `[head_dim]`.
    ///
    /// # Errors
    /// [`CoreError::Shape`] if the widths differ, or `K Qᵀ` has an entry that is more than 1e-3 away from that of the identity.
    pub fn new(key: OnlineTransform, query: OnlineTransform) -> Result<Self, CoreError> {
        if key.width() != query.width() {
            return Err(CoreError::Shape {
                what: "the transform of queries",
                expected: format!("the width of that of keys, {}", key.width()),
                found: query.width().to_string(),
            });
        }
        let product = key.dense().dot(&query.dense().t());
        let off = product.indexed_iter().map(|((i, j), v)| (v - f64::from(u8::from(i == j))).abs());
        let worst = off.fold(0.0, f64::max);
        if worst > TOLERANCE {
            return Err(CoreError::Shape {
                what: "the transforms of keys and queries",
                expected: format!("a product within {TOLERANCE} of the identity"),
                found: format!("{worst:.3e} away from it"),
            });
        }
        Ok(Self { key, query })
    }
    /// Of keys, `[head_dim]`.
    #[must_use]
    pub fn key(&self) -> &OnlineTransform {
        &self.key
    }
    /// Of queries, `[head_dim]`.
    #[must_use]
    pub fn query(&self) -> &OnlineTransform {
        &self.query
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::AxisTransform;
    use ndarray::array;

    #[test]
    fn a_pair_keeps_scores() {
        let dense = |m| OnlineTransform::kronecker(vec![AxisTransform::Dense(m)]).unwrap();
        let (key, query) = (dense(array![[2.0, 0.0], [1.0, 0.5]]), dense(array![[0.5, -1.0], [0.0, 2.0]]));
        let pair = PairTransform::new(key.clone(), query.clone()).unwrap();
        let (mut q, mut k) = ([0.3_f64, -1.2], [0.7_f64, 0.4]);
        let score = |q: &[f64], k: &[f64]| q[0] * k[0] + q[1] * k[1];
        let before = score(&q, &k);
        pair.query().apply(&mut q);
        pair.key().apply(&mut k);
        assert!((score(&q, &k) - before).abs() < 1e-12);
        let walsh = |n| OnlineTransform::kronecker(vec![AxisTransform::Walsh(n)]).unwrap();
        let bytes = crate::codec::encoded(&pair);
        assert_eq!(crate::codec::decoded::<PairTransform>(&bytes).unwrap(), pair);
        assert!(PairTransform::new(walsh(2), walsh(2)).is_ok());
        assert!(PairTransform::new(walsh(2), walsh(4)).unwrap_err().to_string().contains("width"));
        assert!(PairTransform::new(key, walsh(2)).unwrap_err().to_string().contains("of the identity"));
    }
}
