//! `FLOAT`: a linear as the model has it.

use quant_core::FloatType;
use quant_graph::{BlockParams, LinearId, LinearParams, LinearScheme, LinearSpec, LinearWeight, ModelSpec};

use super::super::ID;
use super::TypeCodec;
use crate::error::{Result, not_encodable};
use crate::formats::bytes::{Loss, float_bytes, float_dtype};
use crate::formats::layout::Part;
use crate::formats::plain::read_linear;
use crate::source::Checkpoint;

pub(super) struct Float;

impl TypeCodec for Float {
    fn parts(&self, linear: &LinearSpec, model: FloatType, _: usize) -> Vec<Part> {
        let (float, out) = (float_dtype(model), linear.outputs);
        let bias = linear.bias.then(|| Part::new("bias", float, [out]));
        [Part::new("weight", float, [out, linear.inputs])].into_iter().chain(bias).collect()
    }
    fn bytes(
        &self,
        spec: &ModelSpec,
        (name, suffix): (&str, &str),
        id: LinearId,
        block: &BlockParams,
    ) -> Result<Vec<u8>> {
        let linear = &block.linears[&id];
        let LinearWeight::Float(values) = &linear.weight else {
            return Err(not_encodable(ID, name, "a float weight", "a quantised weight"));
        };
        match suffix {
            "bias" => {
                float_bytes(ID, name, linear.bias.iter().flatten().copied(), spec.dtype, Loss::Rounding)
            }
            _ => float_bytes(ID, name, values.iter().copied(), spec.dtype, Loss::Rounding),
        }
    }
    fn scheme(&self, _: &Checkpoint, _: &LinearSpec) -> Result<LinearScheme> {
        Ok(LinearScheme::default())
    }
    fn read(&self, checkpoint: &Checkpoint, linear: &LinearSpec) -> Result<LinearParams> {
        read_linear(checkpoint, linear)
    }
}
