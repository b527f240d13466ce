//! `W8A8_MIX`: the tensors of `W8A8` and of `W8A8_DYNAMIC`, one input or the other by the node's task. It is read as the dynamic type and
//! never written.

use quant_core::FloatType;
use quant_graph::{BlockParams, LinearId, LinearParams, LinearScheme, LinearSpec, ModelSpec};

use super::super::ID;
use super::static_input::{self, weight_scales};
use super::{AscendType, TypeCodec, bits, channel, per_channel, per_token, per_token_quantiser};
use crate::error::{Result, not_encodable};
use crate::formats::layout::Part;
use crate::source::Checkpoint;

pub(super) struct W8A8Mix;

const BITS: u32 = 8;

impl TypeCodec for W8A8Mix {
    fn parts(&self, linear: &LinearSpec, model: FloatType, _: usize) -> Vec<Part> {
        let mut parts = vec![channel::weight(linear)];
        parts.extend(static_input::parts(linear, model));
        parts.extend(channel::scales(linear));
        parts.extend(channel::bias(linear));
        parts
    }
    fn bytes(&self, _: &ModelSpec, (name, _): (&str, &str), _: LinearId, _: &BlockParams) -> Result<Vec<u8>> {
        Err(not_encodable(ID, name, "a type that is written", AscendType::W8A8Mix.name()))
    }
    fn scheme(&self, _: &Checkpoint, _: &LinearSpec) -> Result<LinearScheme> {
        let bits = bits(BITS)?;
        Ok(per_channel(bits, Some(per_token(bits))))
    }
    fn read(&self, checkpoint: &Checkpoint, linear: &LinearSpec) -> Result<LinearParams> {
        let bits = bits(BITS)?;
        let scales = weight_scales(checkpoint, &linear.module, AscendType::W8A8Mix, linear.outputs)?;
        let read = channel::read(checkpoint, linear, (bits, &scales))?;
        Ok(LinearParams { input: Some(per_token_quantiser(bits)), ..read })
    }
}
