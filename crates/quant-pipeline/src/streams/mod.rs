//! A sample that goes through a model as it is and with single parts of it exchanged: all streams are carried through the blocks
//! together, so that each block is read once whatever the number of parts.

mod carrier;
mod put_back;
mod score;

pub(crate) use carrier::Carrier;
pub use put_back::PutBack;
pub(crate) use score::{Heads, score};
