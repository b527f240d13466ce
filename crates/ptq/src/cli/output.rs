//! What goes to stdout (results, and nothing else), and files of results.

use super::Failure;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

/// Prints JSON to stdout.
pub(super) fn print_json<T: serde::Serialize>(value: &T) -> Result<(), Failure> {
    print_line(serde_json::to_string_pretty(value).map_err(|e| Failure::other(e.to_string()))?)
}

/// Prints text and a line end to stdout.
pub(super) fn print_line(text: impl std::fmt::Display) -> Result<(), Failure> {
    let mut stdout = io::stdout().lock();
    written(writeln!(stdout, "{text}").and_then(|()| stdout.flush()))
}

/// A result that did not reach its reader is a failure, unless the reader has seen enough and closed the pipe.
pub(super) fn written(result: io::Result<()>) -> Result<(), Failure> {
    match result {
        Err(e) if e.kind() != io::ErrorKind::BrokenPipe => Err(Failure::stdout(&e)),
        _ => Ok(()),
    }
}

/// Prints a line of talk to stderr. Where nobody can read it, the work goes on.
pub(super) fn say(text: impl std::fmt::Display) {
    drop(writeln!(io::stderr(), "{text}"));
}

/// A place where a file of results can be written.
#[derive(Debug)]
pub(super) struct OutputFile {
    path: PathBuf,
    force: bool,
}

impl OutputFile {
    /// Checks the place before there is anything to write: an existing file is replaced only by `force`, anything else there never, and
    /// nothing is written into `folders`, which are models.
    pub(super) fn check(path: &Path, force: bool, folders: &[&Path]) -> Result<Self, Failure> {
        let refused = |why: String| Err(Failure::usage(format!("--output {}: {why}", path.display())));
        let Some(name) = path.file_name() else { return refused("it names no file".into()) };
        let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let Ok(parent) = parent.canonicalize() else {
            return refused(format!("there is no folder {}", parent.display()));
        };
        if let Some(model) =
            folders.iter().find(|f| f.canonicalize().is_ok_and(|real| parent.starts_with(real)))
        {
            return refused(format!("it lies in {}, and models are never written to", model.display()));
        }
        let output = Self { path: parent.join(name), force };
        output.replaceable()?;
        // The work that fills it may take hours.
        output.partial().map_err(|error| output.unwritable(&error))?;
        Ok(output)
    }

    fn replaceable(&self) -> Result<(), Failure> {
        let refused = |why| Err(Failure::usage(format!("--output {}: {why}", self.path.display())));
        match self.path.symlink_metadata() {
            Err(_) => Ok(()),
            Ok(there) if !there.is_file() => {
                refused("it exists and is not a plain file; choose another name")
            }
            Ok(_) if !self.force => {
                refused("it exists; remove it, choose another name, or replace it with --force")
            }
            Ok(_) => Ok(()),
        }
    }

    /// Writes all of it or nothing.
    pub(super) fn write(&self, bytes: &[u8]) -> Result<(), Failure> {
        self.replaceable()?;
        let write = || -> io::Result<()> {
            let mut file = self.partial()?;
            file.write_all(bytes)?;
            file.as_file().sync_all()?;
            file.persist(&self.path)?;
            Ok(())
        };
        write().map_err(|error| self.unwritable(&error))
    }

    /// A file beside it, gone when nobody has it any more.
    fn partial(&self) -> io::Result<tempfile::NamedTempFile> {
        tempfile::Builder::new()
            .prefix(".ptq.")
            .suffix(".partial")
            // As for any other output: what the umask leaves of it.
            .permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666))
            .tempfile_in(self.path.parent().unwrap_or(Path::new(".")))
    }

    fn unwritable(&self, error: &io::Error) -> Failure {
        Failure::resources(format!("cannot write {}: {error}", self.path.display()))
    }
}
