//! A decoder that panics rejects one image; it does not end the job.
//!
//! Libraries index out of bounds on files that nobody thought of, valid ones among them. What a panic would print is
//! part of the error instead, so the hook stays silent on a thread while a decoder runs on it.

use std::any::Any;
use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

use super::PictureError;

thread_local! {
    static IS_GUARDED: Cell<bool> = const { Cell::new(false) };
}

/// Runs a decoder; its panic is an error with the panic's message.
///
/// State that `work` changes has to be made anew after an error: it may be half changed.
pub(super) fn guard<T>(
    format: &'static str,
    work: impl FnOnce() -> Result<T, PictureError>,
) -> Result<T, PictureError> {
    if cfg!(fuzzing) && format == "JPEG" {
        // The decoder is ours: the fuzzer shall see its panics.
        return work();
    }
    silence_guarded_threads();
    let was_guarded = IS_GUARDED.replace(true);
    let result = catch_unwind(AssertUnwindSafe(work));
    IS_GUARDED.set(was_guarded);
    result.unwrap_or_else(|panic| {
        Err(PictureError::Corrupt { format, reason: format!("its decoder failed: {}", message(&*panic)) })
    })
}

/// Puts a hook before the one that is there, once: it passes on what does not come from a guarded call.
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
    fn a_panic_of_a_decoder_is_an_error_with_its_message() {
        let result: Result<(), _> = guard("TIFF", || panic!("index {} out of bounds", 7));
        let error = result.expect_err("a panic");
        assert_eq!(error.to_string(), "TIFF: its decoder failed: index 7 out of bounds");
        assert_eq!(guard("TIFF", || Ok(3)), Ok(3));
        assert!(!IS_GUARDED.get(), "panics elsewhere are told again");
    }
}
