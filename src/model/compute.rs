//! Device, number types and memory layout of a network's computation.

use std::ffi::c_void;
use std::path::Path;

use libloading::os::unix::{Library, Symbol};
use tch::{Device, Kind};

use crate::run_config::{DeviceChoice, Precision};

/// Returns the number type of activations and of rounded kernel copies.
pub(super) fn kind_of(precision: Precision) -> Kind {
    match precision {
        Precision::F32 | Precision::Tf32 => Kind::Float,
        Precision::Bf16 => Kind::BFloat16,
        Precision::F16 => Kind::Half,
    }
}

/// Sets whether f32 products on tensor cores, convolutions and matrix products alike, may round their factors to TF32's
/// 10 bits. libtorch's default allows this for convolutions; [`select_device`] forbids it. No effect without CUDA.
///
/// # Errors
/// If libtorch lacks the switch under the name that version 2.11 gives it.
#[expect(unsafe_code, reason = "tch does not expose at::Context, which has the switches")]
pub fn allow_tf32(allow: bool) -> Result<(), String> {
    type Switch = unsafe extern "C" fn(*mut c_void, bool);
    // SAFETY: the names are those of two members of at::Context that take a bool and return nothing; the C++
    // ABI passes `this` as the first pointer.
    unsafe {
        for name in ["_ZN2at7Context18setAllowTF32CuBLASEb", "_ZN2at7Context17setAllowTF32CuDNNEb"] {
            let (context, switch): (_, Symbol<Switch>) = of_context(name)?;
            switch(context, allow);
        }
    }
    Ok(())
}

/// Returns whether matrix products may be rounded to TF32.
///
/// # Errors
/// As [`allow_tf32`].
#[expect(unsafe_code, reason = "tch does not expose at::Context, which has the switches")]
pub fn tf32_is_allowed() -> Result<bool, String> {
    type Question = unsafe extern "C" fn(*mut c_void) -> bool;
    // SAFETY: the symbol is a member of at::Context that takes nothing and returns a bool.
    unsafe {
        let (context, question): (_, Symbol<Question>) = of_context("_ZNK2at7Context15allowTF32CuBLASEv")?;
        Ok(question(context))
    }
}

/// Finds libtorch's global context, which lives until the process ends, and one of its member functions.
///
/// # Safety
/// `F` must be the type of the function with this name.
#[expect(unsafe_code, reason = "tch does not expose at::Context, which has the switches")]
unsafe fn of_context<F>(name: &str) -> Result<(*mut c_void, Symbol<F>), String> {
    type GlobalContext = unsafe extern "C" fn() -> *mut c_void;
    let process = Library::this();
    let missing = |error: libloading::Error| format!("libtorch has no switch for TF32 ({error})");
    // SAFETY: this is the name of at::globalContext(); the caller answers for the other function's type.
    unsafe {
        let context: Symbol<GlobalContext> = process.get(b"_ZN2at13globalContextEv").map_err(missing)?;
        Ok((context(), process.get(name.as_bytes()).map_err(missing)?))
    }
}

/// File that NVIDIA's driver creates where there is a GPU.
const DRIVER: &str = "/dev/nvidiactl";

/// The requested CUDA device cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("device cuda:{number} cannot be used: {reason}")]
pub struct DeviceError {
    number: usize,
    reason: String,
}

/// Selected device, with the reason for the choice.
#[derive(Clone, Debug)]
pub struct SelectedDevice {
    /// Selected device.
    pub device: Device,
    /// Reason, as one phrase for the log.
    pub reason: String,
}

impl std::fmt::Display for SelectedDevice {
    /// Formats as `cpu (asked for)`: the device as options name it, then the reason.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.device {
            Device::Cuda(number) => write!(f, "cuda:{number} ({})", self.reason),
            _ => write!(f, "cpu ({})", self.reason),
        }
    }
}

/// Selects the requested device and sets plain f32 products. Call [`allow_tf32`] afterwards if TF32 is wanted.
///
/// # Errors
/// If a CUDA device was requested by number and does not exist.
pub fn select_device(choice: DeviceChoice) -> Result<SelectedDevice, DeviceError> {
    if let Err(reason) = allow_tf32(false) {
        tracing::warn!("{reason}");
    }
    let devices = if choice == DeviceChoice::Cpu { Ok(0) } else { cuda_devices() };
    let (device, reason) = match (choice, devices) {
        (DeviceChoice::Cpu, _) => (Device::Cpu, "asked for".into()),
        (DeviceChoice::Auto, Ok(count)) => (Device::Cuda(0), format!("the first of {count} CUDA device(s)")),
        (DeviceChoice::Auto, Err(reason)) => (Device::Cpu, without_cuda(Path::new(DRIVER), reason)),
        (DeviceChoice::Cuda(number), Ok(count)) if number < count => {
            (Device::Cuda(number), "asked for".into())
        }
        (DeviceChoice::Cuda(number), Ok(count)) => {
            return Err(DeviceError { number, reason: format!("there are {count} CUDA device(s)") });
        }
        (DeviceChoice::Cuda(number), Err(reason)) => return Err(DeviceError { number, reason }),
    };
    Ok(SelectedDevice { device, reason })
}

/// Returns whether NVIDIA's driver has a GPU here, even if libtorch cannot use it.
pub fn has_gpu() -> bool {
    Path::new(DRIVER).exists()
}

/// Explains why the CPU is used: briefly without a GPU, else with the reason why the GPU is not usable.
fn without_cuda(driver: &Path, reason: String) -> String {
    if driver.exists() {
        return format!("there is a GPU, but {reason}");
    }
    tracing::debug!("{reason}");
    "no GPU is seen here".into()
}

/// Selects the requested device for one of several processes; each process of a machine gets its own CUDA device.
///
/// # Errors
/// If a device was requested by number and does not exist, or there are fewer devices than processes.
pub fn select_device_of(
    choice: DeviceChoice,
    local_rank: usize,
    ranks: usize,
) -> Result<SelectedDevice, DeviceError> {
    let selected = select_device(choice)?;
    if ranks == 1 || choice != DeviceChoice::Auto || !selected.device.is_cuda() {
        return Ok(selected);
    }
    // A launcher may restrict each process to its own device.
    match usize::try_from(tch::Cuda::device_count()).unwrap_or(0) {
        1 => Ok(SelectedDevice { reason: "the one CUDA device that it sees".into(), ..selected }),
        count if local_rank < count => {
            let reason = format!("local rank {local_rank} of {count} CUDA devices");
            Ok(SelectedDevice { device: Device::Cuda(local_rank), reason })
        }
        count => Err(DeviceError {
            number: local_rank,
            reason: format!("there are {count} CUDA devices for local rank {local_rank}"),
        }),
    }
}

/// Returns the CPU if the process would compute on it. A GPU requested by number need not exist here.
///
/// # Errors
/// As [`select_device_of`], except for a GPU requested by number.
pub fn cpu_of(
    choice: DeviceChoice,
    local_rank: usize,
    ranks: usize,
) -> Result<Option<SelectedDevice>, DeviceError> {
    if let DeviceChoice::Cuda(_) = choice {
        return Ok(None);
    }
    let selected = select_device_of(choice, local_rank, ranks)?;
    Ok((!selected.device.is_cuda()).then_some(selected))
}

/// Waits until the device has finished its queued work.
pub fn wait_for(device: Device) {
    if let Device::Cuda(number) = device {
        tch::Cuda::synchronize(number as i64);
    }
}

/// Returns the number of CPU threads.
pub fn threads() -> usize {
    usize::try_from(tch::get_num_threads()).unwrap_or(1)
}

/// Returns the number of CUDA devices, or the reason why there are none.
fn cuda_devices() -> Result<usize, String> {
    load_cuda_part()?;
    match usize::try_from(tch::Cuda::device_count()) {
        Ok(0) | Err(_) => Err("libtorch finds no CUDA device".into()),
        Ok(count) => Ok(count),
    }
}

#[expect(unsafe_code, reason = "loading a shared library runs its initialisers")]
fn load_cuda_part() -> Result<(), String> {
    use std::sync::OnceLock;
    static LOADED: OnceLock<Result<(), String>> = OnceLock::new();
    let load = || {
        // SAFETY: libtorch_cuda's initialisers only register its kernels with the libtorch_cpu that this
        // binary is linked to; the library is never unloaded.
        let library = unsafe { libloading::Library::new("libtorch_cuda.so") };
        library.map(std::mem::forget).map_err(|error| not_loaded(&error))
    };
    LOADED.get_or_init(load).clone()
}

/// Names the missing library, from the dynamic linker's message, and its origin.
fn not_loaded(error: &libloading::Error) -> String {
    let error = std::error::Error::source(error).unwrap_or(error);
    format!(
        "libtorch's CUDA part cannot be loaded ({error}); on a machine with a GPU `make libtorch` fetches what a clone \
         lacks, and `pip install torch=={}` what the wheel lacks",
        env!("INSTDISC_TORCH_VERSION")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_there_is_no_gpu_is_no_fault_and_that_one_cannot_be_used_is() {
        let reason = || "the CUDA part cannot be loaded (no such file)".to_owned();
        assert_eq!(without_cuda(Path::new("/nonexistent/driver"), reason()), "no GPU is seen here");
        assert!(without_cuda(Path::new("/"), reason()).contains("cannot be loaded"));
    }

    #[test]
    #[expect(unsafe_code, reason = "a library that is not there runs nothing")]
    fn what_is_missing_is_named() {
        // SAFETY: nothing is loaded.
        let error = unsafe { libloading::Library::new("libnot_here.so") }.expect_err("it is not here");
        let said = not_loaded(&error);
        assert!(said.contains("(libnot_here.so: cannot open") && said.contains("make libtorch"), "{said}");
    }

    #[test]
    fn the_cpu_can_always_be_had() {
        assert_eq!(select_device(DeviceChoice::Cpu).expect("the CPU").device, Device::Cpu);
        assert!(select_device(DeviceChoice::Cuda(4096)).is_err());
    }
}
