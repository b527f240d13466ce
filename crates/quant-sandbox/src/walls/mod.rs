//! Linux's walls, by bubblewrap.

mod execute;
mod filter;
mod find;
mod interpreter;
mod possible;
mod probe;
mod sandbox;
mod tree;

pub use sandbox::Sandbox;
