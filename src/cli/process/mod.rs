//! What the process itself needs: signals, memory, threads of OpenMP, and the program beside it that is linked to libtorch.

pub(super) mod beside;
#[cfg(feature = "torch")]
pub(super) mod learning;
#[cfg(feature = "torch")]
pub(super) mod openmp;
pub(super) mod signals;

/// Arenas from which the threads of a process take their memory.
#[cfg(target_env = "gnu")]
const ARENAS: libc::c_int = 2;

/// Bounds what is kept of the buffers of a table that is read in parts, unless the environment says how. By default glibc has
/// up to eight arenas a core, one for each thread that reads, and each keeps the largest buffers that it had.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "nothing safe offers mallopt")]
pub(super) fn limit_arenas() {
    if std::env::var_os("MALLOC_ARENA_MAX").is_none() {
        // SAFETY: it takes two numbers, and may be called at any time.
        unsafe { libc::mallopt(libc::M_ARENA_MAX, ARENAS) };
    }
}

/// Other allocators have no such arenas.
#[cfg(not(target_env = "gnu"))]
pub(super) fn limit_arenas() {}
