//! Scheme strings: `W4A16g128`, `W8A8`, `W8A8KV8`, `W4A4KV4`.

use crate::{Bits, CoreError};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// Bit widths of weights, activations and KV cache, and the weight group size. `None` means 16 bits: left alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Scheme {
    /// Weight bits, 1 to 8.
    pub weights: Option<Bits>,
    /// Columns that share a scale; none is one scale per output channel.
    pub group: Option<usize>,
    /// Activation bits, 4 or 8.
    pub activations: Option<Bits>,
    /// KV cache bits: 2, 3, 4 or 8.
    pub kv_cache: Option<Bits>,
}

impl Scheme {
    fn error(text: &str, reason: impl Into<String>) -> CoreError {
        CoreError::Scheme { text: text.to_owned(), reason: reason.into() }
    }
}

impl FromStr for Scheme {
    type Err = CoreError;

    fn from_str(text: &str) -> Result<Self, CoreError> {
        let mut rest = text.trim();
        let mut number = |letters: &str| -> Result<Option<u32>, CoreError> {
            let Some(tail) = rest.get(..letters.len()).filter(|h| h.eq_ignore_ascii_case(letters)) else {
                return Ok(None);
            };
            let tail = &rest[tail.len()..];
            let end = tail.find(|c: char| !c.is_ascii_digit()).unwrap_or(tail.len());
            let value = tail[..end]
                .parse()
                .map_err(|_| Self::error(text, format!("a number must follow {letters}")))?;
            rest = &tail[end..];
            Ok(Some(value))
        };
        let weights =
            number("W")?.ok_or_else(|| Self::error(text, "it must begin with W and the weight bits"))?;
        let activations = number("A")?.unwrap_or(16);
        let mut group = number("g")?;
        let kv_cache = number("KV")?.unwrap_or(16);
        if group.is_none() {
            group = number("g")?;
        }
        if !rest.is_empty() {
            return Err(Self::error(text, format!("{rest:?} is left over")));
        }
        let weights = match weights {
            16 => None,
            b => Some(
                Bits::new(b)
                    .map_err(|_| Self::error(text, "weights take 1 to 8 bits, or 16 to leave them"))?,
            ),
        };
        let activations = match activations {
            16 => None,
            4 | 8 => Some(Bits::new(activations)?),
            _ => return Err(Self::error(text, "activations take 4, 8 or 16 bits")),
        };
        let kv_cache = match kv_cache {
            16 => None,
            2..=4 | 8 => Some(Bits::new(kv_cache)?),
            _ => return Err(Self::error(text, "KV cache entries take 2, 3, 4, 8 or 16 bits")),
        };
        let group = match group {
            Some(0) => return Err(Self::error(text, "a group has at least one column")),
            Some(_) if weights.is_none() => {
                return Err(Self::error(text, "a group size needs quantised weights"));
            }
            g => g.map(|g| g as usize),
        };
        Ok(Self { weights, group, activations, kv_cache })
    }
}

impl fmt::Display for Scheme {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bits = |b: Option<Bits>| b.map_or(16, Bits::get);
        write!(f, "W{}A{}", bits(self.weights), bits(self.activations))?;
        if let Some(kv) = self.kv_cache {
            write!(f, "KV{}", kv.get())?;
        }
        if let Some(g) = self.group {
            write!(f, "g{g}")?;
        }
        Ok(())
    }
}

impl TryFrom<String> for Scheme {
    type Error = CoreError;
    fn try_from(text: String) -> Result<Self, CoreError> {
        text.parse()
    }
}
impl From<Scheme> for String {
    fn from(scheme: Scheme) -> Self {
        scheme.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn schemes_read_and_print() {
        for text in
            ["W4A16g128", "W8A8", "W8A8KV8", "W4A4KV4", "W1A16g128", "W16A16KV4", "W16A16KV2", "W4A8KV3g32"]
        {
            let scheme: Scheme = text.parse().unwrap();
            assert_eq!(scheme.to_string(), text);
        }
        assert_eq!("w8a8".parse::<Scheme>().unwrap().to_string(), "W8A8");
        assert_eq!("W3g64".parse::<Scheme>().unwrap().to_string(), "W3A16g64");
        // `kv_cache.md` 7.1: 16 bits are no quantiser at all.
        assert_eq!("W8A8KV16".parse::<Scheme>().unwrap().kv_cache, None);
    }

    #[test]
    fn nonsense_is_refused_with_a_reason() {
        for text in [
            "",
            "A8",
            "W9A8",
            "W8A3",
            "W8A8KV5",
            "W8A8KV1",
            "W4g0",
            "W16g32",
            "W4A16x",
            "W",
            "W4A",
            "W99999999999",
        ] {
            let error = text.parse::<Scheme>().unwrap_err().to_string();
            assert!(error.contains("W4A16g128"), "{text}: {error}");
        }
    }
}
