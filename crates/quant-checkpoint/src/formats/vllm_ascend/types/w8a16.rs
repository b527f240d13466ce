//! `W8A16`: weights of eight bits before a float input.

use quant_core::FloatType;
use quant_graph::{BlockParams, LinearId, LinearParams, LinearScheme, LinearSpec, ModelSpec};

use super::{TypeCodec, bits, channel, per_channel};
use crate::error::Result;
use crate::formats::layout::Part;
use crate::source::Checkpoint;

pub(super) struct W8A16;

const BITS: u32 = 8;

impl TypeCodec for W8A16 {
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
        Ok(per_channel(bits, None))
    }
    fn read(&self, checkpoint: &Checkpoint, linear: &LinearSpec) -> Result<LinearParams> {
        let (bits, scales) = (bits(BITS)?, channel::read_weight_scales(checkpoint, linear)?);
        let read = channel::read(checkpoint, linear, (bits, &scales))?;
        Ok(LinearParams { input: None, ..read })
    }
}
