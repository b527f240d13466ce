//! Random numbers keyed by a seed and a name.

use quant_core::elementary::{cos, ln};

/// A stream of random numbers that depends on nothing but a seed and a name, such as that of the matrix it is for: what other
/// streams a program draws, and in which order, changes nothing.
///
/// SplitMix64 (Steele, Lea and Flood 2014), started at a hash (FNV-1a) of both. Not for secrets.
///
/// ```
/// use quant_rotate::KeyedRandom;
///
/// let draw = |name| KeyedRandom::new(0, name).bits();
/// assert_eq!(draw("blocks.3.ln"), draw("blocks.3.ln"));
/// assert_ne!(draw("blocks.3.ln"), draw("blocks.4.ln"));
/// ```
#[derive(Clone, Debug)]
pub struct KeyedRandom {
    state: u64,
}

impl KeyedRandom {
    /// The stream of this seed and name.
    #[must_use]
    pub fn new(seed: u64, name: &str) -> Self {
        let fold = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        let hash = seed.to_le_bytes().into_iter().chain(name.bytes()).fold(0xcbf2_9ce4_8422_2325, fold);
        Self { state: mix(hash) }
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        mix(self.state)
    }

    /// 1 or -1.
    pub fn sign(&mut self) -> i8 {
        if self.bits() >> 63 == 0 { 1 } else { -1 }
    }

    /// Uniform in `(0, 1)`, of 53 bits.
    pub fn uniform(&mut self) -> f64 {
        ((self.bits() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64
    }

    /// A standard normal number (Box and Muller 1958).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * ln(self.uniform())).sqrt();
        radius * cos(std::f64::consts::TAU * self.uniform())
    }
}

/// The output function of SplitMix64.
fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers reach outputs: another generator is another format.
    #[test]
    fn bits_are_fixed() {
        let mut random = KeyedRandom::new(7, "model.layers.0.self_attn.q_proj");
        let drawn = [random.bits(), random.bits(), u64::from(random.sign() > 0), random.normal().to_bits()];
        assert_eq!(
            drawn,
            [1_764_566_289_402_744_393, 10_821_378_295_287_464_424, 0, 13_830_693_434_850_104_012]
        );
    }

    #[test]
    fn signs_and_normals_are_balanced() {
        let mut random = KeyedRandom::new(1, "");
        let signs: i32 = (0..40_000).map(|_| i32::from(random.sign())).sum();
        assert!(signs.abs() < 800, "{signs}");
        let normals: Vec<f64> = (0..40_000).map(|_| random.normal()).collect();
        let mean = |power: i32| normals.iter().map(|x| x.powi(power)).sum::<f64>() / 4e4;
        assert!(mean(1).abs() < 0.02 && (mean(2) - 1.0).abs() < 0.03 && (mean(4) - 3.0).abs() < 0.2);
    }
}
