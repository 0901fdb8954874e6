//! In which types and layout a network computes.

use std::ffi::c_void;

use libloading::os::unix::{Library, Symbol};
use tch::Kind;

/// The type of activations and of the kernels' rounded copies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ComputeType {
    /// 32 bits.
    #[default]
    F32,
    /// 16 bits, with f32's range.
    Bf16,
    /// 16 bits, with less range and more digits.
    F16,
}

/// How a network computes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compute {
    /// The type.
    pub kind: ComputeType,
    /// Keep the channels last in memory.
    pub channels_last: bool,
}

impl Compute {
    pub(super) fn kind(self) -> Kind {
        match self.kind {
            ComputeType::F32 => Kind::Float,
            ComputeType::Bf16 => Kind::BFloat16,
            ComputeType::F16 => Kind::Half,
        }
    }
}

/// Says whether products of f32 on tensor cores may round their factors to TF32's 10 bits: convolutions and
/// matrix products alike. libtorch by itself allows it for convolutions. Without CUDA this has no effect.
///
/// # Errors
/// If libtorch has no such switch, by the name that 2.11 gives it.
#[expect(unsafe_code, reason = "tch does not expose at::Context, which has the switches")]
pub fn allow_tf32(allow: bool) -> Result<(), String> {
    type GlobalContext = unsafe extern "C" fn() -> *mut c_void;
    type Switch = unsafe extern "C" fn(*mut c_void, bool);
    let process = Library::this();
    let missing = |error: libloading::Error| format!("libtorch has no switch for TF32 ({error})");
    // SAFETY: the names are those of at::globalContext() and of two members of at::Context that take a bool
    // and return nothing; the C++ ABI passes `this` as a first pointer. The context lives for ever.
    unsafe {
        let context: Symbol<GlobalContext> = process.get(b"_ZN2at13globalContextEv").map_err(missing)?;
        for name in ["_ZN2at7Context18setAllowTF32CuBLASEb", "_ZN2at7Context17setAllowTF32CuDNNEb"] {
            let switch: Symbol<Switch> = process.get(name.as_bytes()).map_err(missing)?;
            switch(context(), allow);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libtorch_has_the_switches() {
        assert_eq!(allow_tf32(true), Ok(()));
        assert_eq!(allow_tf32(false), Ok(()));
    }
}
