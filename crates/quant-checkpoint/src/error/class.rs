//! What kind of failure an error is, and how errors are made and listed.

use std::io;
use std::path::Path;

use super::CheckpointError;

/// Result of every fallible function of this crate.
pub type Result<T, E = CheckpointError> = std::result::Result<T, E>;

/// What kind of failure an error is, so that a command line can choose its exit code without listing variants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorClass {
    /// The files read are damaged, incomplete or lie about themselves.
    BadCheckpoint,
    /// The files are well formed, but this program cannot use them.
    Unsupported,
    /// The machine ran out of something (disk, memory) or the operating system refused a write.
    Resources,
    /// The caller asked for something that is refused on purpose, such as replacing an existing folder.
    Usage,
}

impl CheckpointError {
    /// The family of this error, from which an exit code follows.
    #[must_use]
    pub fn class(&self) -> ErrorClass {
        match self {
            Self::UnsupportedWeights { .. }
            | Self::DtypeMismatch { .. }
            | Self::Unsupported(_)
            | Self::ForeignQuantization { .. } => ErrorClass::Unsupported,
            Self::Tensors { faults, .. } => faults.first().map_or(ErrorClass::BadCheckpoint, Self::class),
            Self::OutOfMemory { .. } | Self::DiskFull { .. } | Self::NoSpace { .. } | Self::Write { .. } => {
                ErrorClass::Resources
            }
            Self::OutputExists { .. }
            | Self::BadOutput { .. }
            | Self::OutputTouchesInput { .. }
            | Self::OutputBusy { .. }
            | Self::Unfinished { .. }
            | Self::OtherJob { .. }
            | Self::BadOutputName { .. }
            | Self::PlanViolation { .. }
            | Self::NotEncodable { .. } => ErrorClass::Usage,
            _ => ErrorClass::BadCheckpoint,
        }
    }

    /// Wraps a failed read of `path`.
    pub(crate) fn read(path: &Path, source: io::Error) -> Self {
        Self::Read { path: path.to_path_buf(), source }
    }

    /// Wraps a failed write of `path`; a full disk gets its own variant.
    pub(crate) fn write(path: &Path, source: io::Error) -> Self {
        let path = path.to_path_buf();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                Self::DiskFull { path, source }
            }
            _ => Self::Write { path, source },
        }
    }
}

/// The first few of many faults of tensors: what is missing beside what is there instead.
pub(super) fn some(faults: &[CheckpointError]) -> String {
    let (mut missing, mut strange, mut others) = (Vec::new(), Vec::new(), Vec::new());
    for fault in faults {
        match fault {
            CheckpointError::NoSuchTensor { tensor, .. } => missing.push(format!("{tensor:?}")),
            CheckpointError::UnexpectedTensor { tensor, .. } => strange.push(format!("{tensor:?}")),
            other => others.push(other.to_string()),
        }
    }
    let strange_are = if missing.is_empty() { "not of this model" } else { "there instead" };
    [(&others, ""), (&missing, "missing: "), (&strange, &format!("{strange_are}: "))]
        .into_iter()
        .filter(|(list, _)| !list.is_empty())
        .map(|(list, label)| format!("{label}{}", first(list)))
        .collect::<Vec<_>>()
        .join("; ")
}

fn first(list: &[String]) -> String {
    const SHOWN: usize = 4;
    let mut text = list.iter().take(SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if list.len() > SHOWN {
        text.push_str(&format!(" and {} more", list.len() - SHOWN));
    }
    text
}
