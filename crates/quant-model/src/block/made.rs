//! Inputs of stages as their linears take them: where these take codes alone, the pass that makes an activation makes its codes, and the
//! activation is never written.

use super::Block;
use super::flow::StageScratch;
use crate::ModelError;
use crate::linear::Activations;
use ndarray::{Array2, ArrayView2, ArrayViewMut2};
use quant_core::operators::{DynamicNumerics, InputNumerics, QuantizedActivations};
use quant_graph::{Norm, Role, Site};
use quant_kernels::{Par, rms_norm_quantize, silu_mul_quantize, views};

/// The input of a stage.
pub(super) enum Made<'a> {
    Float(Array2<f32>),
    Codes(&'a QuantizedActivations),
}

impl Made<'_> {
    pub(super) fn activations(&self) -> Activations<'_, f32> {
        match self {
            Self::Float(x) => Activations::Float(x.view()),
            Self::Codes(codes) => Activations::Codes(codes),
        }
    }
}

impl Block<f32> {
    /// The one arithmetic that makes codes of the input at `site`, token by token. None where a linear there takes numbers or codes of
    /// another kind, where a transform stands before them, or where a backend makes them.
    fn token_codes(&self, site: Site) -> Option<DynamicNumerics> {
        if self.online.sites.contains_key(&site) || self.arithmetic.backend.is_some() {
            return None;
        }
        let mut quantisers =
            self.spec.linears.iter().filter(|linear| linear.id.site() == site).map(|linear| {
                let op = self.linear(linear.id).filter(|op| op.takes_codes())?;
                op.input_quant()
            });
        let first = quantisers.next()??;
        match first.numerics()? {
            InputNumerics::Dynamic(numerics) => {
                quantisers.all(|other| other == Some(first)).then_some(numerics)
            }
            InputNumerics::Static { .. } => None,
        }
    }

    /// The input of the stage behind a norm of the residual stream `h` `[tokens, hidden]`.
    pub(super) fn made_input<'a>(
        &self,
        norm: Norm,
        h: ArrayView2<'_, f32>,
        into: &'a mut QuantizedActivations,
        par: Par,
    ) -> Result<Made<'a>, ModelError> {
        let site = if norm == Norm::PostAttention { Site::MlpInput } else { Site::AttentionInput };
        Ok(match self.token_codes(site) {
            Some(numerics) => {
                rms_norm_quantize(h, self.norm_of(norm, h)?, self.eps, numerics, into, par);
                Made::Codes(into)
            }
            None => Made::Float(self.behind_norm(norm, site, h, par)?),
        })
    }

    /// What the MLP adds to rows `h` `[tokens, hidden]` of the residual stream; `wide` `[tokens, intermediate]` is its memory.
    pub(super) fn made_mlp(
        &self,
        h: ArrayView2<'_, f32>,
        mut wide: ArrayViewMut2<'_, f32>,
        scratch: &mut StageScratch<f32>,
        par: Par,
    ) -> Result<Array2<f32>, ModelError> {
        let mut up = views::scratch(&mut scratch.up, wide.dim());
        {
            let x = self.made_input(Norm::PostAttention, h, &mut scratch.codes, par)?;
            let parts = [(Role::Gate, wide.view_mut()), (Role::Up, up.view_mut())];
            self.project_into(Site::MlpInput, parts, x.activations(), par)?;
        }
        match self.token_codes(Site::MlpActivation) {
            Some(numerics) => {
                silu_mul_quantize(wide.view(), up.view(), numerics, &mut scratch.codes, par);
                self.mlp_output(Activations::Codes(&scratch.codes), par)
            }
            None => {
                self.gate(wide.view_mut(), up.view(), par);
                self.mlp_output(wide.view(), par)
            }
        }
    }
}
