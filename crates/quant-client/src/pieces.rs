//! What is seen of an answer while it is made.

/// What arrives while an answer is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Piece<'a> {
    /// More of the thought.
    Thought(&'a str),
    /// More of the answer.
    Text(&'a str),
    /// The connection was cut and the request was sent again: what arrived so far is void.
    Again,
}
