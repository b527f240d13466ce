//! Whether a folder is simulated or executed, and in whose arithmetic.

use crate::PipelineError;
use crate::open::OpenFolder;
use quant_checkpoint::{Dtype, TensorInfo};
use quant_core::operators::{Processor, Profile};
use quant_core::{ActOrder, ActRule, ClipRatio, FloatType};
use quant_graph::{
    InputScheme, KvScheme, LinearScheme, ModelScheme, ModelSpec, Outer, Unsupported, WeightForm, WeightScheme,
};
use quant_kernels::Compute;
use quant_model::{Arithmetic, Backend, Execution};
use std::sync::Arc;

/// What the linears of a folder can be run as.
#[derive(Debug)]
pub(crate) struct Executable {
    /// What the folder stores; none for floats.
    scheme: Option<ModelScheme>,
    /// Whether it stores the codes themselves.
    codes: bool,
    profile: Profile,
    name: &'static str,
    /// The type in which the model is served.
    served: FloatType,
    /// Whether all its float weights are stored as bf16.
    narrow: bool,
    /// Whether its head is.
    narrow_head: bool,
}

/// A coded weight as a processor holds it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CodedLinear {
    pub(crate) outputs: usize,
    pub(crate) inputs: usize,
    /// Whether two codes share a byte.
    pub(crate) packed: bool,
    /// Groups of inputs, each with a scale.
    pub(crate) groups: usize,
}

/// What executes the codes of a folder; none executes them here, on numbers that stay f32.
pub(crate) type OnProcessor = Option<Arc<dyn Processor>>;

impl Executable {
    /// Reads what a folder says of itself.
    ///
    /// # Errors
    /// Descriptions that cannot be read.
    pub(crate) fn of(folder: &OpenFolder) -> Result<Self, PipelineError> {
        let wide = |tensor: &TensorInfo| {
            tensor.name.ends_with(".weight")
                && tensor.shape.len() == 2
                && matches!(tensor.dtype, Dtype::F16 | Dtype::F32 | Dtype::F64)
        };
        let narrow = !folder.checkpoint.tensors().any(wide);
        let head = folder.checkpoint.get(folder.spec.stored_in(Outer::Head).tensor());
        let narrow_head = head.is_some_and(|head| head.dtype == Dtype::BF16);
        let Some(format) = folder.format else {
            let (profile, served) = (Profile::Calibration, folder.spec.dtype.served());
            return Ok(Self {
                scheme: None,
                codes: false,
                profile,
                name: "float",
                served,
                narrow,
                narrow_head,
            });
        };
        Ok(Self {
            scheme: Some(format.scheme(&folder.checkpoint, &folder.spec)?),
            codes: format.stores_codes(),
            profile: format.profile(&folder.spec),
            name: format.id(),
            served: folder.spec.dtype.served(),
            narrow,
            narrow_head,
        })
    }

    /// The quantiser of the cache.
    pub(crate) fn kv(&self) -> Option<KvScheme> {
        self.scheme.as_ref()?.kv
    }

    /// Whether blocks are read as codes.
    pub(crate) fn stores_codes(&self) -> bool {
        self.codes
    }

    fn with_codes(&self) -> Option<&ModelScheme> {
        self.scheme.as_ref().filter(|_| self.codes)
    }

    /// Whether there is a product of codes for a linear.
    fn executes(linear: &LinearScheme) -> bool {
        match (linear.weight, linear.input) {
            (None, _) => false,
            (Some(weight), None) => weight.form != WeightForm::BinaryResidual,
            (Some(weight), Some(input)) => {
                let whole = weight.symmetric && weight.group.is_none();
                weight.form == WeightForm::Integer && (whole || weight.bits.get() <= 4) && input.shards <= 1
            }
        }
    }

    /// Linears with a product of codes, and all of them.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let linears = self.with_codes().into_iter().flat_map(ModelScheme::linears);
        linears
            .fold((0, 0), |(some, all), (_, _, linear)| (some + usize::from(Self::executes(linear)), all + 1))
    }

    /// Why a processor does not multiply the codes of a linear, if it does not.
    fn not_on_processor(linear: &LinearScheme) -> Option<&'static str> {
        let (weight, input) = (linear.weight?, linear.input);
        let Some(input) = input else { return Self::no_weight_only(&weight) };
        let InputScheme { bits, rule, dynamic, clip_ratio, shards } = input;
        let plain = clip_ratio.fixed() == Some(ClipRatio::NONE);
        if weight.form != WeightForm::Integer || !weight.symmetric || weight.group.is_some() {
            Some("its weight is not of symmetric codes with one scale for each output")
        } else if !matches!(bits.get(), 4 | 8) || (!dynamic && bits.get() != 8) {
            Some("its input has not 8 bits, or 4 with scales of each token")
        } else if dynamic && (rule == ActRule::Asymmetric || !plain || shards > 1) {
            Some("its input is not quantised by the largest magnitude of a token")
        } else {
            None
        }
    }

    /// Why a processor does not multiply floats with the codes of a weight: CANN documents its operator for no others.
    fn no_weight_only(weight: &WeightScheme) -> Option<&'static str> {
        let WeightScheme { bits, group, act_order, form, symmetric: _ } = *weight;
        if form != WeightForm::Integer || !matches!(bits.get(), 4 | 8) {
            Some("its input is not quantised, and its weight has not codes of 8 or 4 bits")
        } else if group.is_some_and(|size| size < 32 || !size.is_multiple_of(32)) {
            Some("its input is not quantised, and its weight has groups that are no multiple of 32 inputs")
        } else if group.is_some() && act_order == ActOrder::Dynamic {
            Some("its input is not quantised, and groups of its weight are not of consecutive inputs")
        } else {
            None
        }
    }

    /// What a processor is told to do: the arithmetic of an NPU in the type in which the model is served.
    fn on(&self, processor: Arc<dyn Processor>, compute: Compute) -> Result<Arithmetic, PipelineError> {
        let refused =
            |problem: String| Err(PipelineError::NotOnProcessor { processor: processor.name(), problem });
        if let Some(float) = processor.float_type().filter(|&float| float != self.served) {
            let (float, served) = (float.name(), self.served.name());
            return refused(format!("it was opened for models of {float}, this one is served in {served}"));
        }
        let mut any = false;
        for (block, id, linear) in self.with_codes().into_iter().flat_map(ModelScheme::linears) {
            if let Some(problem) = Self::not_on_processor(linear) {
                return refused(format!("{id} of block {block}: {problem}"));
            }
            any |= linear.weight.is_some();
        }
        if !any {
            return refused(format!("a folder of this kind ({}) has no codes to multiply", self.name));
        }
        let model = self.served;
        Ok(Arithmetic {
            backend: Some(Backend { processor, model }),
            ..Arithmetic::from(compute).of(Profile::Ascend { model }).executed()
        })
    }

    /// The arithmetic of such a run; executed where nothing is asked for and there is something to execute, or where a processor is given.
    ///
    /// # Errors
    /// [`PipelineError::Unsupported`] if execution is asked for and no linear has a product of codes;
    /// [`PipelineError::NotOnProcessor`] if one has none there.
    pub(crate) fn arithmetic(
        &self,
        compute: Compute,
        execution: Option<Execution>,
        processor: &OnProcessor,
    ) -> Result<Arithmetic, PipelineError> {
        if let Some(processor) = processor {
            return self.on(Arc::clone(processor), compute);
        }
        let some = self.counts().0 > 0;
        let execution = match execution {
            Some(Execution::Integer) if !some => {
                return Err(PipelineError::Unsupported(Unsupported {
                    format: if self.scheme.is_some() { self.name } else { "a folder of floats" },
                    what: "codes that integer or packed products take".to_owned(),
                    alternatives: "run it with --execute sim, or quantise it to a format that stores codes \
                                   (vllm-ascend, compressed-tensors)"
                        .to_owned(),
                }));
            }
            Some(asked) => asked,
            None if some => Execution::Integer,
            None => Execution::Simulated,
        };
        Ok(Arithmetic { execution, ..Arithmetic::from(compute).of(self.profile) })
    }

    /// Coded linears of a block with their shapes and whether their inputs are codes too: what a processor holds of them.
    pub(crate) fn coded<'s>(
        &'s self,
        spec: &ModelSpec,
        block: usize,
    ) -> impl Iterator<Item = CodedLinear> + 's {
        let schemes = self.with_codes().and_then(|s| s.blocks.get(block));
        spec.block(block).linears.into_iter().filter_map(move |linear| {
            let scheme = schemes?.get(&linear.id)?;
            let weight = scheme.weight?;
            Some(CodedLinear {
                outputs: linear.outputs,
                inputs: linear.inputs,
                packed: scheme.input.is_none() && weight.bits.get() <= 4,
                groups: weight.group.map_or(1, |size| linear.inputs.div_ceil(size)),
            })
        })
    }

    /// Bytes of one number of the head, given those of a prepared float weight.
    pub(crate) fn head_bytes(&self, compute: Compute, float: u64) -> u64 {
        if self.narrow_head && compute == Compute::F32 { float.min(2) } else { float }
    }

    /// Bytes of the prepared linears of a block: of codes where they are executed, else of floats of `float` bytes each, or of half of them
    /// where weights are read as bf16 and no quantiser stands in front of them. Coded weights that floats are multiplied with in the
    /// arithmetic of a device, and here, are floats of four bytes.
    pub(crate) fn block_bytes(
        &self,
        spec: &ModelSpec,
        block: usize,
        arithmetic: &Arithmetic,
        float: u64,
    ) -> u64 {
        let execution = arithmetic.execution;
        let narrow = if self.narrow && arithmetic.compute == Compute::F32 { float.min(2) } else { float };
        let here =
            arithmetic.backend.as_ref().is_some_and(|backend| backend.processor.float_type().is_none());
        let schemes = self.scheme.as_ref().and_then(|s| s.blocks.get(block));
        let of = |linear: &quant_graph::LinearSpec| {
            let scheme = schemes.and_then(|block| block.get(&linear.id)).copied().unwrap_or_default();
            let weights = linear.weights() as u64;
            match scheme.weight.filter(|_| execution == Execution::Integer && Self::executes(&scheme)) {
                None if scheme.input.is_none() && (scheme.weight.is_none() || !self.codes) => {
                    narrow * weights
                }
                None => float * weights,
                Some(_) if here && scheme.input.is_none() => size_of::<f32>() as u64 * weights,
                // Codes of linears with quantised inputs are bytes, unless their weights come in groups.
                Some(weight) if scheme.input.is_some() && weight.symmetric && weight.group.is_none() => {
                    weights
                }
                Some(weight) => {
                    let codes = if weight.bits.get() <= 4 { weights.div_ceil(2) } else { weights };
                    let groups = weight.group.map_or(1, |size| linear.inputs.div_ceil(size));
                    // Scale and zero level of each group.
                    codes + (linear.outputs * groups) as u64 * 8
                }
            }
        };
        spec.block(block).linears.iter().map(of).sum()
    }
}

/// The arithmetic in which the linears of a folder run: in that of its client, and executed where `execution` asks for it, or asks
/// for nothing and the folder has codes to execute. Given a processor, that executes them, in the arithmetic of an NPU.
///
/// # Errors
/// [`PipelineError::Unsupported`] if execution is asked for and no linear has a product of codes; [`PipelineError::NotOnProcessor`] if a
/// linear has none on the processor; descriptions that cannot be read.
pub fn folder_arithmetic(
    folder: &OpenFolder,
    compute: Compute,
    execution: Option<Execution>,
    processor: Option<Arc<dyn Processor>>,
) -> Result<Arithmetic, PipelineError> {
    Executable::of(folder)?.arithmetic(compute, execution, &processor)
}

/// In a word, for reports and arguments.
pub(crate) fn name(execution: Execution) -> &'static str {
    match execution {
        Execution::Simulated => "sim",
        Execution::Integer => "int8",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use quant_core::Bits;

    /// What CANN's documents have of weights beside float inputs, and nothing else.
    #[test]
    fn weights_alone_that_a_processor_multiplies() {
        let weight = |bits, group| WeightScheme::integer(Bits::new(bits).unwrap(), true, group);
        for (bits, group) in [(8, None), (4, None), (8, Some(64)), (4, Some(32)), (4, Some(128))] {
            let scheme = weight(bits, group);
            let zeros = WeightScheme { symmetric: false, ..scheme };
            for weight in [scheme, zeros] {
                let linear = LinearScheme { weight: Some(weight), ..LinearScheme::default() };
                assert_eq!(Executable::not_on_processor(&linear), None, "{weight:?}");
            }
        }
        let dynamic = WeightScheme { act_order: ActOrder::Dynamic, ..weight(4, Some(128)) };
        let binary = WeightScheme { form: WeightForm::Binary, ..weight(1, Some(32)) };
        for (weight, problem) in [
            (weight(3, Some(32)), "8 or 4 bits"),
            (weight(2, None), "8 or 4 bits"),
            (binary, "8 or 4 bits"),
            (weight(4, Some(16)), "multiple of 32"),
            (weight(8, Some(48)), "multiple of 32"),
            (dynamic, "consecutive"),
        ] {
            let linear = LinearScheme { weight: Some(weight), ..LinearScheme::default() };
            let found = Executable::not_on_processor(&linear);
            assert!(found.is_some_and(|found| found.contains(problem)), "{weight:?}: {found:?}");
        }
    }
}
