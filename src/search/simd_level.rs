//! Which instructions the search may use.
//!
//! No result depends on the level: the filter only leaves out what cannot be a neighbour, and similarities
//! have one definition.

#[cfg(target_arch = "x86_64")]
use super::x86::{Avx2, Vnni};

/// A set of instructions that this CPU has.
#[derive(Clone, Copy, Debug)]
pub(super) enum SimdLevel {
    /// What every CPU of the target has.
    Portable,
    /// AVX2 and FMA.
    #[cfg(target_arch = "x86_64")]
    Avx2(Avx2),
    /// AVX-512 with byte products (VNNI).
    #[cfg(target_arch = "x86_64")]
    Vnni(Vnni),
}

impl SimdLevel {
    /// The best of this CPU.
    pub(super) fn best() -> Self {
        Self::available().pop().unwrap_or(Self::Portable)
    }

    /// All of this CPU, the best last.
    pub(super) fn available() -> Vec<Self> {
        #[cfg(target_arch = "x86_64")]
        {
            let levels =
                [Some(Self::Portable), Avx2::detect().map(Self::Avx2), Vnni::detect().map(Self::Vnni)];
            levels.into_iter().flatten().collect()
        }
        #[cfg(not(target_arch = "x86_64"))]
        vec![Self::Portable]
    }

    /// The largest magnitude of a query's code: pairs of products have to fit the 16 bits in which AVX2 adds
    /// them, 2 · 255 · 63 < 2¹⁵.
    pub(super) fn query_limit(self) -> f64 {
        match self {
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(_) => 63.0,
            _ => 127.0,
        }
    }

    /// Runs a task, compiled for this level.
    pub(super) fn run<T: Task>(self, task: T) -> T::Output {
        match self {
            Self::Portable => task.run(),
            #[cfg(target_arch = "x86_64")]
            Self::Avx2(level) => level.run(task),
            #[cfg(target_arch = "x86_64")]
            Self::Vnni(level) => level.run(task),
        }
    }
}

/// Asks for memory that is read soon, where the target can.
#[inline]
pub(super) fn prefetch(values: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    super::x86::prefetch(values);
    #[cfg(not(target_arch = "x86_64"))]
    let _ = values;
}

/// Plain code that is compiled once for each level. `run` and what it calls must be `#[inline(always)]`, or
/// the compiler keeps them out of the wider versions.
pub(super) trait Task {
    type Output;
    fn run(self) -> Self::Output;
}
