//! Random numbers of tests.

use ndarray::{Array1, Array2};

/// A small deterministic source of numbers for tests (xorshift64*); not for anything that reaches a file.
#[derive(Clone, Debug)]
pub struct Numbers(u64);

impl Numbers {
    /// The same seed gives the same numbers.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }
    /// Uniform in `-1..1`.
    pub fn uniform(&mut self) -> f32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let bits = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 40;
        bits as f32 / (1_u64 << 23) as f32 - 1.0
    }
    /// Uniform in `-scale..scale`, `[rows, columns]`.
    pub fn matrix(&mut self, rows: usize, columns: usize, scale: f32) -> Array2<f32> {
        Array2::from_shape_simple_fn((rows, columns), || scale * self.uniform())
    }
    /// Uniform in `centre - scale..centre + scale`, `[length]`.
    pub fn vector(&mut self, length: usize, centre: f32, scale: f32) -> Array1<f32> {
        Array1::from_shape_simple_fn(length, || centre + scale * self.uniform())
    }
    /// Uniform in `0..1`, never 0.
    fn unit(&mut self) -> f64 {
        f64::from(self.uniform()).mul_add(0.5, 0.5 + 2.0_f64.powi(-25))
    }
    /// Standard normal (Box-Muller).
    pub fn normal(&mut self) -> f64 {
        let (u, v) = (self.unit(), self.unit());
        (-2.0 * u.ln()).sqrt() * (std::f64::consts::TAU * v).cos()
    }
    /// Standard normals, `[rows, columns]`.
    pub fn normals(&mut self, rows: usize, columns: usize) -> Array2<f32> {
        Array2::from_shape_simple_fn((rows, columns), || self.normal() as f32)
    }
    /// Activations `[tokens, channels]` whose channels are correlated and differ in size, as those of a language model are.
    pub fn activations(&mut self, tokens: usize, channels: usize) -> Array2<f32> {
        let rank = channels.div_ceil(4).max(1);
        let mix = self.normals(rank, channels);
        let mut x = self.normals(tokens, rank).dot(&mix) + 0.3 * &self.normals(tokens, channels);
        for mut column in x.columns_mut() {
            let size = (0.7 * self.normal()).exp() as f32;
            column.mapv_inplace(|v| v * size);
        }
        x
    }
}
