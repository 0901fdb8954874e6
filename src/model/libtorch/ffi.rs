//! The C functions of `shim/`, as safe Rust: what tch does not expose of libtorch.
//!
//! The C++ side catches every exception and keeps no pointer that it is given (tensors are counted references there).
//! A failure is a panic here, as of tch's own operators.

#![expect(
    unsafe_code,
    reason = "C++ is reached through C functions; all of them are declared and called here"
)]

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

pub(super) fn start_counting() {
    // SAFETY: takes nothing.
    done(unsafe { model_operators_start() });
}

pub(super) fn stop_counting() {
    // SAFETY: takes nothing.
    done(unsafe { model_operators_stop() });
}

/// A line for each name: number, space, name.
pub(super) fn take_counts() -> String {
    let mut text = null_mut();
    // SAFETY: the shim gives a string that ends with a zero byte, which is copied and freed once.
    unsafe {
        done(model_operators_take(&mut text));
        let copy = CStr::from_ptr(text).to_string_lossy().into_owned();
        model_text_free(text);
        copy
    }
}

fn pointers(tensors: &[Tensor]) -> Vec<*const C_tensor> {
    tensors.iter().map(Tensor::as_ptr).collect()
}

fn pointer(tensor: Option<&Tensor>) -> *const C_tensor {
    tensor.map_or(null(), Tensor::as_ptr)
}

pub(super) fn drop_gradients(parameters: &[Tensor]) {
    let parameters = pointers(parameters);
    // SAFETY: as many valid tensors as are said.
    done(unsafe { model_drop_gradients(parameters.as_ptr(), parameters.len()) });
}

pub(super) fn gradient_norm(parameters: &[Tensor]) -> Option<Tensor> {
    let (parameters, mut norm) = (pointers(parameters), null_mut());
    // SAFETY: as many valid tensors as are said; the shim gives a new tensor or null.
    unsafe {
        done(model_gradient_norm(parameters.as_ptr(), parameters.len(), &mut norm));
        (!norm.is_null()).then(|| Tensor::from_ptr(norm))
    }
}

pub(super) fn fused_sgd(
    parameters: &[Tensor],
    buffers: &[Tensor],
    (rate, momentum, nesterov, weight_decay): (f64, f64, bool, f64),
    scale: Option<&Tensor>,
) {
    assert_eq!(parameters.len(), buffers.len(), "a buffer for each parameter");
    let (parameters, buffers) = (pointers(parameters), pointers(buffers));
    // SAFETY: valid tensors, as many as are said in both lists.
    done(unsafe {
        model_fused_sgd(
            parameters.as_ptr(),
            buffers.as_ptr(),
            parameters.len(),
            rate,
            momentum,
            nesterov.into(),
            weight_decay,
            pointer(scale),
        )
    });
}

pub(super) fn fused_adamw(
    parameters: &[Tensor],
    (means, squares): (&[Tensor], &[Tensor]),
    step: &Tensor,
    (rate, (beta1, beta2), weight_decay, eps): (f64, (f64, f64), f64, f64),
    scale: Option<&Tensor>,
) {
    assert_eq!([means.len(), squares.len()], [parameters.len(); 2], "two buffers for each parameter");
    let (parameters, means, squares) = (pointers(parameters), pointers(means), pointers(squares));
    // SAFETY: valid tensors, as many as are said in each list.
    done(unsafe {
        model_fused_adamw(
            parameters.as_ptr(),
            means.as_ptr(),
            squares.as_ptr(),
            parameters.len(),
            step.as_ptr(),
            rate,
            beta1,
            beta2,
            weight_decay,
            eps,
            pointer(scale),
        )
    });
}

pub(super) fn lars(
    parameters: &[Tensor],
    buffers: &[Tensor],
    (rate, momentum, weight_decay, trust): (f64, f64, f64, f64),
    scale: Option<&Tensor>,
) {
    assert_eq!(parameters.len(), buffers.len(), "a buffer for each parameter");
    let (parameters, buffers) = (pointers(parameters), pointers(buffers));
    // SAFETY: valid tensors, as many as are said in both lists.
    done(unsafe {
        model_lars(
            parameters.as_ptr(),
            buffers.as_ptr(),
            parameters.len(),
            rate,
            momentum,
            weight_decay,
            trust,
            pointer(scale),
        )
    });
}

/// The bytes on a CUDA device, copied beside what it computes.
pub(super) fn upload(bytes: &[u8], device: usize) -> Tensor {
    let mut out = null_mut();
    // SAFETY: the shim reads so many bytes before it returns, and gives a new tensor.
    unsafe {
        done(model_upload(bytes.as_ptr(), bytes.len() as i64, device as i32, &mut out));
        Tensor::from_ptr(out)
    }
}

/// Runs `with` on a tensor over these bytes.
///
/// # Shape
/// `[bytes]` u8 on the CPU
pub(super) fn over_bytes(bytes: &[u8], with: impl FnOnce(&Tensor) -> Tensor) -> Tensor {
    // SAFETY: the tensor is dropped before the bytes can be; what is made of it is checked to lie elsewhere.
    let view =
        unsafe { Tensor::from_blob(bytes.as_ptr(), &[bytes.len() as i64], &[1], Kind::Uint8, Device::Cpu) };
    let made = with(&view);
    assert!(made.data_ptr() != view.data_ptr(), "what is made of borrowed bytes is a copy");
    made
}

/// What a CUDA device had been given at some moment.
#[derive(Debug)]
pub(super) struct Event(NonNull<c_void>);

impl Event {
    pub(super) fn new(device: usize) -> Self {
        let mut out = null_mut();
        // SAFETY: the shim gives a new object.
        done(unsafe { model_event_new(device as i32, &mut out) });
        Self(NonNull::new(out).expect("the shim gives an object"))
    }

    pub(super) fn wait(&self) {
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
