//! CANN's operators with the argument lists of its documents.
//!
//! Each is a value of its arguments with a method `prepare`, which checks them by the documented rules (A2 and A3) and runs CANN's
//! first phase; the [`Call`](crate::Call) it gives is launched on a stream. What the rules refuse never reaches CANN.
//!
//! | operator | CANN | computes |
//! |---|---|---|
//! | [`QuantMatmul`] | `aclnnQuantMatmulWeightNz`, `V5`, `V4`, `V3`, by what is there | products of codes, scaled |
//! | [`DynamicQuant`] | `aclnnDynamicQuant`, `V2`; `V3`, `V4` by name | codes and a scale for each token |
//! | [`StaticQuant`] | `aclnnAscendQuantV3` | codes under a given scale, which multiplies |
//! | [`AntiQuant`] | `aclnnAscendAntiQuant` | numbers of codes; the offset is added |
//! | [`WeightOnlyMatmul`] | `aclnnWeightQuantBatchMatmulV2`, `V3`, `Nz` | floats times a coded weight |
//! | [`PackScales`], [`pack_scales_on_host`] | `aclnnTransQuantParamV3`, `V2`, `aclnnTransQuantParam` | scales as words |
//! | [`PackInt4`] | `aclnnConvertWeightToINT4Pack` | codes of four bits, packed |
//! | [`Matmul`] | `aclnnMm` | floats times floats |
//! | [`OneTokenAttention`] | `aclnnFusedInferAttentionScoreV3` | attention of one token over an int8 cache |
//! | [`KroneckerQuant`] | `aclnnFlatQuant` | FlatQuant's transform with codes of four bits |
//!
//! Not covered: a fused add, softmax and dropout, for which CANN has no public operator; groups of tokens (`groupIndex`), groups of
//! scales in products of codes (A8W4, K-G, G-B), products of codes with a batch of weights, `RotateQuant`.

mod attention;
mod dynamic_quant;
mod fixed_quant;
mod kronecker;
mod matmul;
mod pack;
mod quant_matmul;
mod rules;
mod weight_only;

pub use attention::{OneTokenAttention, Pages};
pub use dynamic_quant::{DynamicQuant, DynamicVersion};
pub use fixed_quant::{AntiQuant, Round, StaticQuant};
pub use kronecker::KroneckerQuant;
pub use matmul::{CubeMath, Matmul};
pub use pack::{PackInt4, PackScales, pack_scales_on_host};
pub use quant_matmul::{MatmulVersion, QuantMatmul};
pub use weight_only::WeightOnlyMatmul;
