//! From a recipe to a plan, a run over the blocks and a manifest.
#![forbid(unsafe_code)]
