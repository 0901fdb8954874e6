//! Loads the NCCL part, a shared library that the program carries within itself (see build.rs).

use std::ffi::{c_char, c_void};

/// The NCCL part, loaded for one device.
#[derive(Clone, Copy, Debug)]
#[cfg_attr(not(feature = "nccl"), allow(dead_code, reason = "never made"))]
pub(in crate::distributed) struct Nccl {
    pub(super) device: i32,
    pub(super) make: *const c_void,
    set_device: unsafe extern "C" fn(i32, *mut c_char, usize) -> i32,
}

// SAFETY: two functions of a library that is never unloaded.
unsafe impl Send for Nccl {}

#[cfg_attr(not(feature = "nccl"), allow(dead_code, reason = "never made"))]
impl Nccl {
    /// Makes the device the calling thread's current one, which NCCL's streams are taken from.
    pub(in crate::distributed) fn make_current(&self) -> Result<(), String> {
        let mut message = [0u8; 1024];
        // SAFETY: a function of this type in a library that stays; it writes at most the length that it is told.
        let code = unsafe { (self.set_device)(self.device, message.as_mut_ptr().cast(), message.len()) };
        if code == 0 {
            return Ok(());
        }
        let text = std::ffi::CStr::from_bytes_until_nul(&message).unwrap_or_default();
        Err(text.to_string_lossy().into_owned())
    }

    /// Loads the part, after libtorch's CUDA part, whose functions it calls.
    #[cfg(feature = "nccl")]
    pub(in crate::distributed) fn load(device: usize) -> Result<Self, String> {
        use libloading::os::unix::{Library, RTLD_LOCAL, RTLD_NOW, Symbol};
        use rustix::fs::{MemfdFlags, memfd_create};
        use std::io::Write;
        use std::os::fd::AsRawFd;
        use std::sync::OnceLock;

        static PART: &[u8] = include_bytes!(env!("INSTDISC_NCCL_PART"));
        static LOADED: OnceLock<Result<Library, String>> = OnceLock::new();
        let load = || {
            // SAFETY: libtorch_cuda's initialisers register its kernels with the libtorch_cpu that this program
            // is linked to; it is never unloaded.
            let cuda = unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_NOW | RTLD_LOCAL) };
            std::mem::forget(
                cuda.map_err(|error| format!("libtorch's CUDA part cannot be loaded: {error}"))?,
            );
            let unwritten =
                |error: std::io::Error| format!("the NCCL part cannot be put into memory: {error}");
            // Not a file in /tmp, from where a machine may forbid to run code.
            let memory = memfd_create("instdisc_nccl", MemfdFlags::CLOEXEC);
            let mut file = std::fs::File::from(memory.map_err(|error| unwritten(error.into()))?);
            file.write_all(PART).map_err(unwritten)?;
            let path = format!("/proc/self/fd/{}", file.as_raw_fd());
            // SAFETY: our own library; it has no initialisers but those of libtorch's headers. RTLD_NOW makes a
            // function that this libtorch lacks an error that names it.
            unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }
                .map_err(|error| format!("the NCCL part cannot be loaded: {error}"))
        };
        let library = LOADED.get_or_init(load).as_ref().map_err(Clone::clone)?;
        let missing = |error: libloading::Error| error.to_string();
        // SAFETY: nccl.cpp defines both with these types; the library lives in a static.
        unsafe {
            let make: Symbol<*const c_void> = library.get(b"dist_nccl_new").map_err(missing)?;
            let set_device: Symbol<unsafe extern "C" fn(i32, *mut c_char, usize) -> i32> =
                library.get(b"dist_nccl_set_device").map_err(missing)?;
            let device = i32::try_from(device).map_err(|error| error.to_string())?;
            Ok(Self { device, make: make.into_raw().cast_const(), set_device: *set_device })
        }
    }

    /// This program has no NCCL part.
    #[cfg(not(feature = "nccl"))]
    pub(in crate::distributed) fn load(_device: usize) -> Result<Self, String> {
        Err("this program was built without the cargo feature nccl".into())
    }
}
