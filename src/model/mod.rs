//! Encoders: images in, unit vectors out.
//!
//! An [`Encoder`] is a network whose last layer is the projection to the embedding, followed by L2
//! normalisation. Tensor names are torchvision's, so that weights move both ways by name. Initial weights
//! are a function of the seed alone. What a model does not know: the objective, the bank, the optimiser.

mod architecture;
mod batch_norm;
mod compute;
mod device;
mod encoder;
mod init;
mod layer;
mod layers;
pub mod libtorch;
mod network;
mod plain;
mod resnet;
mod weights;

pub use batch_norm::SumOverRanks;
pub use compute::{Compute, ComputeType, allow_tf32, tf32_is_allowed};
pub use device::{DeviceError, SelectedDevice, select_device, select_device_of, threads, wait_for};
pub use encoder::{Encoder, EncoderConfig, Normalisation};
pub use layer::{FeatureLayer, NoSuchLayer};
pub use weights::{NamedTensors, WeightsError};
