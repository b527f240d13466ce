//! The operators of a block, each a function of its inputs alone, so that a backward can stand beside it.

pub(crate) mod attention;
pub(crate) mod attention_backward;
pub(crate) mod mlp;
pub(crate) mod norm;
pub(crate) mod packed_head;
pub(crate) mod precision;
pub(crate) mod project;
