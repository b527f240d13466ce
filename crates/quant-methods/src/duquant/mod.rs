//! DuQuant (arXiv 2406.01721): rotations of blocks of channels that look for outliers, and a permutation that spreads them over blocks.
//!
//! The input `x` of the linears of a site becomes `((x / c) R1) P R2` and is quantised, and their weight `W` becomes
//! `((W diag(c)) R1) P R2`, so that the product stays what it is:
//!
//! | | is | where |
//! |---|---|---|
//! | `c` | `max(A^α / V^(1−α), f)` of the largest activations `A` and weights `V` of a channel, as in [`smoothquant`](crate::smoothquant) | in the norm, the rows of v or the rows of up before the linears |
//! | `R1` | one rotation `[block, block]` of all blocks of channels, a product of steps that each spread the largest value of all tokens over its block; those up to the smallest range are kept | runs with the model |
//! | `P` | channels by falling maximum behind `R1`, dealt out to the blocks forth and back | runs with the model |
//! | `R2` | as `R1`, behind `P` | runs with the model |
//!
//! Maxima are those of all calibration tokens. Rotations are fitted to the tokens with the largest values at their site, since ends of
//! ranges are all that steers them. Linears with one input have one transform.
//!
//! Nothing is said of the cache: keys and values are quantised as they are.

mod fit;
mod learner;
mod observe;
mod record;
mod settings;

use crate::rounding::VARIANT;
use crate::settings::FieldKind;
use crate::smoothquant::{SmoothQuant, Smoothing};
use crate::{Field, Method, MethodKind, Modifier};
use settings::DuQuantLearner;
use std::sync::Arc;

/// A key that concerns whole blocks.
const fn key(name: &'static str, kind: FieldKind, default: &'static str, help: &'static str) -> Field {
    Field { name, kind, default, help, run_wide: true }
}

/// Registry line.
pub static METHOD: Method = Method {
    id: "duquant",
    summary: "rotates blocks of channels so that their outliers go, and permutes channels so that all blocks have their share",
    source: "arXiv 2406.01721",
    kind: MethodKind::Transform,
    build: |settings| {
        let (alpha, variant) =
            (settings.number("alpha")? as f32, settings.word("variant")?.unwrap_or_default());
        let smoothing = Smoothing { scales: SmoothQuant { alpha, variant }, pairs: settings.words("pairs")? };
        let learner = DuQuantLearner {
            smoothing,
            block: settings.integer("block")?,
            steps: settings.integer("steps")?,
            tokens: settings.integer("tokens")?,
            seed: settings.integer("seed")? as u64,
            path: settings.path().to_owned(),
        };
        Ok(Modifier { learner: Some(Arc::new(learner)), ..Modifier::default() })
    },
    fields: &[
        key(
            "alpha",
            FieldKind::Number(0.0, 1.0),
            "0.5",
            "how much of the size of channels goes into the weights before anything is rotated",
        ),
        key(
            "pairs",
            FieldKind::Words(&["norm", "v-o", "up-down"]),
            "[\"norm\", \"v-o\", \"up-down\"]",
            "where that is done: from norms into q, k, v and gate, up; from v into o; from up into down",
        ),
        key(
            "block",
            FieldKind::Integer(2, 1024),
            "128",
            "channels of a block; it must divide those of every input that is transformed",
        ),
        key("steps", FieldKind::Integer(0, 4096), "256", "steps of a rotation at most; 0 only permutes"),
        key(
            "tokens",
            FieldKind::Integer(1, 1_000_000),
            "1024",
            "tokens that rotations are fitted to, those with the largest values",
        ),
        key("seed", FieldKind::Integer(0, u32::MAX as u64), "0", "of the random part of every step"),
        Field {
            help: "official turns the channel whose number is the row of the outlier, modulo the block, as the published code; exact its column",
            ..VARIANT
        },
    ],
    tier: 3,
};
