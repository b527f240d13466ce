//! Hadamard matrices whose order is no power of two.

use ndarray::Array2;

/// The largest order constructed: a core of order `K` costs `K` multiply-adds an element.
const LARGEST: usize = 1024;

/// First rows of the symmetric circulant blocks A, B, C, D of Williamson's array, by the side of a block: those of the published
/// tables of orders 52, 156 and 172 (Williamson 1944; Baumert and Hall 1965).
const WILLIAMSON: [[&str; 4]; 3] = [
    ["+-+--++++--+-", "+---++++++---", "++-+--++--+-+", "+----+--+----"],
    [
        "+++--+-+-----+--++----++--+-----+-+--++",
        "++++---+--++----+-+--+-+----++--+---+++",
        "+++--++-+---+-+--+----+--+-+---+-++--++",
        "+---++-+-+-----+++-++-+++-----+-+-++---",
    ],
    [
        "+---++--++++-+-+++-++--++-+++-+-++++--++---",
        "++-++++++----+-+--++-++-++--+-+----++++++-+",
        "+++-+-++--+-+-++++-+----+-++++-+-+--++-+-++",
        "++---++++-+--+--++--------++--+--+-++++---+",
    ],
];

/// How a Hadamard matrix of some order is made.
#[derive(Clone, Copy, Debug)]
enum Construction {
    /// Four circulant blocks in Williamson's array.
    Williamson(&'static [&'static str; 4]),
    /// Order `q + 1` for a prime power `q = 3 (mod 4)` (Paley 1933).
    PaleyOne(Field),
    /// Order `2 (q + 1)` for a prime power `q = 1 (mod 4)`.
    PaleyTwo(Field),
}

/// A Hadamard matrix of this order from Williamson's or Paley's constructions: entries 1 and -1 with `H H^T = order * I`. None
/// where neither has one, and above 1024. Powers of two are no business of theirs.
#[must_use]
pub fn hadamard_core(order: usize) -> Option<Array2<i8>> {
    Some(match construction(order)? {
        Construction::Williamson(rows) => williamson(rows),
        Construction::PaleyOne(field) => paley_one(field),
        Construction::PaleyTwo(field) => paley_two(field),
    })
}

/// Whether [`hadamard_core`] has a matrix of this order.
pub(super) fn is_constructed(order: usize) -> bool {
    construction(order).is_some()
}

/// Every order of [`hadamard_core`] that is 4 times an odd number.
pub(super) fn orders() -> Vec<usize> {
    (12..=LARGEST).step_by(8).filter(|&order| is_constructed(order)).collect()
}

fn construction(order: usize) -> Option<Construction> {
    if !order.is_multiple_of(4) || order == 0 || order > LARGEST {
        return None;
    }
    let williamson =
        || WILLIAMSON.iter().find(|rows| 4 * rows[0].len() == order).map(Construction::Williamson);
    let one = || Field::of_order(order - 1).filter(|f| f.order() % 4 == 3).map(Construction::PaleyOne);
    let two = || Field::of_order(order / 2 - 1).filter(|f| f.order() % 4 == 1).map(Construction::PaleyTwo);
    williamson().or_else(one).or_else(two)
}

/// A finite field of odd order: `GF(p)`, or `GF(p^2)` as the numbers `a + b sqrt(r)` with `r` no square modulo `p`.
#[derive(Clone, Copy, Debug)]
enum Field {
    Prime(usize),
    Square { p: usize, r: usize },
}

impl Field {
    fn of_order(q: usize) -> Option<Self> {
        let root = q.isqrt();
        if is_odd_prime(q) {
            Some(Self::Prime(q))
        } else if root * root == q && is_odd_prime(root) {
            let r = (2..root).find(|&r| legendre(r, root) == -1)?;
            Some(Self::Square { p: root, r })
        } else {
            None
        }
    }

    fn order(self) -> usize {
        match self {
            Self::Prime(p) => p,
            Self::Square { p, .. } => p * p,
        }
    }

    /// 1 where `x_i - x_j` is the square of an element, -1 where it is not, 0 where it is zero.
    fn character(self, i: usize, j: usize) -> i8 {
        let minus = |a: usize, b: usize, p: usize| (a + p - b) % p;
        match self {
            Self::Prime(p) => legendre(minus(i, j, p), p),
            // An element is a square exactly where its norm a^2 - r b^2 is one in GF(p).
            Self::Square { p, r } => {
                let (a, b) = (minus(i / p, j / p, p), minus(i % p, j % p, p));
                legendre((a * a + (p - r) * b * b) % p, p)
            }
        }
    }
}

fn is_odd_prime(n: usize) -> bool {
    n > 2 && !n.is_multiple_of(2) && (3..=n.isqrt()).step_by(2).all(|d| !n.is_multiple_of(d))
}

/// The Legendre symbol of `a < p`.
fn legendre(a: usize, p: usize) -> i8 {
    match power(a, (p - 1) / 2, p) {
        0 => 0,
        1 => 1,
        _ => -1,
    }
}

fn power(mut base: usize, mut exponent: usize, modulus: usize) -> usize {
    let mut result = 1;
    while exponent > 0 {
        if exponent % 2 == 1 {
            result = result * base % modulus;
        }
        base = base * base % modulus;
        exponent /= 2;
    }
    result
}

/// `I + [[0, 1^T], [-1, J]]` with `J[i, j]` the character of `x_i - x_j`.
fn paley_one(field: Field) -> Array2<i8> {
    let n = field.order() + 1;
    Array2::from_shape_fn((n, n), |(i, j)| match (i, j) {
        _ if i == j => 1,
        (0, _) => 1,
        (_, 0) => -1,
        _ => field.character(i - 1, j - 1),
    })
}

/// `S kron [[1, 1], [1, -1]] + I kron [[1, -1], [-1, -1]]` with `S = [[0, 1^T], [1, J]]`.
fn paley_two(field: Field) -> Array2<i8> {
    let n = 2 * (field.order() + 1);
    Array2::from_shape_fn((n, n), |(row, column)| {
        let (i, j) = (row / 2, column / 2);
        let both_odd = row % 2 == 1 && column % 2 == 1;
        if i == j {
            return if row % 2 == 0 && column % 2 == 0 { 1 } else { -1 };
        }
        let entry = if i == 0 || j == 0 { 1 } else { field.character(i - 1, j - 1) };
        if both_odd { -entry } else { entry }
    })
}

/// `[[A, B, C, D], [-B, A, -D, C], [-C, D, A, -B], [-D, -C, B, A]]`.
fn williamson(first_rows: &[&str; 4]) -> Array2<i8> {
    /// Block and sign at each place of the array.
    const PLACES: [[(usize, i8); 4]; 4] = [
        [(0, 1), (1, 1), (2, 1), (3, 1)],
        [(1, -1), (0, 1), (3, -1), (2, 1)],
        [(2, -1), (3, 1), (0, 1), (1, -1)],
        [(3, -1), (2, -1), (1, 1), (0, 1)],
    ];
    let side = first_rows[0].len();
    Array2::from_shape_fn((4 * side, 4 * side), |(i, j)| {
        let (block, sign) = PLACES[i / side][j / side];
        let entry = first_rows[block].as_bytes()[(j % side + side - i % side) % side];
        if entry == b'+' { sign } else { -sign }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hadamard::check_core;

    #[test]
    fn every_order_of_the_model_zoo_is_a_hadamard_matrix() {
        for order in [12, 20, 28, 36, 44, 52, 60, 68, 76, 100, 108, 140, 148, 156, 172, 924] {
            let core = hadamard_core(order).unwrap();
            assert_eq!(core.dim(), (order, order));
            assert_eq!(check_core(core.view()), Ok(()), "{order}");
        }
    }

    #[test]
    fn every_constructed_order_is_a_hadamard_matrix() {
        let orders = orders();
        for &order in orders.iter().filter(|&&order| order <= 300) {
            assert_eq!(check_core(hadamard_core(order).unwrap().view()), Ok(()), "{order}");
        }
        for order in [92, 116, 188] {
            assert!(hadamard_core(order).is_none() && !orders.contains(&order), "{order}");
        }
        assert!([0, 1, 2, 6, 1028, usize::MAX].iter().all(|&order| hadamard_core(order).is_none()));
    }

    #[test]
    fn fields_of_squares() {
        for (q, half) in [(9, 4), (25, 12), (49, 24)] {
            let field = Field::of_order(q).unwrap();
            assert_eq!((1..q).filter(|&x| field.character(x, 0) == 1).count(), half, "{q}");
            // GF(25) and GF(49) give 52 and 100 by Paley's second construction.
            assert_eq!(check_core(paley_two(field).view()), Ok(()), "{q}");
        }
        assert!(
            Field::of_order(27).is_none() && Field::of_order(15).is_none() && Field::of_order(4).is_none()
        );
    }
}
