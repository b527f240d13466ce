//! CPython's `random.Random`, bit for bit.
//!
//! Calibration windows of the published studies are drawn with Python's `random.randint`. Reproducing a
//! calibration set from its seed therefore needs the same Mersenne Twister (MT19937, Matsumoto and Nishimura
//! 1998), the same seeding (`init_by_array` over the 32-bit words of the seed) and the same rejection
//! sampling.

const STATE: usize = 624;
const SHIFT: usize = 397;
const UPPER: u32 = 0x8000_0000;
const LOWER: u32 = 0x7fff_ffff;

/// The generator behind Python's `random` module, for integer seeds.
///
/// ```
/// let mut random = quant_data::PyRandom::seed(0);
/// assert_eq!(random.next_u32(), 3_626_764_237);
/// ```
#[derive(Clone)]
pub struct PyRandom {
    state: [u32; STATE],
    index: usize,
}

impl std::fmt::Debug for PyRandom {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PyRandom").field("index", &self.index).finish_non_exhaustive()
    }
}

impl PyRandom {
    /// The state of `random.seed(seed)` for a non-negative integer of at most 64 bits.
    pub fn seed(seed: u64) -> Self {
        let low = seed as u32;
        let high = (seed >> 32) as u32;
        // Python passes as many 32-bit words as the number needs, and one word for zero.
        let key = if high == 0 { vec![low] } else { vec![low, high] };
        let mut state = [0_u32; STATE];
        state[0] = 19_650_218;
        for i in 1..STATE {
            let previous = state[i - 1] ^ (state[i - 1] >> 30);
            state[i] = previous.wrapping_mul(1_812_433_253).wrapping_add(i as u32);
        }
        let mut i = 1;
        let mut j = 0;
        for _ in 0..STATE.max(key.len()) {
            let previous = state[i - 1] ^ (state[i - 1] >> 30);
            state[i] =
                (state[i] ^ previous.wrapping_mul(1_664_525)).wrapping_add(key[j]).wrapping_add(j as u32);
            i += 1;
            j += 1;
            if i >= STATE {
                state[0] = state[STATE - 1];
                i = 1;
            }
            if j >= key.len() {
                j = 0;
            }
        }
        for _ in 0..STATE - 1 {
            let previous = state[i - 1] ^ (state[i - 1] >> 30);
            state[i] = (state[i] ^ previous.wrapping_mul(1_566_083_941)).wrapping_sub(i as u32);
            i += 1;
            if i >= STATE {
                state[0] = state[STATE - 1];
                i = 1;
            }
        }
        state[0] = UPPER;
        Self { state, index: STATE }
    }

    /// The next 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.index >= STATE {
            self.refill();
        }
        let mut y = self.state[self.index];
        self.index += 1;
        y ^= y >> 11;
        y ^= (y << 7) & 0x9d2c_5680;
        y ^= (y << 15) & 0xefc6_0000;
        y ^ (y >> 18)
    }

    /// `random.getrandbits(bits)` for at most 64 bits; more bits than 64 are taken as 64.
    ///
    /// Up to 32 bits are the top bits of one word; longer numbers are filled from the least significant word,
    /// the last word giving its top bits.
    pub fn getrandbits(&mut self, bits: u32) -> u64 {
        let mut left = bits.min(64);
        let mut value = 0_u64;
        let mut position = 0;
        while left > 0 {
            let take = left.min(32);
            let word = self.next_u32() >> (32 - take);
            value |= u64::from(word) << position;
            position += 32;
            left -= take;
        }
        value
    }

    /// `random.randint(low, high)`: a uniform integer of the closed range, or `None` when the range is empty.
    ///
    /// Draws the bit length of the range's size until the number is inside, as CPython does.
    pub fn randint(&mut self, low: u64, high: u64) -> Option<u64> {
        let span = high.checked_sub(low)?;
        let Some(size) = span.checked_add(1) else {
            // 2^64 values need 65 bits in Python: three words, of which the third gives one bit.
            loop {
                let value = self.getrandbits(64);
                if self.next_u32() >> 31 == 0 {
                    return Some(value);
                }
            }
        };
        let bits = u64::BITS - size.leading_zeros();
        loop {
            let value = self.getrandbits(bits);
            if value < size {
                return Some(low + value);
            }
        }
    }

    fn refill(&mut self) {
        for k in 0..STATE {
            let y = (self.state[k] & UPPER) | (self.state[(k + 1) % STATE] & LOWER);
            let twist = if y & 1 == 1 { 0x9908_b0df } else { 0 };
            self.state[k] = self.state[(k + SHIFT) % STATE] ^ (y >> 1) ^ twist;
        }
        self.index = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Values printed by CPython's `random.Random(seed)`: three 32-bit words, then (from a fresh state) four
    /// times `randint(0, 2497951)`.
    const VECTORS: [(u64, [u32; 3], [u64; 4]); 5] = [
        (0, [3_626_764_237, 1_654_615_998, 3_255_389_356], [1_615_835, 1_764_005, 169_803, 1_085_975]),
        (1, [577_090_037, 2_444_712_010, 3_639_700_191], [563_564, 2_387_414, 264_689, 1_069_837]),
        (42, [2_746_317_213, 478_163_327, 107_420_369], [466_956, 104_902, 1_153_556, 1_027_150]),
        (
            (1 << 40) + 5,
            [2_166_296_868, 2_220_160_828, 1_153_647_273],
            [2_115_524, 2_168_125, 1_126_608, 115_041],
        ),
        (u64::MAX, [93_740_670, 1_068_495_656, 1_452_108_352], [91_543, 1_043_452, 1_418_074, 889_056]),
    ];

    #[test]
    fn words_and_randint_equal_cpython() {
        for (seed, words, integers) in VECTORS {
            let mut random = PyRandom::seed(seed);
            assert_eq!(words, [(); 3].map(|()| random.next_u32()), "seed {seed}");
            let mut random = PyRandom::seed(seed);
            assert_eq!(integers.map(Some), [(); 4].map(|()| random.randint(0, 2_497_951)), "seed {seed}");
        }
    }

    #[test]
    fn getrandbits_equals_cpython() {
        let mut random = PyRandom::seed(42);
        let bits = [1, 5, 31, 33, 40, 64].map(|k| random.getrandbits(k));
        assert_eq!(bits, [1, 3, 53_710_184, 3_184_935_163, 245_864_938_384, 13_585_496_030_504_862_185]);
        assert_eq!(PyRandom::seed(42).getrandbits(0), 0);
    }

    #[test]
    fn ranges_beyond_32_bits_and_tiny_ranges_equal_cpython() {
        let mut random = PyRandom::seed(0);
        assert_eq!([(); 2].map(|()| random.randint(5, 5)), [Some(5), Some(5)]);
        let wide = [(); 3].map(|()| random.randint(0, 1 << 32));
        assert_eq!(wide, [Some(173_879_092), Some(2_087_043_557), Some(3_564_191_072)]);
        let tiny = [(); 8].map(|()| random.randint(10, 13));
        assert_eq!(tiny, [13, 12, 11, 11, 12, 11, 10, 12].map(Some));
        assert_eq!(random.randint(2, 1), None);
    }

    #[test]
    fn the_state_is_refilled_as_in_cpython() {
        let mut random = PyRandom::seed(7);
        let last = (0..2000).map(|_| random.next_u32()).last();
        assert_eq!(last, Some(2_803_521_222));
    }

    proptest! {
        #[test]
        fn randint_stays_in_range(seed: u64, a: u64, b: u64) {
            let (low, high) = (a.min(b), a.max(b));
            let value = PyRandom::seed(seed).randint(low, high).unwrap();
            prop_assert!((low..=high).contains(&value));
        }
    }
}
