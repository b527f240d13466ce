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
//! # Where to look
//! | question | module |
//! |---|---|
//! | how are scale and zero point found, and the clip search | [`convention`], [`clip`] |
//! | a quantised weight matrix and its groups | [`matrix`] |
//! | activations and KV cache, per token or static | [`activation`], [`observer`] |
//! | largest values per channel | [`range`] |
//! | `W4A16g128` and friends | [`scheme`] |
//! | bits in words | [`packing`] |
//! | exponentials, powers, sines that are the same on every system | [`elementary`] |
//! | files that are not what their name says | [`Foreign`] |
#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

pub mod activation;
pub mod clip;
pub mod convention;
pub mod elementary;
mod error;
mod foreign;
pub mod matrix;
pub mod observer;
pub mod packing;
pub mod range;
pub mod real;
pub mod scheme;
mod size;

pub use activation::{ActQuant, ActRule, KvGranularity, KvQuant};
pub use clip::ClipSearch;
pub use convention::{Bits, Convention, FloatType, Grid, QParams, Variant};
pub use error::CoreError;
pub use foreign::{Foreign, ForeignKind};
pub use matrix::{ActOrder, Groups, QuantizedMatrix};
pub use observer::{Observer, ObserverKind};
pub use range::ChannelMaxima;
pub use real::Real;
pub use scheme::Scheme;
pub use size::Bytes;
