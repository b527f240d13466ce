//! What graded answers say about a quantised model, and what they cannot say.
//!
//! Several seeds of one item are no independent observations: whatever is resampled or exchanged here is an ITEM with all its seeds
//! ([`Outcomes`]). Random numbers come from a generator whose keys are the seed, the part, the resample and the draw
//! ([`Bootstrap`]), so that results have the same bits on any number of threads.

mod bootstrap;
mod loss;
mod moments;
mod outcomes;
mod paired;
mod ranks;

pub use bootstrap::{Bootstrap, Interval, Part, RESAMPLES};
pub use loss::{LossClass, LossVerdict, NotDistinguishable, judge_loss};
pub use moments::{MeanDeviation, aime_120, mean_deviation};
pub use outcomes::Outcomes;
pub use paired::{PairedTest, holm, paired_test};
pub use ranks::spearman;
