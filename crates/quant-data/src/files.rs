//! Bounded reads of untrusted files.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use quant_core::Foreign;

use crate::DataError;

/// Largest data or tokenizer file that is read: 1 GiB.
pub(crate) const MAX_FILE_BYTES: u64 = 1 << 30;

/// Reads a whole regular file of at most `limit` bytes. The type is looked at before opening, because opening a pipe waits for its
/// other end.
pub(crate) fn read_bytes(path: &Path, limit: u64) -> Result<Vec<u8>, DataError> {
    read_if(path, limit, std::fs::Metadata::is_file)
}

/// Reads what a person named, which may also be a pipe: it is waited for.
pub(crate) fn read_given(path: &Path, limit: u64) -> Result<Vec<u8>, DataError> {
    read_if(path, limit, |kind| !kind.is_dir())
}

/// Reads what is of a kind. The limit holds for the bytes really read, not only for the size the file system reports, so that growing
/// files cannot exceed it.
fn read_if(path: &Path, limit: u64, of_kind: fn(&std::fs::Metadata) -> bool) -> Result<Vec<u8>, DataError> {
    let io = |source| DataError::Io { path: path.to_owned(), source };
    let too_large = || DataError::TooLarge { path: path.to_owned(), limit };
    if !of_kind(&std::fs::metadata(path).map_err(io)?) {
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

/// Reads a file of a model's folder as [`read_bytes`] does, refusing pointers, web pages and other things in its place.
pub(crate) fn read_model_file(path: &Path, limit: u64) -> Result<Vec<u8>, DataError> {
    let bytes = read_bytes(path, limit)?;
    match Foreign::recognise(&bytes) {
        None => Ok(bytes),
        Some(found) => Err(foreign(path, found.what, found.advice_in_model(&path.display().to_string()))),
    }
}

/// As [`read_model_file`] for JSON, refusing a byte-order mark as well: the clients of the folder do.
pub(crate) fn read_model_json(path: &Path, limit: u64) -> Result<Vec<u8>, DataError> {
    let bytes = read_model_file(path, limit)?;
    if bytes.starts_with(Foreign::UTF8_MARK) {
        return Err(foreign(path, Foreign::MARKED, Foreign::without_mark(&path.display().to_string())));
    }
    Ok(bytes)
}

fn foreign(path: &Path, what: &str, advice: String) -> DataError {
    DataError::NotText { path: path.to_owned(), what: what.to_owned(), advice }
}

/// Reads a whole UTF-8 file of a model's folder of at most `limit` bytes, unchanged: a byte-order mark is part of a chat
/// template's text for its clients too.
pub(crate) fn read_text(path: &Path, limit: u64) -> Result<String, DataError> {
    String::from_utf8(read_model_file(path, limit)?)
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
    fn what_stands_in_place_of_a_file_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokenizer.json");
        for (bytes, parts) in [
            (
                &b"version https://git-lfs.github.com/spec/v1\noid sha256:4d"[..],
                ["Git-LFS pointer", "git lfs pull"],
            ),
            (b"<!doctype html><title>Sign in</title>", ["a web page", "hf auth login"]),
            (b"\xff\xfe{\0}\0", ["UTF-16", "iconv"]),
            (b"\xef\xbb\xbf{}", ["byte-order mark", "sed -i"]),
        ] {
            std::fs::write(&path, bytes).unwrap();
            let text = read_model_json(&path, 4096).unwrap_err().to_string();
            assert!(
                text.contains("tokenizer.json") && parts.iter().all(|part| text.contains(part)),
                "{text}"
            );
            let marked = bytes.starts_with(Foreign::UTF8_MARK);
            assert_eq!(read_text(&path, 4096).is_ok(), marked, "{text}");
        }
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
