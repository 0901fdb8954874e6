//! Types of option values that are chosen by name.
//!
//! These types are here, not beside the code that acts on them, because that code needs libtorch.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use strum::{EnumMessage, IntoStaticStr, VariantArray};

use super::option::{OptionValue, TextOrNumber};

/// Name that an option accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// Name of the value.
    pub name: &'static str,
    /// Help text, without a full stop.
    pub help: &'static str,
}

/// Returns the names of an enum whose variants are an option's values.
pub fn choices<T: VariantArray + EnumMessage>() -> Vec<Choice> {
    let choice = |value: &T| Choice {
        name: value.get_serializations()[0],
        help: value.get_documentation().unwrap_or_default().trim_end_matches(['.', '\n']),
    };
    T::VARIANTS.iter().map(choice).collect()
}

/// Defines enums of names: each variant has its doc, which is its help, and its name in flags and files.
macro_rules! choices {
    ($($(#[$attribute:meta])+ $choice:ident { $($(#[$of_variant:meta])+ $variant:ident = $name:literal,)+ })+) => {$(
        $(#[$attribute])+
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, EnumMessage, IntoStaticStr, VariantArray)]
        pub enum $choice {
            $($(#[$of_variant])+ #[serde(rename = $name)] #[strum(serialize = $name)] $variant,)+
        }

        impl OptionValue for $choice {
            const VALUE_NAME: &'static str = "NAME";

            fn choices() -> Vec<Choice> {
                choices::<Self>()
            }

            fn from_flag(text: &str) -> Result<toml::Value, String> {
                let choice = Self::choices().into_iter().find(|choice| choice.name == text);
                choice.map(|choice| choice.name.into()).ok_or_else(|| format!("unknown name `{text}`"))
            }
        }
    )+};
}

choices! {
    /// Backbones by name.
    Architecture {
        /// ResNet-18 with the ImageNet stem (7×7 stride 2, max-pool).
        ResNet18 = "resnet18",
        /// ResNet-34 with the ImageNet stem.
        ResNet34 = "resnet34",
        /// ResNet-50 with the ImageNet stem.
        ResNet50 = "resnet50",
        /// ResNet-101 with the ImageNet stem.
        ResNet101 = "resnet101",
        /// ResNet-152 with the ImageNet stem.
        ResNet152 = "resnet152",
        /// AlexNet as in torchvision, for images of at least 64 pixels.
        AlexNet = "alexnet",
        /// VGG-16, for images of at least 32 pixels.
        Vgg16 = "vgg16",
        /// VGG-16 with batch norm.
        Vgg16Bn = "vgg16-bn",
        /// ResNet-18 with a 3×3 stem, for 32×32 images (reference `models/resnet_cifar.py`).
        ResNet18Cifar = "resnet18-cifar",
        /// ResNet-20 of He et al. 2016, section 4.2: stages of 16, 32 and 64 channels, 3×3 stem.
        ResNet20Cifar = "resnet20-cifar",
    }

    /// Augmentation recipes by name.
    RecipeKind {
        /// Crop, grayscale, colour jitter, flip (reference `main.py`).
        Imagenet = "imagenet",
        /// Crop, colour jitter, grayscale, no flip (reference `cifar.py`).
        Cifar = "cifar",
    }

    /// Objectives by name.
    ObjectiveKind {
        /// Noise-contrastive estimation against sampled rows (paper section 3.2; the reference's default).
        Nce = "nce",
        /// Exact softmax over all instances (paper equation 2; the reference's `--nce-k 0`).
        Softmax = "softmax",
        /// Softmax over the image's own row and sampled ones.
        InfoNce = "infonce",
    }

    /// Sharing of sampled rows between images.
    #[derive(Default)]
    Sampling {
        /// Each image has its own, as in the reference.
        #[default]
        PerSample = "per-sample",
        /// All images of a step share them: a matrix product instead of a gather.
        Shared = "shared",
    }

    /// Number type of the bank's rows. Sums, similarities and losses are always f32.
    #[derive(Default)]
    BankDtype {
        /// 32 bits.
        #[default]
        F32 = "f32",
        /// 16 bits, 8 of them for the fraction: half the memory, rows of unit length within 0.4 %.
        Bf16 = "bf16",
        /// 16 bits, 11 of them for the fraction: half the memory, rows of unit length within 0.05 %.
        F16 = "f16",
    }

    /// Bank rows before the first step.
    #[derive(Default)]
    BankInit {
        /// Uniform in a cube, then normalised (the reference's draw, which it does not normalise).
        #[default]
        Uniform = "uniform",
        /// Uniform on the sphere: normal numbers, normalised (the paper's "unit random vectors").
        Normal = "normal",
        /// The encoder's feature of each image, from one pass before the first step.
        Encode = "encode",
    }

    /// Optimisers by name.
    OptimizerKind {
        /// Stochastic gradient descent with momentum (the reference's).
        Sgd = "sgd",
        /// SGD whose steps are scaled layer by layer (You et al. 2017).
        Lars = "lars",
        /// Adam with decoupled weight decay (Loshchilov and Hutter 2019).
        Adamw = "adamw",
    }

    /// Schedule of the learning rate after the warm-up.
    LrSchedule {
        /// By a factor at each of `--lr-milestones` (the reference's).
        Step = "step",
        /// Along half a cosine to `--lr-final`, step by step.
        Cosine = "cosine",
        /// Not at all.
        Constant = "constant",
    }

    /// Precision of the network. Normalisation, similarities and losses are always f32.
    Precision {
        /// 32-bit floating point throughout.
        F32 = "f32",
        /// As f32, but products on tensor cores round their factors to 10 bits (CUDA only).
        Tf32 = "tf32",
        /// Convolutions and linear layers in bfloat16, weights and statistics in f32.
        Bf16 = "bf16",
        /// As bf16, but in half precision and with a loss scale.
        F16 = "f16",
    }

    /// Action at a step whose numbers are not finite.
    OnNonFinite {
        /// End the run; its last checkpoint remains.
        Fail = "fail",
        /// Skip the update, count it and continue.
        Skip = "skip",
    }

    /// Order of an epoch's images.
    ShuffleKind {
        /// Uniformly over the whole split; for local or cached data.
        Exact = "exact",
        /// Whole row groups in random order, and rows mixed within a window of them; for streaming.
        Windowed = "windowed",
    }

    /// Action at a missing or corrupt image.
    #[derive(Default)]
    OnCorrupt {
        /// End with an error that names it.
        #[default]
        Fail = "fail",
        /// Leave it out, log and count it.
        Skip = "skip",
    }
}

impl Architecture {
    /// Returns the smallest side of an image, in pixels, that leaves at least one pixel in every map.
    pub fn least_side(self) -> u32 {
        match self {
            Self::AlexNet => 64,
            Self::Vgg16 | Self::Vgg16Bn => 32,
            _ => 8,
        }
    }
}

/// Source of the constant Z of `nce`: `fixed`, `ema`, `delayed`, or a number.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "TextOrNumber<f64>", into = "TextOrNumber<f64>")]
pub enum PartitionChoice {
    /// Estimated from the first batch only, as in the reference.
    #[default]
    Fixed,
    /// Moving average of each batch's estimate: the positive plus n - 1 times the mean of the negatives.
    Ema,
    /// Mean of the first epoch's estimates, during which every bank row is written once; constant afterwards.
    Delayed,
    /// Given number.
    Given(f64),
}

impl PartitionChoice {
    /// Returns whether batches after the first contribute to the estimate.
    pub fn is_estimated(self) -> bool {
        matches!(self, Self::Ema | Self::Delayed)
    }
}

impl FromStr for PartitionChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "fixed" => Ok(Self::Fixed),
            "ema" => Ok(Self::Ema),
            "delayed" => Ok(Self::Delayed),
            _ => match text.parse::<f64>() {
                Ok(z) if z.is_finite() && z > 0.0 => Ok(Self::Given(z)),
                _ => Err(format!(
                    "unknown constant Z `{text}`: expected fixed, ema, delayed or a number above 0"
                )),
            },
        }
    }
}

impl fmt::Display for PartitionChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Fixed => f.write_str("fixed"),
            Self::Ema => f.write_str("ema"),
            Self::Delayed => f.write_str("delayed"),
            Self::Given(z) => z.fmt(f),
        }
    }
}

impl TryFrom<TextOrNumber<f64>> for PartitionChoice {
    type Error = String;

    fn try_from(value: TextOrNumber<f64>) -> Result<Self, String> {
        match value {
            TextOrNumber::Text(text) => text.parse(),
            TextOrNumber::Number(number) => number.to_string().parse(),
        }
    }
}

impl From<PartitionChoice> for TextOrNumber<f64> {
    fn from(choice: PartitionChoice) -> Self {
        match choice {
            PartitionChoice::Given(z) => Self::Number(z),
            named => Self::Text(named.to_string()),
        }
    }
}

/// Requested device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum DeviceChoice {
    /// First CUDA device if there is one, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// CUDA device with this number.
    Cuda(usize),
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|number| number.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| format!("unknown device `{text}`: expected auto, cpu or cuda:N")),
        }
    }
}

impl TryFrom<String> for DeviceChoice {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<DeviceChoice> for String {
    fn from(choice: DeviceChoice) -> String {
        match choice {
            DeviceChoice::Auto => "auto".into(),
            DeviceChoice::Cpu => "cpu".into(),
            DeviceChoice::Cuda(number) => format!("cuda:{number}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_a_word_or_a_positive_number() {
        assert_eq!("ema".parse(), Ok(PartitionChoice::Ema));
        assert_eq!("2876.5".parse(), Ok(PartitionChoice::Given(2876.5)));
        for wrong in ["0", "-1", "NaN", "inf", "once"] {
            assert!(wrong.parse::<PartitionChoice>().is_err(), "{wrong}");
        }
        for text in ["\"fixed\"", "\"ema\"", "2876.5"] {
            let read: PartitionChoice = serde_json::from_str(text).expect("a partition");
            assert_eq!(serde_json::to_string(&read).expect("JSON"), text);
        }
    }

    #[test]
    fn devices_are_read_from_text() {
        assert_eq!("cuda:3".parse(), Ok(DeviceChoice::Cuda(3)));
        assert_eq!("auto".parse(), Ok(DeviceChoice::Auto));
        assert!("gpu".parse::<DeviceChoice>().is_err());
    }
}
