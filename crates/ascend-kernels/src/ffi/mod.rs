//! The raw binding: one struct for each group of symbols, each symbol there or not.

#[rustfmt::skip]
#[allow(
    dead_code, missing_docs, non_camel_case_types, non_snake_case, unreachable_pub, missing_debug_implementations, clippy::all,
    clippy::undocumented_unsafe_blocks, clippy::expect_used, clippy::use_self, unused_qualifications,
    reason = "made by bindgen; its methods, which would panic for want of a symbol, are not called (see `symbol!`)"
)]
mod generated;

pub(crate) use generated::attention::Attention;
pub(crate) use generated::objects::Objects;
pub(crate) use generated::operators::Operators;
pub(crate) use generated::runtime::Runtime;
pub(crate) use generated::types::*;
