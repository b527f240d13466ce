//! A fence around foreign libraries that panic on bad input.

use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `call`; a panic inside becomes its message.
///
/// For code of others that is fed by untrusted files. What `call` borrows must not be used again after a panic unless
/// it is still whole then: callers only read through it or drop it. The panic hook of the process still reports the
/// panic, because hooks are global and belong to the program.
pub(crate) fn contain<T>(call: impl FnOnce() -> T) -> Result<T, String> {
    catch_unwind(AssertUnwindSafe(call)).map_err(|payload| {
        let text = payload.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| payload.downcast_ref::<String>().cloned());
        format!("the library gave up: {}", text.as_deref().unwrap_or("no message"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_of_panics_are_kept() {
        assert_eq!(contain(|| 3), Ok(3));
        let none = Vec::<u8>::new();
        let error = contain(|| none[std::hint::black_box(0)]).unwrap_err();
        assert!(error.contains("out of bounds"), "{error}");
        let error = contain(|| std::panic::panic_any(7_u8)).unwrap_err();
        assert!(error.contains("no message"), "{error}");
    }
}
