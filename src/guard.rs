//! Guarded calls into libraries that may panic: decoders on external bytes, tch's operators on unsupported devices.
//!
//! Libraries index out of bounds on unforeseen files, including valid ones. Such a panic rejects one file,
//! but does not end the job. Its message becomes part of the error, so the panic hook prints nothing on a
//! thread during a guarded call.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    static IS_GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work`; a panic becomes an error with the panic's message.
///
/// After an error, discard any state that `work` changes, as it may be inconsistent.
///
/// # Errors
/// Message of the panic.
pub(crate) fn guard<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    silence_guarded_threads();
    let was_guarded = IS_GUARDED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    IS_GUARDED.set(was_guarded);
    result.map_err(|panic| message(&*panic).to_owned())
}

/// Installs, once, a panic hook that forwards only panics outside guarded calls to the present hook.
fn silence_guarded_threads() {
    static INSTALLED: Once = Once::new();
    INSTALLED.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if !IS_GUARDED.get() {
                before(info);
            }
        }));
    });
}

fn message(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without a message")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_is_an_error_with_its_message() {
        let result: Result<(), _> = guard(|| panic!("index {} out of bounds", 7));
        assert_eq!(result.expect_err("a panic"), "index 7 out of bounds");
        assert_eq!(guard(|| 3), Ok(3));
        assert!(!IS_GUARDED.get(), "panics elsewhere are printed again");
    }
}
