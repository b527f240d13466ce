//! Why a call is not answered.

/// What a call returns that was reported instead of answered: no code of CANN.
pub(crate) const REPORTED: i32 = -90_001;

/// Kinds of handles, in the order of [`crate::Kind`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Handle {
    Context,
    Stream,
    Event,
    Tensor,
    IntArray,
    TensorList,
    Executor,
}

/// Why a call does not do what it is asked for.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// A code of CANN, with its message.
    Code(i32, String),
    /// Undefined by the documents: the simulator's own report.
    Report(String),
}

pub(crate) type Answer<T> = Result<T, Refusal>;

pub(crate) fn refuse<T>(code: u32, message: impl Into<String>) -> Answer<T> {
    Err(Refusal::Code(code.cast_signed(), message.into()))
}
pub(crate) fn report<T>(message: impl Into<String>) -> Answer<T> {
    Err(Refusal::Report(message.into()))
}
