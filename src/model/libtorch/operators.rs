//! Counts of libtorch's operators, in the whole process: on a GPU each is about one launch.
//!
//! Views and allocations are not counted. Of operators that call others, those others are; but an operator over a list
//! of tensors is one, and so is adding a gradient to one that is there.

use super::ffi;

/// Starts to count, from zero.
pub fn start() {
    ffi::start_counting();
}

/// Counts no more.
pub fn stop() {
    ffi::stop_counting();
}

/// The counts by name since the last call.
pub fn take() -> Vec<(String, u64)> {
    let count = |line: &str| {
        let (count, name) = line.split_once(' ')?;
        Some((name.to_owned(), count.parse().ok()?))
    };
    ffi::take_counts().lines().filter_map(count).collect()
}

/// Held by a test that counts: there is one counter for the process.
#[cfg(test)]
pub(crate) static COUNTING: std::sync::Mutex<()> = std::sync::Mutex::new(());

#[cfg(test)]
mod tests {
    use tch::{Kind, Tensor};

    use super::*;

    /// Other tests run beside this one and are counted too: names that nothing else uses.
    #[test]
    fn operators_count_by_name_and_views_do_not() {
        let _alone = COUNTING.lock();
        let values = Tensor::ones([2, 3], (Kind::Float, tch::Device::Cpu));
        start();
        let _ = values.view([3, 2]).erfinv();
        let _ = values.erfinv();
        let counts = take();
        stop();
        let of = |wanted: &str| counts.iter().find(|(name, _)| name == wanted).map(|(_, count)| *count);
        assert_eq!(of("aten::erfinv"), Some(2), "{counts:?}");
        assert_eq!(of("aten::view"), None, "{counts:?}");
    }
}
