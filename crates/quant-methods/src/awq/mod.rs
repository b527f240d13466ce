//! AWQ: scales per input channel found by a search on the output error, then a clipped range per group
//! (arXiv 2306.00978).
//!
//! `y = (x diag(1/c)) (W diag(c))ᵀ` is exact for every `c > 0`; rounding `W diag(c)` instead of `W` moves error away from the
//! channels whose `c` is large. `c` follows one parameter, the ratio `r`, from the mean activation of every channel:
//!
//! ```text
//! m_j = mean over tokens |x_j|
//! c   = max(m^r, 1e-4),  divided by sqrt(max c · min c)                        candidate
//! L(r) = mean (f(x; W) − f(x; Q(W diag(c)) diag(1/c)))²,  r = 0, 1/20, …       search_scales
//! ```
//!
//! The least `L` wins. Whatever feeds the unit is divided by `c` ([`divide_norm`], [`divide_rows`]), which rewrites the block
//! without changing its function. Then every group of the scaled weight is clipped to the range whose rounding disturbs
//! the group's share of the output least ([`clip_ranges`], [`clamp_to`]).
//!
//! All of it works on bare matrices; a unit that is not linear (attention, MLP) is run by the caller, see [`Loss::Forward`].
//!
//! ```
//! use quant_methods::awq::{self, Clip, Loss, Search};
//! use quant_methods::ndarray::{Array1, Array2};
//! use quant_methods::{Bits, Convention, FloatType, Grid, Par, Variant};
//!
//! let grid = Grid::new(Convention::QAwq, Bits::new(3)?, Variant::Exact, FloatType::F32)?;
//! // Channel 5 speaks fifty times as loud as the others.
//! let loud = |j: usize| if j == 5 { 50.0 } else { 1.0 };
//! let x = Array2::from_shape_fn((64, 32), |(t, j)| (((t * 31 + j * 17) % 47) as f32 / 23.0 - 1.0) * loud(j));
//! let mut weight = Array2::from_shape_fn((8, 32), |(i, j)| ((i * 29 + j * 13) % 61) as f32 / 30.0 - 1.0);
//!
//! let mean = x.map(|v| v.abs()).mean_axis(quant_methods::ndarray::Axis(0)).unwrap();
//! let search = Search { n_grid: 20, grid, group: Some(16), tie: None };
//! let found = awq::search_scales(&search, mean.view(), &[weight.view()], Loss::Tokens(x.view()), Par::Seq)?;
//! assert!(found.ratio > 0.0 && found.losses.iter().all(|&loss| loss <= found.losses[0]));
//!
//! // The norm before takes 1/c, the columns take c; then the ranges of the scaled weight.
//! let mut norm = Array1::ones(32);
//! awq::divide_norm(found.scales.view(), &mut norm, &mut [&mut weight], FloatType::F32)?;
//! let scaled = &x / &found.scales;
//! let clip = Clip { n_grid: 20, max_shrink: 0.5, grid, group: Some(16) };
//! let ranges = awq::clip_ranges(&clip, weight.view(), awq::every_token(scaled.view(), 512), Par::Seq)?;
//! assert_eq!(ranges.dim(), (8, 2));
//! awq::clamp_to(weight.view_mut(), ranges.view(), Some(16))?;
//! # Ok::<(), quant_methods::MethodError>(())
//! ```
//!
//! No result depends on the number of threads: work is cut into tiles of a fixed number of rows, and sums are taken in
//! the order of tiles, in f64.

mod apply;
mod clip;
mod energy;
mod method;
mod round;
mod rounds;
mod scales;
mod search;

pub use apply::{divide_norm, divide_rows};
pub use clip::{Clip, clamp_to, clip_ranges, every_token};
pub use method::Awq;
pub use rounds::AwqRounding;
pub use scales::candidate;
pub use search::{Forward, FoundScales, Loss, Search, Target, search_scales, search_targets};

use crate::rounding::{CONVENTION, INPUT_SHARDS, VARIANT};
use crate::settings::FieldKind;
use crate::{Field, Method, MethodError, MethodKind};
use quant_core::CoreError;

/// The method's name.
const ID: &str = "awq";

/// Registry line.
pub static METHOD: Method = Method {
    id: ID,
    summary: "scales channels by a search on the output error, clips groups, rounds to nearest; weights only",
    source: "arXiv 2306.00978",
    kind: MethodKind::Both,
    build: method::build,
    fields: &[
        Field {
            name: "scheme",
            kind: FieldKind::Scheme,
            default: "null",
            help: "bits of weights and the group size, W4A16g128; left out, AWQ only scales, for the grid of the rounding after it",
            run_wide: false,
        },
        Field {
            name: "symmetric",
            kind: FieldKind::Bool,
            default: "false",
            help: "whether the zero level of weights is fixed in the middle; follows `convention` where that is given",
            run_wide: false,
        },
        Field {
            default: "null",
            help: "how scale and zero point follow from a group's range; default q-awq, or q-sym when symmetric",
            ..CONVENTION
        },
        Field {
            name: "n_grid",
            kind: FieldKind::Integer(1, 1000),
            default: "20",
            help: "ratios the search for scales tries",
            run_wide: true,
        },
        Field {
            name: "clip",
            kind: FieldKind::Bool,
            default: "true",
            help: "search the range of every group by the error of its share of the output; never of q and k",
            run_wide: false,
        },
        Field {
            name: "search_tokens",
            kind: FieldKind::IntegerOrAll(1, 1 << 24),
            default: "512",
            help: "calibration tokens the searches look at; official: all",
            run_wide: true,
        },
        Field {
            name: "gqa",
            kind: FieldKind::Bool,
            default: "false",
            help: "scale o under grouped-query attention too, equally over the heads that share a value head",
            run_wide: true,
        },
        INPUT_SHARDS,
        VARIANT,
    ],
    tier: 1,
};

/// Arrays whose channels do not fit together.
fn channels(what: impl Into<String>, expected: usize, found: usize) -> MethodError {
    MethodError::Channels { method: ID, what: what.into(), expected, found }
}

/// An argument outside what the method works on.
fn refused(what: &'static str, expected: impl Into<String>, found: impl Into<String>) -> MethodError {
    CoreError::Shape { what, expected: expected.into(), found: found.into() }.into()
}
