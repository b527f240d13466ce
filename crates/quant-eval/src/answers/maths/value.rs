//! What an answer can be: a number or expression, several, an interval, a relation.

use super::brackets::{DEEPEST, matches};
use super::expression::Expression;
use super::lex;
use super::parse::expression;
use super::token::{Bracket, Relation, Token};

/// An answer that was read.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Expression(Expression),
    /// `1, 2` without brackets: a set, or a tuple without brackets.
    List(Vec<Self>),
    Tuple(Vec<Self>),
    Set(Vec<Self>),
    /// Two ends with brackets of which one is square; `(a, b)` is a [`Self::Tuple`] that can be an open interval.
    Interval {
        low: Box<Expression>,
        high: Box<Expression>,
        low_closed: bool,
        high_closed: bool,
    },
    Union(Vec<Self>),
    /// `a < b ≤ c`
    Chain(Vec<Expression>, Vec<Relation>),
    Matrix(Vec<Vec<Expression>>),
}

/// Reads an answer; none where it is no mathematics that is known here.
pub(crate) fn read(text: &str) -> Option<Value> {
    let tokens = lex::tokens(text)?;
    let other = matches(&tokens)?;
    let reader = Reader { tokens: &tokens, other: &other };
    reader.list(0, tokens.len(), 0)
}

struct Reader<'a> {
    tokens: &'a [Token],
    other: &'a [usize],
}

impl Reader<'_> {
    /// Indices in `from..to` of tokens outside brackets and matrices that are wanted.
    fn outside(&self, from: usize, to: usize, wanted: impl Fn(&Token) -> bool) -> Vec<usize> {
        let (mut found, mut at, mut matrices) = (Vec::new(), from, 0_usize);
        while at < to {
            match &self.tokens[at] {
                Token::Open(_) if self.other[at] < to => at = self.other[at],
                Token::MatrixBegin => matrices += 1,
                Token::MatrixEnd => matrices = matrices.saturating_sub(1),
                token if matrices == 0 && wanted(token) => found.push(at),
                _ => {}
            }
            at += 1;
        }
        found
    }

    /// Pieces of `from..to` between `cuts`; an empty one behind a conjunction (`, and`) is none.
    fn pieces(from: usize, to: usize, cuts: &[usize]) -> Vec<(usize, usize)> {
        let starts = std::iter::once(from).chain(cuts.iter().map(|cut| cut + 1));
        let ends = cuts.iter().copied().chain(std::iter::once(to));
        starts.zip(ends).filter(|(start, end)| start < end).collect()
    }

    fn list(&self, from: usize, to: usize, depth: usize) -> Option<Value> {
        if depth > DEEPEST {
            return None;
        }
        // A group around everything says nothing.
        if from < to && self.tokens[from] == Token::Open(Bracket::Group) && self.other[from] + 1 == to {
            return self.list(from + 1, to - 1, depth + 1);
        }
        let cuts = self.outside(from, to, |token| *token == Token::Separator);
        if cuts.is_empty() {
            return self.one(from, to, depth);
        }
        let items = self.items(from, to, &cuts, depth)?;
        Some(if items.len() == 1 { items.into_iter().next()? } else { Value::List(items) })
    }

    fn items(&self, from: usize, to: usize, cuts: &[usize], depth: usize) -> Option<Vec<Value>> {
        Self::pieces(from, to, cuts).into_iter().map(|(from, to)| self.one(from, to, depth)).collect()
    }

    fn one(&self, from: usize, to: usize, depth: usize) -> Option<Value> {
        if from >= to {
            return None;
        }
        let relations = self.outside(from, to, |token| matches!(token, Token::Relation(_) | Token::Member));
        if !relations.is_empty() {
            return self.relation(from, to, &relations, depth);
        }
        let unions = self.outside(from, to, |token| *token == Token::Union);
        if !unions.is_empty() {
            let parts = Self::pieces(from, to, &unions);
            let parts =
                parts.into_iter().map(|(from, to)| self.one(from, to, depth)).collect::<Option<_>>()?;
            return Some(Value::Union(parts));
        }
        match (&self.tokens[from], &self.tokens[to - 1]) {
            (Token::Reals, Token::Reals) if to == from + 1 => {
                return Some(Value::Interval {
                    low: Box::new(Expression::Infinity.negative()),
                    high: Box::new(Expression::Infinity),
                    low_closed: false,
                    high_closed: false,
                });
            }
            (Token::Empty, _) if to == from + 1 => return Some(Value::Set(Vec::new())),
            (Token::MatrixBegin, Token::MatrixEnd) => return self.matrix(from + 1, to - 1),
            (Token::Open(open), Token::Close(close)) if self.other[from] == to - 1 => {
                return self.bracketed(from + 1, to - 1, *open, *close, depth);
            }
            _ => {}
        }
        expression(self.tokens, self.other, from, to).map(Value::Expression)
    }

    fn bracketed(
        &self,
        from: usize,
        to: usize,
        open: Bracket,
        close: Bracket,
        depth: usize,
    ) -> Option<Value> {
        if depth > DEEPEST {
            return None;
        }
        let cuts = self.outside(from, to, |token| *token == Token::Separator);
        if open == Bracket::Brace {
            let items = self.items(from, to, &cuts, depth + 1)?;
            return Some(Value::Set(items));
        }
        if cuts.is_empty() && !matches!(open, Bracket::Floor | Bracket::Ceil) && open == close {
            return self.one(from, to, depth + 1);
        }
        if cuts.is_empty() {
            return expression(self.tokens, self.other, from - 1, to + 1).map(Value::Expression);
        }
        let items = self.items(from, to, &cuts, depth + 1)?;
        let square = [open, close].map(|bracket| bracket == Bracket::Square);
        match (square, items.as_slice()) {
            ([false, false], _) => Some(Value::Tuple(items)),
            (_, [Value::Expression(low), Value::Expression(high)]) => Some(Value::Interval {
                low: Box::new(low.clone()),
                high: Box::new(high.clone()),
                low_closed: square[0],
                high_closed: square[1],
            }),
            ([true, true], _) => Some(Value::Tuple(items)),
            _ => None,
        }
    }

    fn relation(&self, from: usize, to: usize, cuts: &[usize], depth: usize) -> Option<Value> {
        if let [cut] = cuts
            && self.tokens[*cut] == Token::Member
        {
            // `x ∈ A` says A.
            return expression(self.tokens, self.other, from, *cut)
                .and_then(|_| self.one(cut + 1, to, depth + 1));
        }
        let mut relations = Vec::new();
        for cut in cuts {
            let Token::Relation(relation) = self.tokens[*cut] else { return None };
            relations.push(if relation == Relation::About { Relation::Equal } else { relation });
        }
        let pieces = Self::pieces(from, to, cuts);
        if pieces.len() != relations.len() + 1 {
            return None;
        }
        let last = pieces.last().copied()?;
        // `A = \{1, 2\}`, `(x, y) = (1, 2)`: what is on the right of an equation may be anything.
        let all_equal = relations.iter().all(|relation| *relation == Relation::Equal);
        let parts: Option<Vec<_>> =
            pieces.iter().map(|&(from, to)| expression(self.tokens, self.other, from, to)).collect();
        match parts {
            Some(parts) => Some(Value::Chain(parts, relations)),
            None if all_equal && depth < DEEPEST => self.one(last.0, last.1, depth + 1),
            None => None,
        }
    }

    fn matrix(&self, from: usize, to: usize) -> Option<Value> {
        let rows = self.outside(from, to, |token| *token == Token::Row);
        let row = |(from, to): (usize, usize)| {
            let cells = self.outside(from, to, |token| *token == Token::Cell);
            let cells = Self::pieces(from, to, &cells).into_iter();
            cells.map(|(from, to)| expression(self.tokens, self.other, from, to)).collect()
        };
        Self::pieces(from, to, &rows).into_iter().map(row).collect::<Option<_>>().map(Value::Matrix)
    }
}
