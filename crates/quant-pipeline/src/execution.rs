//! Whether a folder is simulated or executed, and in whose arithmetic.

use crate::PipelineError;
use crate::open::OpenFolder;
use quant_core::operators::Profile;
use quant_graph::{KvScheme, LinearScheme, ModelScheme, ModelSpec, Unsupported, WeightForm};
use quant_kernels::Compute;
use quant_model::{Arithmetic, Execution};

/// What the linears of a folder can be run as.
#[derive(Debug)]
pub(crate) struct Executable {
    /// What the folder stores; none for floats.
    scheme: Option<ModelScheme>,
    /// Whether it stores the codes themselves.
    codes: bool,
    profile: Profile,
    name: &'static str,
}

impl Executable {
    /// Reads what a folder says of itself.
    ///
    /// # Errors
    /// Descriptions that cannot be read.
    pub(crate) fn of(folder: &OpenFolder) -> Result<Self, PipelineError> {
        let Some(format) = folder.format else {
            return Ok(Self { scheme: None, codes: false, profile: Profile::Calibration, name: "float" });
        };
        Ok(Self {
            scheme: Some(format.scheme(&folder.checkpoint, &folder.spec)?),
            codes: format.stores_codes(),
            profile: format.profile(&folder.spec),
            name: format.id(),
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

    /// The arithmetic of such a run; executed where nothing is asked for and there is something to execute.
    ///
    /// # Errors
    /// [`PipelineError::Unsupported`] if execution is asked for and no linear has a product of codes.
    pub(crate) fn arithmetic(
        &self,
        compute: Compute,
        execution: Option<Execution>,
    ) -> Result<Arithmetic, PipelineError> {
        let some = self.counts().0 > 0;
        let execution = match execution {
            Some(Execution::Integer) if !some => {
                return Err(PipelineError::Unsupported(Unsupported {
                    format: self.name,
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
        Ok(Arithmetic { compute, execution, profile: self.profile })
    }

    /// Bytes of the prepared linears of a block: of codes where they are executed, else of floats of `float` bytes each.
    pub(crate) fn block_bytes(
        &self,
        spec: &ModelSpec,
        block: usize,
        execution: Execution,
        float: u64,
    ) -> u64 {
        let schemes = self.with_codes().and_then(|s| s.blocks.get(block));
        let of = |linear: &quant_graph::LinearSpec| {
            let scheme = schemes.and_then(|block| block.get(&linear.id)).copied().unwrap_or_default();
            let weights = linear.weights() as u64;
            match scheme.weight.filter(|_| execution == Execution::Integer && Self::executes(&scheme)) {
                None => float * weights,
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
/// for nothing and the folder has codes to execute.
///
/// # Errors
/// [`PipelineError::Unsupported`] if execution is asked for and no linear has a product of codes; descriptions that cannot be read.
pub fn folder_arithmetic(
    folder: &OpenFolder,
    compute: Compute,
    execution: Option<Execution>,
) -> Result<Arithmetic, PipelineError> {
    Executable::of(folder)?.arithmetic(compute, execution)
}

/// In a word, for reports and arguments.
pub(crate) fn name(execution: Execution) -> &'static str {
    match execution {
        Execution::Simulated => "sim",
        Execution::Integer => "int8",
    }
}
