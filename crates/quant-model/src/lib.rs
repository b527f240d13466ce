//! Model families as data, and the decoder block they share.
#![forbid(unsafe_code)]
