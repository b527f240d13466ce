//! Bit widths of the levels of a matrix: one for all, or one for every group of columns.

use crate::codec::{Bytes, Codec, bad_tag};
use crate::{Bits, CoreError};
use ndarray::ArrayView2;

/// Bit widths of the levels of a [`QuantizedMatrix`](crate::QuantizedMatrix).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Widths {
    /// One for all groups.
    Uniform(Bits),
    /// One for every group of columns, the same in all rows, `[groups]`.
    PerGroup(Vec<Bits>),
}

/// Bits that tell the width of one group.
const WIDTH_BITS: u64 = 8;

impl From<Bits> for Widths {
    fn from(bits: Bits) -> Self {
        Self::Uniform(bits)
    }
}

impl Codec for Widths {
    fn encode(&self, out: &mut Vec<u8>) {
        match self {
            Self::Uniform(bits) => {
                out.push(0);
                bits.encode(out);
            }
            Self::PerGroup(widths) => {
                out.push(1);
                widths.encode(out);
            }
        }
    }
    fn decode(from: &mut Bytes<'_>) -> Result<Self, CoreError> {
        match u8::decode(from)? {
            0 => Ok(Self::Uniform(Bits::decode(from)?)),
            1 => Ok(Self::PerGroup(Vec::decode(from)?)),
            tag => bad_tag("widths of groups", tag),
        }
    }
}

impl Widths {
    /// The width of a group; the largest for a group that is not there.
    #[must_use]
    #[inline(always)]
    pub fn of(&self, group: usize) -> Bits {
        match self {
            Self::Uniform(bits) => *bits,
            Self::PerGroup(widths) => widths.get(group).copied().unwrap_or_else(|| self.largest()),
        }
    }
    /// The largest width: every level fits in it.
    #[must_use]
    #[inline(always)]
    pub fn largest(&self) -> Bits {
        match self {
            Self::Uniform(bits) => *bits,
            Self::PerGroup(widths) => widths.iter().copied().max().unwrap_or(Bits::ONE),
        }
    }
    /// The width of every group, where they differ.
    #[must_use]
    pub fn per_group(&self) -> Option<&[Bits]> {
        match self {
            Self::Uniform(_) => None,
            Self::PerGroup(widths) => Some(widths),
        }
    }
    /// Bits of a stored row of levels `[in]`, whose columns belong to these groups.
    pub(crate) fn row_bits(&self, columns: usize, group: impl Fn(usize) -> usize) -> u64 {
        match self {
            Self::Uniform(bits) => columns as u64 * u64::from(bits.get()),
            Self::PerGroup(_) => (0..columns).map(|c| u64::from(self.of(group(c)).get())).sum(),
        }
    }
    /// Bits that tell the widths themselves, a byte each.
    pub(crate) fn own_bits(&self) -> u64 {
        self.per_group().map_or(0, |widths| WIDTH_BITS * widths.len() as u64)
    }
    /// Refuses another number of widths than the `count` groups, and levels above the top of the width of their column's group.
    ///
    /// # Errors
    /// [`CoreError::Shape`].
    pub(crate) fn check(
        &self,
        levels: ArrayView2<'_, u8>,
        count: usize,
        group: impl Fn(usize) -> usize,
    ) -> Result<(), CoreError> {
        let widths = match self {
            // Nothing is above the top of eight bits.
            Self::Uniform(bits) if bits.max_level() as u8 == u8::MAX => return Ok(()),
            Self::Uniform(bits) => return check_level(largest(levels), *bits),
            Self::PerGroup(widths) => widths,
        };
        if widths.len() != count {
            return Err(CoreError::Shape {
                what: "bit widths of groups",
                expected: format!("{count} widths"),
                found: widths.len().to_string(),
            });
        }
        let mut columns = levels.columns().into_iter().enumerate();
        columns.try_for_each(|(c, levels)| {
            check_level(levels.iter().fold(0, |largest, &l| largest.max(l)), self.of(group(c)))
        })
    }
}

fn largest(levels: ArrayView2<'_, u8>) -> u8 {
    match levels.as_slice() {
        Some(levels) => levels.iter().fold(0, |largest, &l| largest.max(l)),
        None => levels.iter().fold(0, |largest, &l| largest.max(l)),
    }
}

/// Refuses a largest level above the top of a bit width.
fn check_level(largest: u8, bits: Bits) -> Result<(), CoreError> {
    let top = bits.max_level() as u8;
    if largest <= top {
        return Ok(());
    }
    Err(CoreError::Shape {
        what: "weight levels",
        expected: format!("0..={top} at {} bits", bits.get()),
        found: largest.to_string(),
    })
}
