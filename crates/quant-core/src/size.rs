//! Quantities of memory and disk in the one style of every message.

use std::fmt;

/// A number of bytes as people read it: decimal units, `5.2 MB`.
///
/// ```
/// assert_eq!(quant_core::Bytes(5_200_000).to_string(), "5.2 MB");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub u64);

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.0 as f64;
        match self.0 {
            0..1_000 => write!(f, "{} B", self.0),
            1_000..1_000_000 => write!(f, "{:.1} kB", bytes / 1e3),
            1_000_000..1_000_000_000 => write!(f, "{:.1} MB", bytes / 1e6),
            _ => write!(f, "{:.2} GB", bytes / 1e9),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Bytes;

    #[test]
    fn units_are_decimal() {
        for (bytes, text) in [
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.0 kB"),
            (1_048_576, "1.0 MB"),
            (155_000_000, "155.0 MB"),
            (8_000_000_000, "8.00 GB"),
        ] {
            assert_eq!(Bytes(bytes).to_string(), text);
        }
    }
}
