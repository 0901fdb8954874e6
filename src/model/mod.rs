//! Encoders: pictures in, unit vectors out.
//!
//! An [`Encoder`] is a ResNet whose `fc` layer is the projection to the embedding, followed by L2
//! normalisation. Tensor names are torchvision's, so that weights move both ways by name. Initial weights
//! are a function of the seed alone. What a model does not know: the objective, the bank, the optimiser.

mod architecture;
mod device;
mod encoder;
mod init;
mod resnet;
mod weights;

pub use architecture::Architecture;
pub use device::{DeviceChoice, DeviceError, SelectedDevice, select_device};
pub use encoder::{Encoder, EncoderConfig, Normalisation};
pub use weights::{NamedTensors, WeightsError};
