//! Generation: a model in memory, a cache in pages, requests that share every pass.
//!
//! ```text
//! Request ─► Generator::run: which tokens go through the model next ─► ResidentModel::step ─► Block::step ─► logits ─► Sampling
//!                                                                            │
//!                                                             PagedCache: keys and values, floats or codes
//! ```
//!
//! **The bits of a request's logits depend on the request alone**: not on the batch, its order, how prompts are cut into pieces, where
//! pages lie, or on threads. Products sum in one order for one row and for many, attention is cut at absolute positions
//! ([`quant_kernels::attend_paged`]), and a draw is keyed by seed, request and position ([`Sampling`]). So `prefill(n)` and then a step of
//! one token is `prefill(n + 1)`.

mod generator;
mod head;
mod resident;
mod sampling;

pub use generator::{Completion, Finish, GenerateOptions, Generated, Generator, Request};
pub use head::head_rows;
pub use resident::{LoadProgress, ResidentModel};
pub use sampling::Sampling;
