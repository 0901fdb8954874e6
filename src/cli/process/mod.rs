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
/// Bytes from which a buffer returns to the system as soon as it is dropped.
#[cfg(all(target_env = "gnu", feature = "torch"))]
const LARGE_BYTES: libc::c_int = 1 << 20;

/// Bounds what is kept of the buffers of a table that is read in parts, unless the environment says how. By default glibc has
/// up to eight arenas a core, one for each thread that reads, and each keeps the largest buffers that it had.
pub(super) fn limit_arenas() {
    #[cfg(target_env = "gnu")]
    set("MALLOC_ARENA_MAX", libc::M_ARENA_MAX, ARENAS);
}

/// Returns large buffers to the system when they are dropped, unless the environment says how. By default glibc keeps those of
/// up to 32 MiB, and buffers of several sizes in turns leave gaps that no other fits. New ones then cost page faults.
#[cfg(feature = "torch")]
pub(super) fn return_large_buffers() {
    #[cfg(target_env = "gnu")]
    set("MALLOC_MMAP_THRESHOLD_", libc::M_MMAP_THRESHOLD, LARGE_BYTES);
}

/// Sets an option of glibc's allocator that the environment leaves open.
#[cfg(target_env = "gnu")]
#[expect(unsafe_code, reason = "nothing safe offers mallopt")]
fn set(variable: &str, option: libc::c_int, value: libc::c_int) {
    if std::env::var_os(variable).is_none() {
        // SAFETY: it takes two numbers, and may be called at any time.
        unsafe { libc::mallopt(option, value) };
    }
}
