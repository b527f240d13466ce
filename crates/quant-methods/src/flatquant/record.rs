//! Parameters and trainings as bytes and back.

use super::block::FlatReport;
use super::epochs::Training;
use super::parameters::FlatParameters;
use super::scheme::Matrix;
use quant_core::codec::{Bytes, Codec, bad_tag};
use quant_core::{CoreError, codec_of_fields};

impl Codec for Matrix {
    fn encode(&self, out: &mut Vec<u8>) {
        out.push(*self as u8);
    }
    fn decode(from: &mut Bytes<'_>) -> Result<Self, CoreError> {
        let tag = u8::decode(from)?;
        Self::ALL.get(usize::from(tag)).copied().map_or_else(|| bad_tag("a learned matrix", tag), Ok)
    }
}

codec_of_fields!(FlatParameters<f32> { matrices, scales, weight_clips, input_clips });
codec_of_fields!(Training { epoch, parameters, optimiser, schedule, best, report });

/// Without alarms, which are found when a training is finished.
impl Codec for FlatReport {
    fn encode(&self, out: &mut Vec<u8>) {
        let Self { losses, before, epochs, after, kept, dropped, alarms: _ } = self;
        losses.encode(out);
        before.encode(out);
        epochs.encode(out);
        after.encode(out);
        kept.encode(out);
        dropped.encode(out);
    }
    fn decode(from: &mut Bytes<'_>) -> Result<Self, CoreError> {
        Ok(Self {
            losses: Codec::decode(from)?,
            before: Codec::decode(from)?,
            epochs: Codec::decode(from)?,
            after: Codec::decode(from)?,
            kept: Codec::decode(from)?,
            dropped: Codec::decode(from)?,
            alarms: Vec::new(),
        })
    }
}
