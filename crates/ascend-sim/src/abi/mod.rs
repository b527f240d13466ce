//! The exported functions.

mod attention;
mod control;
mod fixed;
mod matmul;
mod objects;
mod phases;
mod products;
mod quantize;
mod runtime;
mod scales;
#[cfg(test)]
mod signatures;

use std::ffi::{CStr, c_char};

/// A text of the caller, if it is one.
///
/// # Safety
/// `text` is null or ends with a zero byte.
unsafe fn string(text: *const c_char) -> Option<String> {
    if text.is_null() {
        return None;
    }
    // SAFETY: the caller's promise.
    unsafe { CStr::from_ptr(text) }.to_str().ok().map(str::to_owned)
}
