//! The vocabulary and the scalar specification of post-training quantisation.
//!
//! Everything here is plain arithmetic on slices and [`ndarray`] arrays: no threads, no files, no `unsafe`. The other
//! crates execute the same formulas faster; their tests compare with the functions of this one.
//!
//! # One code path for every integer format
//! A quantised value is always `x̂ = s · (level − z)` with an unsigned level in `0..2^b` ([`QParams::level`],
//! [`QParams::value`]). The four published conventions differ only in how the scale `s` and the zero level `z` are found
//! ([`Convention`]); a "signed" symmetric format is the same thing with `z = 2^(b−1)`.
//!
//! # One matrix to 4 bits
//! ```
//! use quant_core::matrix::round_matrix;
//! use quant_core::ndarray::Array2;
//! use quant_core::packing::{pack_rows, unpack_rows};
//! use quant_core::{Grid, Groups};
//!
//! let weight = Array2::from_shape_fn((8, 256), |(i, j)| ((i * 37 + j * 11) % 101) as f32 / 50.0 - 1.0);
//! // A scale and a zero point for every 128 columns of a row.
//! let quantized = round_matrix(&Grid::int4_asym(), None, Groups::Size(128), weight.view())?;
//! assert_eq!((quantized.levels().dim(), quantized.scales().dim()), ((8, 256), (8, 2)));
//! // No value is further away than half a step.
//! let error = &quantized.dequantize() - &weight;
//! assert!(error.indexed_iter().all(|((i, j), e)| e.abs() <= 0.501 * quantized.scales()[(i, j / 128)]));
//! // Eight levels to a word, and back.
//! let words = pack_rows(quantized.levels().view(), quantized.bits());
//! assert_eq!(words.dim(), (8, 32));
//! assert_eq!(&unpack_rows(words.view(), 256, quantized.bits())?, quantized.levels());
//! # Ok::<(), quant_core::CoreError>(())
//! ```
//!
//! # Where to look
//! | question | module |
//! |---|---|
//! | how are scale and zero point found, and the clip search | [`convention`], [`clip`] |
//! | a quantised weight matrix and its groups | [`matrix`] |
//! | binary codes with a residual for salient columns | [`binary`] |
//! | activations, per token or static | [`activation`], [`observer`] |
//! | what activations are multiplied by before they are quantised | [`online`] |
//! | integer execution: activations as codes, products of codes | [`operators`] |
//! | the KV cache, per token and head or per channel | [`cache`] |
//! | largest values and ranges per channel | [`range`] |
//! | `W4A16g128` and friends | [`scheme`] |
//! | bits in words | [`packing`] |
//! | values as bytes and back, for journals | [`codec`] |
//! | exponentials, powers, sines that are the same on every system | [`elementary`] |
//! | files that are not what their name says | [`Foreign`] |
#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

pub mod activation;
pub mod binary;
pub mod cache;
pub mod clip;
mod clip_ratio;
pub mod codec;
pub mod convention;
pub mod elementary;
mod error;
mod foreign;
pub mod matrix;
mod nearest;
pub mod observer;
pub mod online;
pub mod operators;
pub mod packing;
mod par;
pub mod range;
pub mod real;
pub mod scheme;
mod size;
mod widths;
mod work;

/// The arrays all functions here speak of.
pub use ndarray;

pub use activation::{ActQuant, ActRule};
pub use binary::BinaryMatrix;
pub use cache::{EntryQuant, KvGranularity, KvQuant, KvSide};
pub use clip::ClipSearch;
pub use clip_ratio::ClipRatio;
pub use convention::{Bits, Convention, FloatType, Grid, QParams, Variant};
pub use error::{CoreError, ProcessorProblem};
pub use foreign::{Foreign, ForeignKind};
pub use matrix::{ActOrder, Groups, QuantizedMatrix, RowsMut};
pub use nearest::{meant, nearest};
pub use observer::{Observer, ObserverKind};
pub use online::{
    AxisShape, AxisTransform, OnlineKind, OnlineShape, OnlineTransform, PairTransform, kronecker_sides,
};
pub use par::Par;
pub use range::{ChannelMaxima, ChannelMeans, ChannelRanges, ChannelStrip};
pub use real::Real;
pub use scheme::Scheme;
pub use size::Bytes;
pub use widths::Widths;
pub use work::{Stopped, Work};
