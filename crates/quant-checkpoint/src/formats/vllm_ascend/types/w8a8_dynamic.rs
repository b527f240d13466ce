//! `W8A8_DYNAMIC`: eight bits, inputs per token.

use quant_core::FloatType;
use quant_graph::{BlockParams, LinearId, LinearParams, LinearScheme, LinearSpec, ModelSpec};

use super::{TypeCodec, bits, channel, per_channel, per_token, per_token_quantiser};
use crate::error::Result;
use crate::formats::layout::Part;
use crate::source::Checkpoint;

pub(super) struct W8A8Dynamic;

const BITS: u32 = 8;

impl TypeCodec for W8A8Dynamic {
    fn parts(&self, linear: &LinearSpec, _: FloatType, _: usize) -> Vec<Part> {
        channel::parts(linear)
    }
    fn bytes(
        &self,
        _: &ModelSpec,
        tensor: (&str, &str),
        id: LinearId,
        block: &BlockParams,
    ) -> Result<Vec<u8>> {
        channel::bytes(tensor, &block.linears[&id])
    }
    fn scheme(&self, _: &Checkpoint, _: &LinearSpec) -> Result<LinearScheme> {
        let bits = bits(BITS)?;
        Ok(per_channel(bits, Some(per_token(bits))))
    }
    fn read(&self, checkpoint: &Checkpoint, linear: &LinearSpec) -> Result<LinearParams> {
        let (bits, scales) = (bits(BITS)?, channel::read_weight_scales(checkpoint, linear)?);
        let read = channel::read(checkpoint, linear, (bits, &scales))?;
        Ok(LinearParams { input: Some(per_token_quantiser(bits)), ..read })
    }
}
