//! Exit codes: what kind of thing went wrong.

use quant_checkpoint::{CheckpointError, ErrorClass};
use quant_core::{CoreError, ProcessorProblem};
use quant_data::DataError;
use quant_eval::EvalError;
use quant_model::ModelError;
use quant_pipeline::PipelineError;
use quant_study::StudyError;
use std::error::Error;
use std::io::ErrorKind;

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
        Self::told(1)
    }
    /// A failure of which everything has been said already.
    #[must_use]
    pub fn told(code: u8) -> Self {
        Self { code, message: None }
    }
    /// A result that could not be written to stdout.
    #[must_use]
    pub fn stdout(error: &std::io::Error) -> Self {
        Self::resources(format!("cannot write the result to stdout: {error}"))
    }
    /// The command line or recipe is wrong.
    #[must_use]
    pub fn usage(message: impl Into<String>) -> Self {
        Self { code: 2, message: Some(message.into()) }
    }
    /// Refuses the first of some flags that is given; each goes with something else, which `goes` says.
    ///
    /// # Errors
    /// A [usage](Self::usage) that names the flag.
    pub(super) fn none_given(flags: &[(bool, &str)], goes: &str) -> Result<(), Self> {
        let refused = |(_, flag): &(bool, &str)| Err(Self::usage(format!("{flag} goes with {goes}")));
        flags.iter().find(|(given, _)| *given).map_or(Ok(()), refused)
    }
    /// What this program, or this machine, does not do.
    #[must_use]
    pub fn unsupported(message: impl Into<String>) -> Self {
        Self { code: 3, message: Some(message.into()) }
    }
    /// Memory, a disk or a file that cannot be written.
    #[must_use]
    pub fn resources(message: impl Into<String>) -> Self {
        Self { code: 5, message: Some(message.into()) }
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
        let mut message = with_causes(&error);
        if matches!(error, PipelineError::Interrupted) {
            message += "; nothing was left behind";
        }
        Self { code: exit_code(&error), message: Some(message) }
    }
}

impl Failure {
    /// Of a task or a study.
    pub(super) fn of_study(error: StudyError) -> Self {
        let code = match &error {
            StudyError::Pipeline(error) => exit_code(error),
            StudyError::Grid { .. } | StudyError::NoPreset { .. } | StudyError::Usage(_) => 2,
            StudyError::Journal { .. } | StudyError::Changed { .. } => 2,
            StudyError::NothingLegal(_) | StudyError::Refused(_) => 3,
            #[cfg(feature = "server")]
            StudyError::Server(error) if error.is_unreachable() => 5,
            #[cfg(feature = "server")]
            StudyError::Server(error) if error.is_unreadable() => 4,
            // An address, a key or a name that is not the server's.
            #[cfg(feature = "server")]
            StudyError::Server(_) => 2,
            StudyError::Locked { .. } => 5,
            // A grid or task that is not there is a mistake in the command; a full disk is not.
            StudyError::Io { source, .. } => match source.kind() {
                ErrorKind::NotFound | ErrorKind::IsADirectory | ErrorKind::InvalidData => 2,
                _ => 5,
            },
            _ => 1,
        };
        Self { code, message: Some(with_causes(&error)) }
    }
}

/// Exit code of a run that was stopped from the keyboard: 128 and the number of the signal, as shells have it.
pub const INTERRUPTED: u8 = 130;

/// 1 a check failed, 2 usage or recipe, 3 unsupported, 4 bad checkpoint or data, 5 resources, 130 interrupted.
#[must_use]
pub fn exit_code(error: &PipelineError) -> u8 {
    use PipelineError as E;
    if let E::In { source, .. } | E::Kept { source, .. } = error {
        return exit_code(source);
    }
    // What a reader of blocks reports may arrive wrapped in the errors of the model and of the metrics.
    let checkpoint = match error {
        E::Checkpoint(e) => Some(e),
        _ => chain(error).find_map(|e| e.downcast_ref::<CheckpointError>()),
    };
    if let Some(e) = checkpoint {
        return match e.class() {
            ErrorClass::Usage => 2,
            ErrorClass::Unsupported => 3,
            ErrorClass::Resources => 5,
            ErrorClass::BadCheckpoint => 4,
        };
    }
    let processor = match error {
        E::Core(e) => Some(e),
        _ => chain(error).find_map(|e| e.downcast_ref::<CoreError>()),
    };
    if let Some(CoreError::Processor { kind, .. }) = processor {
        return match kind {
            ProcessorProblem::Unavailable => 3,
            ProcessorProblem::Memory => 5,
            ProcessorProblem::Failed => 1,
        };
    }
    match error {
        E::Recipe(error) if error.is_unsupported() => 3,
        E::Recipe(_) | E::Usage(_) => 2,
        E::Unsupported(_) | E::QuantisedAlready { .. } | E::NotOnProcessor { .. } => 3,
        E::Model(ModelError::UnknownArchitecture { .. } | ModelError::Unsupported { .. }) => 3,
        E::Data(
            DataError::Task { .. }
            | DataError::Spec { .. }
            | DataError::Option { .. }
            | DataError::TooManyTokens { .. },
        ) => 2,
        #[cfg(feature = "hub")]
        E::Data(DataError::Hub(error)) => of_hub(error),
        E::Eval(EvalError::NoScorer { .. }) => 2,
        // The logits' file is the only receiver: it could not be written.
        E::Eval(EvalError::Sink { .. }) | E::Logits { .. } => 5,
        E::Eval(EvalError::Programs { .. }) => 5,
        E::Model(_) | E::Data(_) | E::Eval(_) | E::Core(_) | E::Method { .. } | E::NotFinite { .. } => 4,
        E::Memory { .. } | E::Exhausted { .. } | E::Context { .. } | E::Threads { .. } => 5,
        // A recipe that is not there, not readable or not text; everything else is the disk of spilled activations.
        E::Io { source, .. } => match source.kind() {
            ErrorKind::NotFound
            | ErrorKind::PermissionDenied
            | ErrorKind::IsADirectory
            | ErrorKind::NotADirectory
            | ErrorKind::InvalidInput
            | ErrorKind::InvalidFilename
            | ErrorKind::InvalidData => 2,
            _ => 5,
        },
        E::Interrupted => INTERRUPTED,
        _ => 1,
    }
}

/// Of files from the hub: 2 a token or an address, 5 nobody there or no room, 130 stopped, 4 what it answered.
#[cfg(feature = "hub")]
fn of_hub(error: &quant_data::HubError) -> u8 {
    use quant_data::HubError as H;
    match error {
        H::Token { .. } | H::Endpoint { .. } => 2,
        H::Unreachable { .. } | H::CannotWrite { .. } => 5,
        H::Stopped => INTERRUPTED,
        _ => 4,
    }
}

/// An error and its causes, outermost first.
fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    std::iter::successors(Some(error), |&e| e.source())
}

/// The message with every cause that it does not repeat itself.
fn with_causes(error: &(dyn Error + 'static)) -> String {
    chain(error).fold(String::new(), |text, e| match e.to_string() {
        cause if text.is_empty() => cause,
        cause if text.contains(&cause) => text,
        cause => format!("{text}: {cause}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;

    fn io_error(kind: ErrorKind) -> PipelineError {
        PipelineError::Io { path: "x".into(), source: kind.into() }
    }

    #[test]
    fn full_disks_are_resources_wherever_they_are_met() {
        assert_eq!(exit_code(&io_error(ErrorKind::StorageFull)), 5);
        assert_eq!(exit_code(&io_error(ErrorKind::FileTooLarge)), 5);
        let logits = PipelineError::Logits { path: "x".into(), source: ErrorKind::PermissionDenied.into() };
        assert_eq!(exit_code(&logits), 5);
        let source = io::Error::from(ErrorKind::StorageFull).into();
        let sink = EvalError::Sink { sequence: 0, position: 0, source };
        assert_eq!(exit_code(&sink.into()), 5);
        assert_eq!(exit_code(&PipelineError::Interrupted), 130);
    }

    #[test]
    fn recipes_that_cannot_be_read_are_usage() {
        for kind in [
            ErrorKind::NotFound,
            ErrorKind::PermissionDenied,
            ErrorKind::IsADirectory,
            ErrorKind::NotADirectory,
            ErrorKind::InvalidData,
        ] {
            assert_eq!(exit_code(&io_error(kind)), 2, "{kind}");
        }
    }

    #[test]
    fn what_is_kept_is_not_said_to_be_gone() {
        let interrupted = Failure::from(PipelineError::Interrupted);
        assert_eq!(interrupted.message(), Some("interrupted; nothing was left behind"));
        let kept = PipelineError::Kept { folder: "o".into(), source: Box::new(PipelineError::Interrupted) };
        let kept = Failure::from(kept);
        let message = kept.message().unwrap_or_default();
        assert!(message.ends_with("delete that folder") && !message.contains("left behind"), "{message}");
    }

    #[test]
    fn wrapped_causes_keep_their_class_and_are_told_once() {
        let tensor = "model.norm.weight".to_owned();
        let cause = CheckpointError::NoSuchTensor { path: "m".into(), tensor };
        let wrapped = ModelError::Source(quant_graph::SourceError::new("block 3", "m", cause));
        let error = PipelineError::Eval(EvalError::Model {
            side: quant_eval::Side::Model,
            stage: "encoding",
            source: wrapped.into(),
        });
        assert_eq!(exit_code(&error), 4);
        let failure = Failure::from(error);
        let message = failure.message().unwrap_or_default();
        assert_eq!(message.matches("block 3").count(), 1, "{message}");
        assert_eq!(message.matches("model.norm.weight").count(), 1, "{message}");
    }

    #[test]
    fn errors_of_a_source_keep_their_type() {
        let fail = |cause: quant_graph::BoxError| -> Result<(), PipelineError> {
            Err(quant_graph::SourceError::new("model.layers.0", "m", cause))?
        };
        let missing = CheckpointError::NoSuchTensor { path: "m".into(), tensor: "x".into() };
        assert!(matches!(fail(missing.into()), Err(PipelineError::Checkpoint(_))));
        assert!(matches!(fail(PipelineError::Interrupted.into()), Err(PipelineError::Interrupted)));
        let Err(foreign) = fail("a cable is loose".into()) else { unreachable!("it fails") };
        assert_eq!(with_causes(&foreign), "model.layers.0 could not be read from m: a cable is loose");
    }
}
