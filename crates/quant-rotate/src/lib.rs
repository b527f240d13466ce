//! Rotations and learned transforms before quantisation, on bare matrices.
//!
//! A linear layer `y = x W^T` stays what it is when its input is multiplied by an invertible matrix and its weight by the inverse
//! transpose, `x W^T = (x P) (W P^-T)^T`; outliers spread over many channels, so that few bits hold them. Rows of activations
//! `[tokens, features]` and of weights `[out, in]` are transformed by the same functions.
//!
//! | what | where |
//! |---|---|
//! | Hadamard rotations of any size `K * 2^m`, block-diagonal ones, random signs | [`Hadamard`], [`RandomHadamard`], [`hadamard_core`] |
//! | random orthogonal matrices | [`haar`] |
//! | one matrix for every head, one across heads | [`per_head`], [`across_heads`] and their gradients |
//! | Kronecker transforms, their sizes and gradients | [`Kronecker`], [`kronecker_sides`] |
//! | learned invertible matrices: free with an inverse in f64, or by Cayley transforms | [`Learned`], [`Conditioning`] |
//! | quantisers with learned clipping and straight-through gradients | [`StraightThrough`], [`clip_weight`] |
//! | training: AdamW, a cosine with warm-up, first scales of channels | [`AdamW`], [`CosineSchedule`], [`initial_scales`] |
//! | rotations and permutations fitted to outliers | [`DuQuant`], [`zigzag`] |
//! | transforms that a model applies while it runs, on many rows | [`apply_online`] |
//! | random numbers keyed by seed and name | [`KeyedRandom`] |
//!
//! ```
//! use quant_rotate::ndarray::Array2;
//! use quant_rotate::{Hadamard, Par, RandomHadamard};
//!
//! // One channel of the activations is a hundred times larger than the others.
//! let noise = |i: usize, j: usize| ((i * 7919 + j * 104_729) % 1009) as f32 / 504.5 - 1.0;
//! let x = Array2::from_shape_fn((4, 48), |(t, j)| if j == 5 { 100.0 } else { noise(t, j) });
//! let w = Array2::from_shape_fn((8, 48), |(i, j)| noise(i + 4, j));
//!
//! let rotation = RandomHadamard::new(Hadamard::new(48)?, 48, 0, "blocks.0.down")?;
//! let (mut rotated_x, mut rotated_w) = (x.clone(), w.clone());
//! rotation.apply(rotated_x.view_mut(), Par::Seq);
//! rotation.apply(rotated_w.view_mut(), Par::Seq);
//!
//! let largest = |x: &Array2<f32>| x.iter().fold(0.0_f32, |a, b| a.max(b.abs()));
//! assert!(largest(&rotated_x) < largest(&x) / 5.0);
//! let change = rotated_x.dot(&rotated_w.t()) - x.dot(&w.t());
//! assert!(largest(&change) < 1e-4);
//! # Ok::<(), quant_rotate::RotateError>(())
//! ```
//!
//! # Same input, same bytes
//! Rows are transformed alike on any number of threads, sums are those of `quant-kernels`, and random numbers depend on a seed
//! and a name only.
#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod dense;
mod duquant;
mod error;
mod hadamard;
mod heads;
mod kronecker;
mod learned;
mod online;
mod optimiser;
mod orthogonal;
mod random;
mod runs;
mod scales;
mod straight;

pub use duquant::{DuQuant, DuQuantSettings, outlier_rotation, zigzag};
pub use error::RotateError;
pub use hadamard::{Hadamard, RandomHadamard, hadamard_core};
pub use heads::{across_heads, across_heads_gradient, per_head, per_head_gradient};
pub use kronecker::{Kronecker, KroneckerGradient, kronecker_sides};
pub use learned::{Conditioning, Learned, Parametrisation, Realised};
/// The arrays of the functions here.
pub use ndarray;
pub use online::{apply_online, apply_online_per_head};
pub use optimiser::{AdamW, AdamWSettings, CosineSchedule, Update};
pub use orthogonal::haar;
pub use quant_core::{Bits, Variant};
pub use quant_kernels::{Element, Par};
pub use random::KeyedRandom;
pub use scales::initial_scales;
pub use straight::{ClipLogits, QuantGradient, StraightThrough, clip_weight, clip_weight_gradient};
