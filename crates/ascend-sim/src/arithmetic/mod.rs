//! CANN's arithmetic as its documents state it, on plain slices.
//!
//! Written from `ascend.md` sections 4 to 6; nothing here calls `quant-core`.

pub(crate) mod attention;
pub(crate) mod float;
pub(crate) mod integer;
pub(crate) mod quantize;
pub(crate) mod scale;
