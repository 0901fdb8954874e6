//! Encoders: images in, unit vectors out.
//!
//! An [`Encoder`] is a network whose last layer is the projection to the embedding, followed by L2
//! normalisation. Tensor names are torchvision's, so that weights move both ways by name. Initial weights
//! are a function of the seed alone. A model knows neither objective, bank nor optimiser.

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
