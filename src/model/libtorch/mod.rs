//! Functions of libtorch that tch does not expose, through the C functions of `shim/`: operators over lists
//! of tensors, operator counts, and asynchronous copies.
//!
//! On a GPU an operator over a list takes a few launches for any number of tensors, and a copy does not block
//! the host while the GPU computes. The C++ side catches every exception and keeps no pointer that it is
//! given (tensors are counted references there). A failure panics, as in tch's own operators.

#![expect(
    unsafe_code,
    reason = "C++ is reached through C functions; all of them are declared and called here"
)]

use std::cell::Cell;
use std::ffi::{CStr, c_char, c_void};
use std::ptr::{NonNull, null, null_mut};

use tch::{Device, Kind, Tensor};
use torch_sys::C_tensor;

unsafe extern "C" {
    fn model_last_error() -> *const c_char;
    fn model_operators_start() -> i32;
    fn model_operators_stop() -> i32;
    fn model_operators_take(text: *mut *mut c_char) -> i32;
    fn model_text_free(text: *mut c_char);
    fn model_drop_gradients(parameters: *const *const C_tensor, count: usize) -> i32;
    fn model_set_gradients(
        parameters: *const *const C_tensor,
        gradients: *const *const C_tensor,
        count: usize,
    ) -> i32;
    fn model_gradient_norm(parameters: *const *const C_tensor, count: usize, norm: *mut *mut C_tensor)
    -> i32;
    fn model_fused_sgd(
        parameters: *const *const C_tensor,
        buffers: *const *const C_tensor,
        count: usize,
        rate: f64,
        momentum: f64,
        nesterov: i32,
        weight_decay: f64,
        scale: *const C_tensor,
    ) -> i32;
    fn model_fused_adamw(
        parameters: *const *const C_tensor,
        means: *const *const C_tensor,
        squares: *const *const C_tensor,
        count: usize,
        step: *const C_tensor,
        rate: f64,
        beta1: f64,
        beta2: f64,
        weight_decay: f64,
        eps: f64,
        scale: *const C_tensor,
    ) -> i32;
    fn model_lars(
        parameters: *const *const C_tensor,
        buffers: *const *const C_tensor,
        count: usize,
        rate: f64,
        momentum: f64,
        weight_decay: f64,
        trust: f64,
        scale: *const C_tensor,
    ) -> i32;
    fn model_upload(bytes: *const u8, len: i64, device: i32, out: *mut *mut C_tensor) -> i32;
    fn model_event_new(device: i32, out: *mut *mut c_void) -> i32;
    fn model_event_wait(event: *const c_void) -> i32;
    fn model_event_free(event: *mut c_void);
}

/// # Panics
/// If the call failed.
fn done(code: i32) {
    if code != 0 {
        // SAFETY: the message lives until this thread's next call into the shim, and is copied before.
        let message = unsafe { CStr::from_ptr(model_last_error()) };
        panic!("libtorch: {}", message.to_string_lossy());
    }
}

/// Starts to count libtorch's operators in the whole process, from zero; on a GPU each is about one launch.
///
/// Views and allocations are not counted. For operators that call others, those others count. But an operator
/// over a list of tensors counts as one, and so does accumulating into an existing gradient.
pub fn start_counting() {
    // SAFETY: takes nothing.
    done(unsafe { model_operators_start() });
}

/// Stops counting.
pub fn stop_counting() {
    // SAFETY: takes nothing.
    done(unsafe { model_operators_stop() });
}

/// Returns the counts by name since the last call.
pub fn take_counts() -> Vec<(String, u64)> {
    let mut text = null_mut();
    // SAFETY: the shim gives a string that ends with a zero byte; it is copied and freed once.
    let lines = unsafe {
        done(model_operators_take(&mut text));
        let copy = CStr::from_ptr(text).to_string_lossy().into_owned();
        model_text_free(text);
        copy
    };
    // One line per name: number, space, name.
    let count = |line: &str| {
        let (count, name) = line.split_once(' ')?;
        Some((name.to_owned(), count.parse().ok()?))
    };
    lines.lines().filter_map(count).collect()
}

thread_local! {
    static WAITS: Cell<u64> = const { Cell::new(0) };
}

/// Returns how often this thread waited for a device's numbers ([`PendingRead::finish`]) since the last call.
pub fn take_waits() -> u64 {
    WAITS.take()
}

fn pointers(tensors: &[Tensor]) -> Vec<*const C_tensor> {
    tensors.iter().map(Tensor::as_ptr).collect()
}

fn pointer(tensor: Option<&Tensor>) -> *const C_tensor {
    tensor.map_or(null(), Tensor::as_ptr)
}

/// Drops the gradients, so that the next backward pass writes them without an addition.
pub fn drop_gradients(parameters: &[Tensor]) {
    let parameters = pointers(parameters);
    // SAFETY: the list has this many valid tensors.
    done(unsafe { model_drop_gradients(parameters.as_ptr(), parameters.len()) });
}

/// Sets these tensors as the gradients, without a copy.
pub fn set_gradients(parameters: &[Tensor], gradients: &[Tensor]) {
    assert_eq!(parameters.len(), gradients.len(), "a gradient for each parameter");
    let (parameters, gradients) = (pointers(parameters), pointers(gradients));
    // SAFETY: both lists have this many valid tensors.
    done(unsafe { model_set_gradients(parameters.as_ptr(), gradients.as_ptr(), parameters.len()) });
}

/// Returns the Euclidean norm of all gradients together, a f64 scalar on their device; 0 without gradients.
pub fn gradient_norm(parameters: &[Tensor]) -> Tensor {
    let (parameters, mut norm) = (pointers(parameters), null_mut());
    // SAFETY: the list has this many valid tensors; the shim gives a new tensor or null.
    let norm = unsafe {
        done(model_gradient_norm(parameters.as_ptr(), parameters.len(), &mut norm));
        (!norm.is_null()).then(|| Tensor::from_ptr(norm))
    };
    norm.unwrap_or_else(|| Tensor::from(0.0))
}

/// Options of an optimiser's step that all parameters share.
#[derive(Clone, Copy, Debug)]
pub struct Update<'a> {
    /// Learning rate.
    pub rate: f64,
    /// Factor of the weight that is added to the gradient, or for [`adamw`] subtracted from the weight.
    pub weight_decay: f64,
    /// Divisor of the gradients, a f32 scalar on their device.
    pub scale: Option<&'a Tensor>,
}

/// Takes a step of the fused `torch.optim.SGD`; without momentum the buffers are unchanged.
///
/// # Panics
/// If a parameter has no gradient.
pub fn sgd(parameters: &[Tensor], buffers: &[Tensor], momentum: f64, nesterov: bool, update: Update<'_>) {
    assert_eq!(parameters.len(), buffers.len(), "a buffer for each parameter");
    let (parameters, buffers) = (pointers(parameters), pointers(buffers));
    // SAFETY: both lists have this many valid tensors.
    done(unsafe {
        model_fused_sgd(
            parameters.as_ptr(),
            buffers.as_ptr(),
            parameters.len(),
            update.rate,
            momentum,
            nesterov.into(),
            update.weight_decay,
            pointer(update.scale),
        )
    });
}

/// Takes a step of the fused `torch.optim.AdamW`. `step`: its number, from 1, as a f32 scalar on the
/// parameters' device.
///
/// # Panics
/// If a parameter has no gradient.
pub fn adamw(
    parameters: &[Tensor],
    (means, squares): (&[Tensor], &[Tensor]),
    step: &Tensor,
    ((beta1, beta2), eps): ((f64, f64), f64),
    update: Update<'_>,
) {
    assert_eq!([means.len(), squares.len()], [parameters.len(); 2], "two buffers for each parameter");
    let (parameters, means, squares) = (pointers(parameters), pointers(means), pointers(squares));
    // SAFETY: each list has this many valid tensors.
    done(unsafe {
        model_fused_adamw(
            parameters.as_ptr(),
            means.as_ptr(),
            squares.as_ptr(),
            parameters.len(),
            step.as_ptr(),
            update.rate,
            beta1,
            beta2,
            update.weight_decay,
            eps,
            pointer(update.scale),
        )
    });
}

/// Takes a step of LARS: SGD with momentum whose gradient is first scaled, for each tensor, by `trust *
/// ‖weight‖ / ‖gradient + weight_decay * weight‖` if both norms are above 0. With `trust` 0 it is SGD with
/// momentum. Overwrites the gradients. The scaling takes a launch per tensor.
///
/// # Panics
/// If a parameter has no gradient.
///
/// # Source
/// You, Gitman and Ginsburg 2017, with the weight decay inside the norm and the learning rate outside the
/// buffer, as in the official code of SimSiam, Barlow Twins and DINO (`class LARS`).
pub fn lars(parameters: &[Tensor], buffers: &[Tensor], momentum: f64, trust: f64, update: Update<'_>) {
    assert_eq!(parameters.len(), buffers.len(), "a buffer for each parameter");
    let (parameters, buffers) = (pointers(parameters), pointers(buffers));
    // SAFETY: both lists have this many valid tensors.
    done(unsafe {
        model_lars(
            parameters.as_ptr(),
            buffers.as_ptr(),
            parameters.len(),
            update.rate,
            momentum,
            update.weight_decay,
            trust,
            pointer(update.scale),
        )
    });
}

/// Copies the bytes to a CUDA device while it computes.
fn upload(bytes: &[u8], device: usize) -> Tensor {
    let mut out = null_mut();
    // SAFETY: the shim reads this many bytes before it returns, and gives a new tensor.
    unsafe {
        done(model_upload(bytes.as_ptr(), bytes.len() as i64, device as i32, &mut out));
        Tensor::from_ptr(out)
    }
}

/// Runs `with` on a tensor over these bytes.
///
/// # Shape
/// `[bytes]` u8 on the CPU
fn over_bytes(bytes: &[u8], with: impl FnOnce(&Tensor) -> Tensor) -> Tensor {
    // SAFETY: the tensor is dropped before the bytes can be; the result is checked not to share their memory.
    let view =
        unsafe { Tensor::from_blob(bytes.as_ptr(), &[bytes.len() as i64], &[1], Kind::Uint8, Device::Cpu) };
    let made = with(&view);
    assert!(made.data_ptr() != view.data_ptr(), "what is made of borrowed bytes is a copy");
    made
}

/// Point in the queue of a CUDA device.
#[derive(Debug)]
struct Event(NonNull<c_void>);

impl Event {
    fn new(device: usize) -> Self {
        let mut out = null_mut();
        // SAFETY: the shim gives a new object.
        done(unsafe { model_event_new(device as i32, &mut out) });
        Self(NonNull::new(out).expect("the shim gives an object"))
    }

    fn wait(&self) {
        // SAFETY: the handle is valid.
        done(unsafe { model_event_wait(self.0.as_ptr()) });
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: made by model_event_new, freed once.
        unsafe { model_event_free(self.0.as_ptr()) }
    }
}

/// Numbers being copied from the device to the host.
#[derive(Debug)]
pub struct PendingRead {
    numbers: Tensor,
    /// Set on CUDA.
    arrived: Option<Event>,
}

impl PendingRead {
    /// Starts to read.
    ///
    /// # Shape
    /// `[numbers]` f64
    pub fn begin(numbers: &Tensor) -> Self {
        match numbers.device() {
            Device::Cuda(device) => {
                let numbers = numbers.internal_to_copy((Kind::Double, Device::Cpu), true);
                Self { numbers, arrived: Some(Event::new(device)) }
            }
            _ => Self { numbers: numbers.shallow_clone(), arrived: None },
        }
    }

    /// Waits for the numbers.
    pub fn finish(self) -> Vec<f64> {
        WAITS.set(WAITS.get() + 1);
        if let Some(arrived) = &self.arrived {
            arrived.wait();
        }
        Vec::try_from(&self.numbers).expect("a vector of f64 on the CPU")
    }
}

/// Uploads indices to a device.
///
/// # Shape
/// `[values]` int64
pub fn upload_indices(values: &[i64], device: Device) -> Tensor {
    match device {
        Device::Cuda(number) if !values.is_empty() => {
            upload(bytemuck::cast_slice(values), number).view_dtype(Kind::Int64)
        }
        _ => Tensor::from_slice(values).to_device(device),
    }
}

/// Uploads pixels to a device as f32.
///
/// # Shape
/// `[pixels]`
pub(super) fn upload_pixels(pixels: &[u8], device: Device) -> Tensor {
    match device {
        Device::Cuda(number) if !pixels.is_empty() => upload(pixels, number).to_kind(Kind::Float),
        _ if pixels.is_empty() => Tensor::zeros([0], (Kind::Float, device)),
        _ => over_bytes(pixels, |bytes| bytes.to_kind(Kind::Float)),
    }
}

/// Lock for tests that count, as the process has one counter.
#[cfg(test)]
pub(crate) static COUNTING: std::sync::Mutex<()> = std::sync::Mutex::new(());

#[cfg(test)]
mod tests {
    use tch::{Kind, Tensor};

    use super::*;

    /// Other tests run at the same time and are counted too, so these operators occur nowhere else.
    #[test]
    fn operators_count_by_name_and_views_do_not() {
        let _alone = COUNTING.lock();
        let values = Tensor::ones([2, 3], (Kind::Float, tch::Device::Cpu));
        start_counting();
        let _ = values.view([3, 2]).erfinv();
        let _ = values.erfinv();
        let counts = take_counts();
        stop_counting();
        let of = |wanted: &str| counts.iter().find(|(name, _)| name == wanted).map(|(_, count)| *count);
        assert_eq!(of("aten::erfinv"), Some(2), "{counts:?}");
        assert_eq!(of("aten::view"), None, "{counts:?}");
    }
}
