//! What can go wrong between a caller and an NPU.

use quant_core::{CoreError, ProcessorProblem};
use thiserror::Error;

use crate::ffi::{
    ACL_ERROR_BAD_ALLOC, ACL_ERROR_RT_DEVICE_OOM, ACL_ERROR_RT_MEMORY_ALLOCATION, ACL_ERROR_RT_NO_DEVICE,
};

/// An error of this crate, or of CANN with its code and message.
#[derive(Clone, Debug, Error, PartialEq)]
#[non_exhaustive]
pub enum AscendError {
    /// No CANN runtime.
    #[error(
        "no CANN runtime was found; looked for {library} at: {tried}. Install the CANN toolkit, or name the folder of its libraries \
         (--cann-library DIR)"
    )]
    NotFound {
        /// The library that everything begins with.
        library: &'static str,
        /// Where it was looked for.
        tried: String,
    },
    /// A library that is there and cannot be opened.
    #[error("{library} was found and cannot be opened: {reason}")]
    Broken {
        /// Its file.
        library: String,
        /// What the linker says.
        reason: String,
    },
    /// A function that the installed version lacks.
    #[error(
        "CANN's {symbol} is not in {library}; it needs another version of CANN, or an operator package that is not installed"
    )]
    Missing {
        /// The function.
        symbol: &'static str,
        /// The libraries that were looked into.
        library: String,
    },
    /// There is no such device.
    #[error("device {device} was asked for, and {count} are there; see `npu-smi info`")]
    NoDevice {
        /// The number of the device.
        device: i32,
        /// How many there are.
        count: u32,
    },
    /// A call of CANN failed.
    #[error("{call} of CANN failed with {code} ({meaning}): {message}")]
    Cann {
        /// The function.
        call: &'static str,
        /// Its code.
        code: i32,
        /// What the documents call this code.
        meaning: &'static str,
        /// CANN's own message, if it left one.
        message: String,
    },
    /// Arguments that do not fit each other, or an operator.
    #[error("{what}: expected {expected}, found {found}")]
    Shape {
        /// Which argument.
        what: &'static str,
        /// What it must be.
        expected: String,
        /// What it is.
        found: String,
    },
    /// Something of one device is used with another.
    #[error("{what} belongs to another device than the stream or operator it is used with")]
    OtherDevice {
        /// What.
        what: &'static str,
    },
    /// Something is closed while parts of it are in use.
    #[error("{what} is closed while {users} other values use it; drop them first")]
    InUse {
        /// What.
        what: &'static str,
        /// How many.
        users: usize,
    },
}

/// A result of this crate.
pub type Result<T, E = AscendError> = std::result::Result<T, E>;

impl AscendError {
    pub(crate) fn shape(what: &'static str, expected: impl Into<String>, found: impl Into<String>) -> Self {
        Self::Shape { what, expected: expected.into(), found: found.into() }
    }

    /// Whether the memory of the device, or page-locked memory of the host, was not enough.
    #[must_use]
    pub fn is_out_of_memory(&self) -> bool {
        let codes = [ACL_ERROR_BAD_ALLOC, ACL_ERROR_RT_MEMORY_ALLOCATION, ACL_ERROR_RT_DEVICE_OOM];
        matches!(self, Self::Cann { code, .. } if codes.contains(&code.cast_unsigned()))
    }

    /// Whether there is no library or no device to run on, so that what [`doctor`](crate::doctor()) says helps.
    #[must_use]
    pub fn is_unavailable(&self) -> bool {
        match self {
            Self::NotFound { .. } | Self::Broken { .. } | Self::Missing { .. } | Self::NoDevice { .. } => {
                true
            }
            Self::Cann { code, .. } => code.cast_unsigned() == ACL_ERROR_RT_NO_DEVICE,
            _ => false,
        }
    }
}

impl From<AscendError> for CoreError {
    fn from(error: AscendError) -> Self {
        let kind = match (error.is_out_of_memory(), error.is_unavailable()) {
            (true, _) => ProcessorProblem::Memory,
            (_, true) => ProcessorProblem::Unavailable,
            _ => ProcessorProblem::Failed,
        };
        Self::Processor { message: error.to_string(), kind }
    }
}

/// What the documents call a code.
pub(crate) fn meaning(code: i32) -> &'static str {
    match code {
        100_000 => "invalid parameter",
        100_001 => "not initialised",
        100_002 => "initialised twice",
        107_000 => "bad parameter",
        107_001 => "no such device",
        107_002 => "no current context",
        107_003 => "stream of another context",
        107_008 => "unaligned address",
        107_017 => "bad handle",
        107_019 => "wait timed out",
        161_001 => "null pointer",
        161_002 => "invalid parameter of an operator",
        200_000 => "bad allocation",
        200_006 => "unsupported feature",
        207_000 => "feature not supported by the runtime",
        207_001 => "memory allocation",
        207_002 => "memory could not be freed",
        207_004 => "no device",
        207_018 => "out of device memory",
        361_001 => "a call of the runtime failed",
        500_000 | 507_000 => "internal error",
        507_014 => "AI core timed out",
        507_015 => "AI core exception",
        507_046 => "synchronisation of a stream timed out",
        561_000 => "internal error of an operator",
        561_001 => "shape inference",
        561_002 => "tiling",
        561_003 => "kernel not found",
        561_101 => "executor could not be made",
        561_103 => "null pointer inside an operator",
        561_107 => "ASCEND_OPP_PATH is not set; source CANN's set_env.sh",
        561_112 => "operator package not installed",
        _ => "a code that is not known here",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_and_absence_are_told_apart() {
        let cann = |code| AscendError::Cann {
            call: "aclrtMalloc",
            code,
            meaning: meaning(code),
            message: "EL0004".into(),
        };
        for code in [200_000, 207_001, 207_018] {
            assert!(cann(code).is_out_of_memory() && !cann(code).is_unavailable(), "{code}");
        }
        assert!(cann(207_004).is_unavailable() && !cann(507_015).is_out_of_memory());
        let core = CoreError::from(cann(207_018));
        assert!(matches!(&core, CoreError::Processor { kind: ProcessorProblem::Memory, .. }), "{core}");
        assert_eq!(core.to_string(), "aclrtMalloc of CANN failed with 207018 (out of device memory): EL0004");
    }
}
