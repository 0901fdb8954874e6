//! Copies between host and device during training: none of them stops the host while a GPU computes.

use tch::{Device, Kind, Tensor};

use super::ffi;

/// Numbers on their way from the device to the host.
#[derive(Debug)]
pub struct PendingRead {
    numbers: Tensor,
    /// On CUDA.
    arrived: Option<ffi::Event>,
}

impl PendingRead {
    /// Begins to read.
    ///
    /// # Shape
    /// `[numbers]` f64
    pub fn begin(numbers: &Tensor) -> Self {
        match numbers.device() {
            Device::Cuda(device) => {
                let numbers = numbers.internal_to_copy((Kind::Double, Device::Cpu), true);
                Self { numbers, arrived: Some(ffi::Event::new(device)) }
            }
            _ => Self { numbers: numbers.shallow_clone(), arrived: None },
        }
    }

    /// Waits for the numbers.
    pub fn finish(self) -> Vec<f64> {
        if let Some(arrived) = &self.arrived {
            arrived.wait();
        }
        Vec::try_from(&self.numbers).expect("a vector of f64 on the CPU")
    }
}

/// Indices on a device.
///
/// # Shape
/// `[values]` int64
pub fn upload_indices(values: &[i64], device: Device) -> Tensor {
    match device {
        Device::Cuda(number) if !values.is_empty() => {
            ffi::upload(bytemuck::cast_slice(values), number).view_dtype(Kind::Int64)
        }
        _ => Tensor::from_slice(values).to_device(device),
    }
}

/// Pixels on a device as f32.
///
/// # Shape
/// `[pixels]`
pub(in crate::model) fn upload_pixels(pixels: &[u8], device: Device) -> Tensor {
    match device {
        Device::Cuda(number) if !pixels.is_empty() => ffi::upload(pixels, number).to_kind(Kind::Float),
        _ if pixels.is_empty() => Tensor::zeros([0], (Kind::Float, device)),
        _ => ffi::over_bytes(pixels, |bytes| bytes.to_kind(Kind::Float)),
    }
}
