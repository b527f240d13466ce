//! Quantiles of many non-negative numbers.

/// Bits of a digit of the sort: three digits are the 31 bits of a non-negative number.
const DIGIT: u32 = 11;

/// The bits of non-negative finite numbers, which order as the numbers do, in order.
fn sorted(pieces: &[Vec<f32>]) -> Vec<u32> {
    let mut from = Vec::with_capacity(pieces.iter().map(Vec::len).sum());
    for piece in pieces {
        from.extend(piece.iter().map(|v| v.to_bits() & (u32::MAX >> 1)));
    }
    let mut to = vec![0; from.len()];
    for digit in 0..3 {
        let of = |bits: u32| (bits >> (digit * DIGIT)) as usize & ((1 << DIGIT) - 1);
        let mut ends = [0_usize; 1 << DIGIT];
        for &bits in &from {
            ends[of(bits)] += 1;
        }
        let mut first = 0;
        for end in &mut ends {
            (*end, first) = (first, first + *end);
        }
        for &bits in &from {
            let at = &mut ends[of(bits)];
            to[*at] = bits;
            *at += 1;
        }
        std::mem::swap(&mut from, &mut to);
    }
    from
}

/// The quantiles `at`, linearly interpolated, of non-negative numbers and `zeros` zeros beside them.
pub(super) fn quantiles(pieces: &[Vec<f32>], zeros: usize, at: impl Iterator<Item = f64>) -> Vec<f32> {
    let sorted = sorted(pieces);
    let count = zeros + sorted.len();
    let value = |rank: usize| {
        let bits = rank.checked_sub(zeros).and_then(|i| sorted.get(i));
        bits.map_or(0.0, |&bits| f32::from_bits(bits))
    };
    at.map(|q| {
        let rank = q * count.saturating_sub(1) as f64;
        let below = rank.floor();
        let (low, high) = (value(below as usize), value((below as usize + 1).min(count.saturating_sub(1))));
        low + (high - low) * (rank - below) as f32
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use quant_testkit::Numbers;

    #[test]
    fn quantiles_are_those_of_the_sorted_numbers() {
        for (count, zeros) in [(1, 0), (7, 0), (1000, 0), (1000, 300), (3, 1000)] {
            let mut noise = Numbers::new(count as u64);
            let values: Vec<f32> =
                (0..count).map(|i| noise.uniform().abs() * 10_f32.powi(i % 60 - 30)).collect();
            let mut sorted = [vec![0.0; zeros], values.clone()].concat();
            sorted.sort_by(f32::total_cmp);
            let at = [0.0, 0.1, 0.333, 0.5, 0.9, 1.0];
            for (q, found) in at.into_iter().zip(quantiles(&[values], zeros, at.into_iter())) {
                let rank = q * (sorted.len() - 1) as f64;
                let (low, high) = (sorted[rank.floor() as usize], sorted[rank.ceil() as usize]);
                let wanted = low + (high - low) * (rank - rank.floor()) as f32;
                assert_eq!(found, wanted, "{q} of {count} and {zeros} zeros");
            }
        }
        assert_eq!(quantiles(&[], 0, [0.5].into_iter()), [0.0]);
    }
}
