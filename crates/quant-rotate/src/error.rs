use quant_core::CoreError;
use thiserror::Error;

/// What can be wrong with a rotation, a learned transform or its training.
#[derive(Debug, Error, Clone, PartialEq)]
#[non_exhaustive]
pub enum RotateError {
    /// Two shapes that must agree do not.
    #[error("{what}: expected {expected}, found {found}")]
    Shape {
        /// Which array.
        what: &'static str,
        /// The shape required.
        expected: String,
        /// The shape given.
        found: String,
    },
    /// No Hadamard matrix of a size is at hand.
    #[error(
        "no Hadamard matrix of size {size} is at hand: a size is a power of two, or K * 2^m with K one of {}; use a \
         block-diagonal rotation whose blocks have such a size and divide {size}, or a matrix of your own as its core",
        list(.orders)
    )]
    NoHadamard {
        /// The size asked for.
        size: usize,
        /// Orders of the cores that are constructed.
        orders: Vec<usize>,
    },
    /// A core that is no Hadamard matrix.
    #[error(
        "the core of order {order} is no Hadamard matrix: rows {row} and {other} have the product {product}, expected {expected} \
         of entries that are 1 or -1"
    )]
    NotHadamard {
        /// Side of the matrix.
        order: usize,
        /// A row.
        row: usize,
        /// Another row, or the same one.
        other: usize,
        /// The sum of products of their entries.
        product: i64,
        /// `order` for a row with itself, 0 otherwise.
        expected: i64,
    },
    /// A size that is no product of two factors of one parity.
    #[error(
        "{size} features have no Kronecker pair: a pair L * R has L = a - b and R = a + b, and no number that is 0, or 2 \
         above a multiple of 4, is such a product; leave this linear without a Kronecker transform"
    )]
    NoKronecker {
        /// The size asked for.
        size: usize,
    },
    /// A matrix without an inverse in f64.
    #[error(
        "{what}: the matrix [{side}, {side}] is singular or not finite in column {column}; lower the learning rate or go back to \
         parameters with a smaller condition number"
    )]
    Singular {
        /// Which matrix.
        what: &'static str,
        /// Its side.
        side: usize,
        /// Where elimination found no pivot.
        column: usize,
    },
    /// A NaN or an infinity where numbers are needed.
    #[error("{what}: entry {index} is {value}, expected a finite number")]
    NotFinite {
        /// Which array.
        what: &'static str,
        /// The first such entry, in row-major order.
        index: usize,
        /// Its value.
        value: f64,
    },
    /// Parts that make no online transform.
    #[error("online transform: {0}")]
    Core(#[from] CoreError),
    /// A setting outside its range.
    #[error("setting `{name}` is {value}: expected {expected}")]
    Setting {
        /// Name of the field.
        name: &'static str,
        /// The value given.
        value: String,
        /// The values allowed.
        expected: &'static str,
    },
}

impl RotateError {
    /// A [`RotateError::Shape`] of two matrices.
    pub(crate) fn shape(what: &'static str, expected: (usize, usize), found: (usize, usize)) -> Self {
        let text = |(rows, columns): (usize, usize)| format!("[{rows}, {columns}]");
        Self::Shape { what, expected: text(expected), found: text(found) }
    }
}

fn list(orders: &[usize]) -> String {
    let texts: Vec<String> = orders.iter().map(ToString::to_string).collect();
    texts.join(", ")
}
