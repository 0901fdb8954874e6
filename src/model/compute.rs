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
/// matrix products alike. libtorch by itself allows it for convolutions; [`select_device`](super::select_device)
/// forbids it. Without CUDA this has no effect.
///
/// # Errors
/// If libtorch has no such switch, by the name that 2.11 gives it.
#[expect(unsafe_code, reason = "tch does not expose at::Context, which has the switches")]
pub fn allow_tf32(allow: bool) -> Result<(), String> {
    type Switch = unsafe extern "C" fn(*mut c_void, bool);
    // SAFETY: the names are those of two members of at::Context that take a bool and return nothing; the C++ ABI
    // passes `this` as a first pointer.
    unsafe {
        for name in ["_ZN2at7Context18setAllowTF32CuBLASEb", "_ZN2at7Context17setAllowTF32CuDNNEb"] {
            let (context, switch): (_, Symbol<Switch>) = of_context(name)?;
            switch(context, allow);
        }
    }
    Ok(())
}

/// Whether matrix products may be rounded to TF32.
///
/// # Errors
/// As [`allow_tf32`].
#[expect(unsafe_code, reason = "tch does not expose at::Context, which has the switches")]
pub fn tf32_is_allowed() -> Result<bool, String> {
    type Question = unsafe extern "C" fn(*mut c_void) -> bool;
    // SAFETY: the name is that of a member of at::Context that takes nothing and returns a bool.
    unsafe {
        let (context, question): (_, Symbol<Question>) = of_context("_ZNK2at7Context15allowTF32CuBLASEv")?;
        Ok(question(context))
    }
}

/// libtorch's global context, which lives for ever, and a member function of it.
///
/// # Safety
/// `F` has to be the type of the function of this name.
#[expect(unsafe_code, reason = "tch does not expose at::Context, which has the switches")]
unsafe fn of_context<F>(name: &str) -> Result<(*mut c_void, Symbol<F>), String> {
    type GlobalContext = unsafe extern "C" fn() -> *mut c_void;
    let process = Library::this();
    let missing = |error: libloading::Error| format!("libtorch has no switch for TF32 ({error})");
    // SAFETY: this is the name of at::globalContext(); the other function's type is the caller's to know.
    unsafe {
        let context: Symbol<GlobalContext> = process.get(b"_ZN2at13globalContextEv").map_err(missing)?;
        Ok((context(), process.get(name.as_bytes()).map_err(missing)?))
    }
}
