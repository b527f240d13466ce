//! Bounded reads of untrusted files.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::DataError;

/// Largest data or tokenizer file that is read: 1 GiB.
pub(crate) const MAX_FILE_BYTES: u64 = 1 << 30;

/// Reads a whole regular file of at most `limit` bytes. The limit holds for the bytes really read, not only for the
/// size the file system reports, so that growing files cannot exceed it.
pub(crate) fn read_bytes(path: &Path, limit: u64) -> Result<Vec<u8>, DataError> {
    let io = |source| DataError::Io { path: path.to_owned(), source };
    let too_large = || DataError::TooLarge { path: path.to_owned(), limit };
    // Looked at before opening, because opening a pipe waits for its other end.
    if !std::fs::metadata(path).map_err(io)?.is_file() {
        return Err(DataError::NotARegularFile { path: path.to_owned() });
    }
    let file = File::open(path).map_err(io)?;
    let size = file.metadata().map_err(io)?.len();
    if size > limit {
        return Err(too_large());
    }
    let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    file.take(limit + 1).read_to_end(&mut bytes).map_err(io)?;
    if bytes.len() as u64 > limit {
        return Err(too_large());
    }
    Ok(bytes)
}

/// Reads a whole UTF-8 file of at most `limit` bytes, unchanged.
pub(crate) fn read_text(path: &Path, limit: u64) -> Result<String, DataError> {
    String::from_utf8(read_bytes(path, limit)?)
        .map_err(|e| DataError::NotUtf8 { path: path.to_owned(), offset: e.utf8_error().valid_up_to() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_and_encoding_are_checked() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        std::fs::write(&path, b"ab\xffc").unwrap();
        assert!(matches!(read_bytes(&path, 3), Err(DataError::TooLarge { limit: 3, .. })));
        assert_eq!(read_bytes(&path, 4).unwrap(), b"ab\xffc");
        assert!(matches!(read_text(&path, 4), Err(DataError::NotUtf8 { offset: 2, .. })));
        assert!(matches!(read_text(&folder.path().join("absent"), 4), Err(DataError::Io { .. })));
    }

    #[test]
    fn folders_pipes_and_devices_are_refused_without_waiting() {
        let folder = tempfile::tempdir().unwrap();
        let pipe = folder.path().join("pipe");
        let made = std::process::Command::new("mkfifo").arg(&pipe).status().unwrap();
        assert!(made.success());
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(&pipe, &link).unwrap();
        for path in [folder.path(), &pipe, &link, Path::new("/dev/zero")] {
            let error = read_bytes(path, 4).unwrap_err();
            assert!(matches!(error, DataError::NotARegularFile { .. }), "{}: {error}", path.display());
        }
    }
}
