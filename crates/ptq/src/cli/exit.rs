//! Exit codes: what kind of thing went wrong.

use quant_checkpoint::ErrorClass;
use quant_data::DataError;
use quant_model::ModelError;
use quant_pipeline::PipelineError;

/// A command that did not succeed.
#[derive(Debug)]
pub struct Failure {
    code: u8,
    message: Option<String>,
}

impl Failure {
    /// A check failed; everything has been said already.
    #[must_use]
    pub fn check() -> Self {
        Self { code: 1, message: None }
    }
    /// The command line or recipe is wrong.
    #[must_use]
    pub fn usage(message: impl Into<String>) -> Self {
        Self { code: 2, message: Some(message.into()) }
    }
    /// Something that fits no other code.
    #[must_use]
    pub fn other(message: impl Into<String>) -> Self {
        Self { code: 1, message: Some(message.into()) }
    }
    /// The process's exit code.
    #[must_use]
    pub fn code(&self) -> u8 {
        self.code
    }
    /// What to print to stderr.
    #[must_use]
    pub fn message(&self) -> Option<&str> {
        self.message.as_deref()
    }
}

impl<E: Into<PipelineError>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        Self { code: exit_code(&error), message: Some(error.to_string()) }
    }
}

/// 1 a check failed, 2 usage or recipe, 3 unsupported, 4 bad checkpoint or data, 5 resources.
#[must_use]
pub fn exit_code(error: &PipelineError) -> u8 {
    use PipelineError as E;
    let class = |class: ErrorClass| match class {
        ErrorClass::Usage => 2,
        ErrorClass::Unsupported => 3,
        ErrorClass::Resources => 5,
        _ => 4,
    };
    match error {
        E::Recipe(_) | E::Usage(_) => 2,
        E::Unsupported(_) => 3,
        E::Checkpoint(e) => class(e.class()),
        E::Model(ModelError::UnknownArchitecture { .. } | ModelError::Unsupported { .. }) => 3,
        E::Data(DataError::Spec { .. } | DataError::Option { .. }) => 2,
        E::Model(_) | E::Data(_) | E::Eval(_) | E::Core(_) | E::Method { .. } | E::NotFinite { .. } => 4,
        E::Memory { .. } | E::Threads { .. } => 5,
        E::Io { source, .. } => match source.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::OutOfMemory => 5,
            std::io::ErrorKind::NotFound => 2,
            _ => 4,
        },
        _ => 1,
    }
}
