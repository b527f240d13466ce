//! SHA-256 of tensors, as the manifest records it.

use std::fmt;
use std::io::{self, Read};

use quant_core::CoreError;
use quant_core::codec::{Bytes, Codec};
use serde::{Serialize, Serializer};
use sha2::{Digest as _, Sha256};

/// SHA-256 of a tensor's bytes as stored (little-endian, row-major, without its header entry). Printed as 64 hex
/// digits.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TensorHash(pub [u8; 32]);

impl TensorHash {
    /// Hash of `bytes`.
    #[must_use]
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = Hasher::default();
        hasher.update(bytes);
        hasher.finish()
    }

    /// Enough of it to tell two apart and to be read.
    #[must_use]
    pub fn short(&self) -> String {
        format!("SHA-256 {}", &self.to_string()[..32])
    }

    /// Hash of everything that `from` holds, read in pieces.
    ///
    /// # Errors
    /// Those of reading.
    pub fn of_reader(mut from: impl Read) -> io::Result<Self> {
        let mut hasher = Hasher::default();
        let mut piece = vec![0; 1 << 18];
        loop {
            match from.read(&mut piece) {
                Ok(0) => return Ok(hasher.finish()),
                Ok(read) => hasher.update(&piece[..read]),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
    }
}

impl fmt::Display for TensorHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|b| write!(f, "{b:02x}"))
    }
}

impl fmt::Debug for TensorHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TensorHash({self})")
    }
}

impl Serialize for TensorHash {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Codec for TensorHash {
    fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.0);
    }
    fn decode(from: &mut Bytes<'_>) -> Result<Self, CoreError> {
        let mut hash = [0; 32];
        hash.copy_from_slice(from.take(32)?);
        Ok(Self(hash))
    }
}

/// Incremental form of [`TensorHash::of`].
#[derive(Clone, Default)]
pub(crate) struct Hasher(Sha256);

impl Hasher {
    pub(crate) fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    pub(crate) fn finish(self) -> TensorHash {
        TensorHash(self.0.finalize().into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_digest() {
        // FIPS 180-4 example: SHA-256("abc").
        let hex = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(TensorHash::of(b"abc").to_string(), hex);
        assert_eq!(TensorHash::of_reader(&b"abc"[..]).unwrap(), TensorHash::of(b"abc"));
        assert_eq!(serde_json::to_string(&TensorHash::of(b"abc")).unwrap(), format!("\"{hex}\""));
    }
}
