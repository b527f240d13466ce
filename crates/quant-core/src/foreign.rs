//! What a file is that is not what it should be, by how it begins.
//!
//! Folders of models and data are full of files that carry another file's name: pointers of Git-LFS, pages that a login
//! served, archives, text in another encoding. A parser only says which byte it did not like; this says what is there.

/// The content of a file that no reader here takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Foreign {
    /// What the file is, as the rest of a sentence: `a parquet file`.
    pub what: &'static str,
    /// What can be done about it.
    pub kind: ForeignKind,
}

/// What can be done about a file that is not read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ForeignKind {
    /// A table that pandas reads with `read_<name>`.
    Table(&'static str),
    /// Packed; the command unpacks it.
    Packed(&'static str),
    /// Text in UTF-16.
    Utf16,
    /// A pointer of Git-LFS in place of the file.
    LfsPointer,
    /// A web page in place of the file.
    Page,
    /// Something else.
    Other,
}

/// Beginnings of files and what they are.
const MAGIC: [(&[u8], &str, ForeignKind); 16] = [
    (b"PAR1", "a parquet file", ForeignKind::Table("parquet")),
    (b"ARROW1", "an Arrow file", ForeignKind::Table("feather")),
    (b"ORC", "an ORC file", ForeignKind::Table("orc")),
    (b"PK\x03\x04", "a zip archive (or a PyTorch file)", ForeignKind::Other),
    (b"\x28\xb5\x2f\xfd", "compressed with zstd", ForeignKind::Packed("zstd -d")),
    (b"BZh", "compressed with bzip2", ForeignKind::Packed("bunzip2 -k")),
    (b"\xfd7zXZ\0", "compressed with xz", ForeignKind::Packed("unxz -k")),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive", ForeignKind::Other),
    (b"\x93NUMPY", "a NumPy array", ForeignKind::Other),
    (b"\x89HDF", "an HDF5 file", ForeignKind::Other),
    (b"SQLite format 3\0", "an SQLite database", ForeignKind::Other),
    (b"%PDF-", "a PDF file", ForeignKind::Other),
    (b"GGUF", "a GGUF model", ForeignKind::Other),
    (b"\xff\xfe", "UTF-16 text", ForeignKind::Utf16),
    (b"\xfe\xff", "UTF-16 text", ForeignKind::Utf16),
    (
        b"version https://git-lfs.github.com/spec/",
        "a Git-LFS pointer, not the file itself",
        ForeignKind::LfsPointer,
    ),
];

/// How web pages begin, in lower case and after white space.
const PAGES: [&[u8]; 2] = [b"<!doctype html", b"<html"];

impl Foreign {
    /// How much of a file [`Foreign::recognise`] looks at, in bytes.
    pub const BEGINNING: usize = 512;

    /// The byte-order mark of UTF-8, which some editors put before a text and most parsers of JSON refuse.
    pub const UTF8_MARK: &[u8] = b"\xef\xbb\xbf";
    /// What a file with that mark is, in words.
    pub const MARKED: &str =
        "text that begins with a byte-order mark (BOM), which programs that load the folder refuse";

    /// How to remove the mark from the file `shown`.
    #[must_use]
    pub fn without_mark(shown: &str) -> String {
        format!("remove it: sed -i '1s/^\\xEF\\xBB\\xBF//' '{shown}'")
    }

    /// Recognises a file by its first bytes; none is anything that a reader may take. No safetensors file, JSON document or
    /// text that is meant to be one begins like these.
    #[must_use]
    pub fn recognise(beginning: &[u8]) -> Option<Self> {
        if let Some((_, what, kind)) = MAGIC.into_iter().find(|(magic, ..)| beginning.starts_with(magic)) {
            return Some(Self { what, kind });
        }
        let beginning = &beginning[..beginning.len().min(Self::BEGINNING)];
        let text = beginning.strip_prefix(Self::UTF8_MARK).unwrap_or(beginning).trim_ascii_start();
        let page =
            |mark: &&[u8]| text.get(..mark.len()).is_some_and(|start| start.eq_ignore_ascii_case(mark));
        let what = "a web page (HTML), not the file itself";
        PAGES.iter().any(page).then_some(Self { what, kind: ForeignKind::Page })
    }

    /// What to do about a file `shown` that belongs to a model's folder.
    #[must_use]
    pub fn advice_in_model(&self, shown: &str) -> String {
        match self.kind {
            ForeignKind::LfsPointer => {
                "the folder was cloned without git-lfs: run `git lfs pull` in it, or get the real files with `hf download \
                 ORG/NAME --local-dir DIR`"
                    .into()
            }
            ForeignKind::Page => {
                "the download met a login or an error page: log in (`hf auth login`), then `hf download ORG/NAME \
                 --local-dir DIR`"
                    .into()
            }
            ForeignKind::Utf16 => format!("convert it: iconv -f UTF-16 -t UTF-8 '{shown}' > file, and put that in its place"),
            ForeignKind::Packed(command) => format!("unpack it first: {command} '{shown}'"),
            ForeignKind::Table(_) | ForeignKind::Other => {
                "copy the file from the original model, or get the folder again with `hf download ORG/NAME --local-dir DIR`"
                    .into()
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beginnings_are_recognised() {
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d\nsize 3\n";
        for (bytes, what, kind) in [
            (&pointer[..], "Git-LFS", ForeignKind::LfsPointer),
            (b"<!DOCTYPE html><html>", "web page", ForeignKind::Page),
            (b"\xef\xbb\xbf\n <HTML lang=en>", "web page", ForeignKind::Page),
            (b"PAR1\x15\0", "parquet", ForeignKind::Table("parquet")),
            (b"\xff\xfe{\0", "UTF-16", ForeignKind::Utf16),
            (b"BZh9", "bzip2", ForeignKind::Packed("bunzip2 -k")),
            (b"GGUF\x03", "GGUF", ForeignKind::Other),
        ] {
            let found = Foreign::recognise(bytes).unwrap();
            assert!(found.what.contains(what) && found.kind == kind, "{found:?}");
            assert!(!found.advice_in_model("x").is_empty());
        }
    }

    #[test]
    fn what_a_reader_takes_is_not_foreign() {
        let mut safetensors = 2_u64.to_le_bytes().to_vec();
        safetensors.extend(b"{}");
        for bytes in
            [&b""[..], b"{}", b"\xef\xbb\xbf{}", b"text", b"<html", b"version 2", b"<s>", &safetensors]
        {
            let page = bytes == b"<html";
            assert_eq!(Foreign::recognise(bytes).is_some(), page, "{}", String::from_utf8_lossy(bytes));
        }
    }
}
