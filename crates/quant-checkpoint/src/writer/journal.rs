//! The journal of an output in the making: what it takes to go on where a run broke off.
//!
//! It lies in the folder [`JOURNAL`] of the unfinished output, in segments `NNNNNNNN.journal`. A segment is complete in
//! itself: it begins with the identity of the job and everything that is known at that moment, and what becomes known
//! later is appended. A new one is begun where what is known can be said anew in less; once its first record is on the
//! disk, the older ones go.
//!
//! A segment is a sequence of frames: kind, CRC-32 of all the rest, length, bytes, little-endian. Frames of
//! [`Kind::Data`] belong to the caller; one of [`Kind::Tensors`] says which tensors are on the disk, with their hashes; one of
//! [`Kind::End`] closes a record. Nothing is believed that stands behind the last whole record: its bytes, and those of
//! the weights it speaks of, were synced before the call that wrote it returned.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufReader, Read};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use quant_core::CoreError;
use quant_core::codec::{decoded, encoded};

use crate::error::{CheckpointError, Difference, Result};
use crate::hash::TensorHash;
use crate::marker::JOURNAL;

/// How every segment begins.
pub(super) const MAGIC: [u8; 8] = *b"ptq-jrnl";
const SUFFIX: &str = ".journal";
/// Bytes of a frame before its content.
const HEAD: usize = 16;
/// Bytes read at a time.
const PIECE: usize = 1 << 20;

/// What a job is, as fields that must be the same for it to go on, each with its value in words or as a hash.
pub type Identity = Vec<(String, String)>;

/// What a frame holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Identity,
    Data,
    Tensors,
    End,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Identity, Self::Data, Self::Tensors, Self::End];

    fn tag(self) -> u32 {
        match self {
            Self::Identity => 1,
            Self::Data => 2,
            Self::Tensors => 3,
            Self::End => 4,
        }
    }
}

/// The bytes before the content of a frame.
pub(super) fn head(kind: Kind, content: &[u8]) -> [u8; HEAD] {
    let (tag, length) = (kind.tag().to_le_bytes(), (content.len() as u64).to_le_bytes());
    let mut crc = start(tag, length);
    crc.update(content);
    let mut head = [0; HEAD];
    head[..4].copy_from_slice(&tag);
    head[4..8].copy_from_slice(&crc.finalize().to_le_bytes());
    head[8..].copy_from_slice(&length);
    head
}

/// The checksum of a frame, before its content.
fn start(tag: [u8; 4], length: [u8; 8]) -> crc32fast::Hasher {
    let mut crc = crc32fast::Hasher::new();
    crc.update(&tag);
    crc.update(&length);
    crc
}

/// The file of a segment.
pub(super) fn segment(folder: &Path, number: u32) -> PathBuf {
    folder.join(format!("{number:08}{SUFFIX}"))
}

/// The segments in a folder, the newest first. A folder that is not there has none.
fn segments(folder: &Path) -> Result<Vec<(u32, PathBuf)>> {
    let fail = |e| CheckpointError::read(folder, e);
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(e) => return Err(fail(e)),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(fail)?;
        let number = entry.file_name().to_str().and_then(|name| name.strip_suffix(SUFFIX)?.parse().ok());
        if let (Some(number), true) = (number, entry.file_type().map_err(fail)?.is_file()) {
            found.push((number, entry.path()));
        }
    }
    found.sort_unstable_by_key(|(number, _)| std::cmp::Reverse(*number));
    Ok(found)
}

/// What an unfinished output knows of the work that went into it.
#[derive(Debug)]
pub struct Kept {
    path: PathBuf,
    file: File,
    identity: Identity,
    /// Where the caller's frames are.
    frames: Vec<(u64, u64)>,
    /// The tensors on the disk.
    pub(super) hashes: BTreeMap<String, TensorHash>,
    /// Of the segment.
    pub(super) number: u32,
    /// The first byte that is not believed.
    pub(super) end: u64,
    /// Segments that say nothing.
    pub(super) worthless: Vec<PathBuf>,
}

impl Kept {
    /// What the journal of the unfinished folder `partial` knows; none if it has no whole record.
    pub(super) fn find(partial: &Path) -> Result<Option<Self>> {
        let mut worthless = Vec::new();
        let mut found: Option<Self> = None;
        for (number, path) in segments(&partial.join(JOURNAL))? {
            match if found.is_some() { None } else { Self::read_segment(&path, number)? } {
                Some(kept) => found = Some(kept),
                None => worthless.push(path),
            }
        }
        Ok(found.map(|kept| Self { worthless, ..kept }))
    }

    /// The segment's file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many frames there are.
    #[must_use]
    pub fn frames(&self) -> usize {
        self.frames.len()
    }

    /// The content of a frame.
    ///
    /// # Errors
    /// [`CheckpointError::Read`]; [`CheckpointError::DamagedJournal`] for a frame that is not there.
    pub fn read(&self, frame: usize) -> Result<Vec<u8>> {
        self.beginning(frame, u64::MAX)
    }

    /// The content of a frame, at most so many bytes of it.
    ///
    /// # Errors
    /// As [`Kept::read`].
    pub fn beginning(&self, frame: usize, bytes: u64) -> Result<Vec<u8>> {
        let Some(&(offset, length)) = self.frames.get(frame) else {
            return Err(self.damaged(format!("frame {frame} is asked for, there are {}", self.frames.len())));
        };
        // The file was at least that long when it was read, so the length is one that exists.
        let mut content = vec![0; usize::try_from(length.min(bytes)).unwrap_or(usize::MAX)];
        self.file.read_exact_at(&mut content, offset).map_err(|e| CheckpointError::read(&self.path, e))?;
        Ok(content)
    }

    /// A journal whose bytes are whole and make no sense.
    #[must_use]
    pub fn damaged(&self, detail: impl Into<String>) -> CheckpointError {
        CheckpointError::DamagedJournal { path: self.path.clone(), detail: detail.into() }
    }

    /// Refuses to go on with another job.
    pub(super) fn check(&self, identity: &Identity) -> Result<()> {
        let value = |of: &Identity, field: &str| of.iter().find(|(f, _)| f == field).map(|(_, v)| v.clone());
        let mut differences = Vec::new();
        for (field, _) in identity.iter().chain(&self.identity) {
            let (kept, given) = (value(&self.identity, field), value(identity, field));
            let known = differences.iter().any(|d: &Difference| d.field == *field);
            if kept != given && !known {
                differences.push(Difference { field: field.clone(), kept, given });
            }
        }
        if differences.is_empty() {
            return Ok(());
        }
        let partial = self.path.ancestors().nth(2).unwrap_or(&self.path);
        Err(CheckpointError::OtherJob { path: partial.to_path_buf(), differences })
    }

    /// None where there is no whole record.
    fn read_segment(path: &Path, number: u32) -> Result<Option<Self>> {
        let fail = |e| CheckpointError::read(path, e);
        let file = File::open(path).map_err(fail)?;
        let mut left = file.metadata().map_err(fail)?.len();
        let mut kept = Self {
            path: path.to_path_buf(),
            file: file.try_clone().map_err(fail)?,
            identity: Identity::new(),
            frames: Vec::new(),
            hashes: BTreeMap::new(),
            number,
            end: 0,
            worthless: Vec::new(),
        };
        let mut from = BufReader::with_capacity(PIECE, file);
        let mut magic = [0; MAGIC.len()];
        if left < MAGIC.len() as u64 || from.read_exact(&mut magic).is_err() || magic != MAGIC {
            return Ok(None);
        }
        left -= MAGIC.len() as u64;
        let mut at = MAGIC.len() as u64;
        // Of the record that is being read.
        let mut frames = Vec::new();
        let mut hashes: Vec<(String, TensorHash)> = Vec::new();
        while let Some((kind, length, content)) = next_frame(&mut from, &mut left).map_err(fail)? {
            let content_at = at + HEAD as u64;
            let senseless = |e: CoreError| CheckpointError::DamagedJournal {
                path: path.to_path_buf(),
                detail: format!("at byte {content_at}: {e}"),
            };
            match kind {
                Kind::Identity => kept.identity = decoded(&content).map_err(senseless)?,
                Kind::Data => frames.push((content_at, length)),
                Kind::Tensors => hashes.extend(decoded::<Vec<_>>(&content).map_err(senseless)?),
                Kind::End => {
                    kept.frames.append(&mut frames);
                    kept.hashes.extend(hashes.drain(..));
                    kept.end = content_at + length;
                }
            }
            at = content_at + length;
        }
        Ok((kept.end > 0).then_some(kept))
    }
}

/// The next frame: its kind, its length, and its content unless that is the caller's. None at the first that is not whole.
fn next_frame(from: &mut impl Read, left: &mut u64) -> io::Result<Option<(Kind, u64, Vec<u8>)>> {
    let mut head = [0; HEAD];
    let Some(behind) = left.checked_sub(HEAD as u64) else { return Ok(None) };
    from.read_exact(&mut head)?;
    let (tag, crc, length) = ([head[0], head[1], head[2], head[3]], &head[4..8], &head[8..]);
    let mut wide = [0; 8];
    wide.copy_from_slice(length);
    let length = u64::from_le_bytes(wide);
    let kind = Kind::ALL.into_iter().find(|kind| kind.tag().to_le_bytes() == tag);
    let (Some(kind), Some(behind)) = (kind, behind.checked_sub(length)) else { return Ok(None) };
    let mut check = start(tag, wide);
    let mut content = Vec::new();
    let mut piece = vec![0; PIECE];
    let mut missing = length;
    while missing > 0 {
        let now = usize::try_from(missing).map_or(PIECE, |m| m.min(PIECE));
        from.read_exact(&mut piece[..now])?;
        check.update(&piece[..now]);
        if kind != Kind::Data {
            content.extend_from_slice(&piece[..now]);
        }
        missing -= now as u64;
    }
    if check.finalize().to_le_bytes() != *crc {
        return Ok(None);
    }
    *left = behind;
    Ok(Some((kind, length, content)))
}

/// The content of an identity's frame.
pub(super) fn identity_frame(identity: &Identity) -> Vec<u8> {
    encoded(identity)
}

/// The content of a frame of tensors.
pub(super) fn tensors_frame(hashes: &BTreeMap<String, TensorHash>, names: &[String]) -> Vec<u8> {
    let of = |name: &String| Some((name.clone(), *hashes.get(name)?));
    encoded(&names.iter().filter_map(of).collect::<Vec<_>>())
}
