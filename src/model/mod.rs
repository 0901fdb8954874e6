//! Encoders: images in, unit vectors out.
//!
//! An [`Encoder`] is a network whose last layer is the projection to the embedding, followed by L2
//! normalisation. Tensors have torchvision's names, so weights can be exchanged in both directions. Initial
//! weights depend on the seed alone. This module does not use objective, bank or optimiser.

mod compute;
mod encoder;
mod layers;
pub mod libtorch;
mod network;
mod plain;
mod resnet;
mod weights;

pub use compute::{
    DeviceError, SelectedDevice, allow_tf32, cpu_of, has_gpu, select_device, select_device_of,
    tf32_is_allowed, threads, wait_for,
};
pub use encoder::{Encoder, EncoderConfig, Normalisation};
pub use layers::OverRanks;
pub use network::{FeatureLayer, NoSuchLayer};
pub use weights::{NamedTensors, WeightsError};
