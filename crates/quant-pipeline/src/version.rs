//! What made a file.

/// The program and its version, as reports name them.
pub(crate) fn tool() -> String {
    format!("ptq {}", env!("CARGO_PKG_VERSION"))
}
