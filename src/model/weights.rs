//! Named tensors, and their safetensors files.

use std::borrow::Cow;

use safetensors::tensor::{Dtype, SafeTensors, View};
use tch::{Kind, Tensor};

/// Error of a file of tensors.
#[derive(Debug, thiserror::Error)]
pub enum WeightsError {
    /// The bytes are not a safetensors file.
    #[error("not a safetensors file")]
    Malformed(#[source] safetensors::SafeTensorError),
    /// The bytes are a file of PyTorch's `torch.save`.
    #[error(
        "a PyTorch pickle, not safetensors; convert it: `python -c 'import sys, torch, safetensors.torch as s; \
         s.save_file(torch.load(sys.argv[1], map_location=\"cpu\", weights_only=True), sys.argv[2])' IN.pth \
         OUT.safetensors`, or for a checkpoint of lemniscate jobs/tools/lemniscate_to_checkpoint.py"
    )]
    Pickle,
    /// A required tensor is missing.
    #[error("tensor `{name}` is missing")]
    Missing {
        /// Name of the tensor.
        name: String,
    },
    /// No name belongs to the model: the file has another network's, or names with a prefix.
    #[error("weights of another network, or under other names: expected `{expected}`, {found}")]
    OtherNames {
        /// Name of a tensor of the model.
        expected: String,
        /// Names in the file, with advice if the cause is known.
        found: String,
    },
    /// The file has a tensor that the model lacks.
    #[error("tensor `{name}` is not part of this model")]
    Unexpected {
        /// Name of the tensor.
        name: String,
    },
    /// A tensor has another shape.
    #[error("tensor `{name}` has shape {actual:?}, expected {expected:?}")]
    Shape {
        /// Name of the tensor.
        name: String,
        /// Shape in the model.
        expected: Vec<i64>,
        /// Shape in the file.
        actual: Vec<i64>,
    },
    /// A tensor has an unsupported type, or integers where weights are expected.
    #[error(
        "tensor `{name}` has type {dtype}, expected F16, BF16, F32 or F64; convert quantised weights to one of them"
    )]
    Type {
        /// Name of the tensor.
        name: String,
        /// Type in the file.
        dtype: String,
    },
    /// A number is not finite, as the training diverged.
    #[error("tensor `{name}` has a number that is not finite")]
    NotFinite {
        /// Name of the tensor.
        name: String,
    },
    /// A variance is below 0.
    #[error("tensor `{name}` has a number below 0, expected the variances of a batch norm")]
    NegativeVariance {
        /// Name of the tensor.
        name: String,
    },
    /// All images have the same feature.
    #[error("two different images have exactly the same feature, as where the weights of a layer are all 0")]
    Constant,
}

impl WeightsError {
    /// Returns whether the file is readable but belongs to another model.
    pub fn is_of_another_model(&self) -> bool {
        matches!(
            self,
            Self::Missing { .. } | Self::OtherNames { .. } | Self::Unexpected { .. } | Self::Shape { .. }
        )
    }
}

/// First bytes of files of `torch.save`: a zip, or a pickle of protocol 2 to 5.
const PICKLES: [&[u8]; 5] = [b"PK\x03\x04", b"\x80\x02", b"\x80\x03", b"\x80\x04", b"\x80\x05"];

/// Tensors on the CPU, sorted by name.
#[derive(Debug, Default)]
pub struct NamedTensors {
    tensors: Vec<(String, Tensor)>,
}

impl NamedTensors {
    /// Copies the tensors to the CPU.
    pub fn from_tensors(tensors: impl IntoIterator<Item = (String, Tensor)>) -> Self {
        let mut tensors: Vec<_> = tensors
            .into_iter()
            .map(|(name, tensor)| {
                let here = tensor.detach().to_device(tch::Device::Cpu).contiguous();
                // A tensor from a GPU, or one that was not contiguous, is already a copy.
                let is_shared = tensor.numel() > 0 && here.data_ptr() == tensor.data_ptr();
                (name, if is_shared { here.copy() } else { here })
            })
            .collect();
        tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
        Self { tensors }
    }

    /// Iterates over names and tensors.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Tensor)> {
        self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor))
    }

    /// Copies the tensors whose names fit.
    pub(super) fn only(&self, fits: impl Fn(&str) -> bool) -> Self {
        let named = self.iter().filter(|(name, _)| fits(name));
        Self::from_tensors(named.map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone())))
    }

    /// Returns the name of the first tensor with a value that is not finite.
    pub fn not_finite(&self) -> Option<&str> {
        let is_finite = |tensor: &Tensor| tensor.isfinite().all().int64_value(&[]) == 1;
        self.iter().find(|(_, tensor)| !is_finite(tensor)).map(|(name, _)| name)
    }

    /// Checks that all values are finite, and the variances of batch norms not negative.
    ///
    /// # Errors
    /// [`WeightsError::NotFinite`] or [`WeightsError::NegativeVariance`] with the first name.
    pub fn in_range(self) -> Result<Self, WeightsError> {
        if let Some(name) = self.not_finite() {
            return Err(WeightsError::NotFinite { name: name.to_owned() });
        }
        let is_negative = |tensor: &Tensor| tensor.lt(0.0).any().int64_value(&[]) == 1;
        let mut variances = self.iter().filter(|(name, _)| name.ends_with("running_var"));
        if let Some((name, _)) = variances.find(|(_, tensor)| is_negative(tensor)) {
            return Err(WeightsError::NegativeVariance { name: name.to_owned() });
        }
        drop(variances);
        Ok(self)
    }

    /// Returns the tensor with this name.
    ///
    /// # Errors
    /// [`WeightsError::Missing`]
    pub fn get(&self, name: &str) -> Result<&Tensor, WeightsError> {
        let found = self.tensors.binary_search_by(|(own, _)| own.as_str().cmp(name));
        found.map(|index| &self.tensors[index].1).map_err(|_| WeightsError::Missing { name: name.to_owned() })
    }

    /// Serialises the tensors; equal tensors give equal bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let views = self.tensors.iter().map(|(name, tensor)| {
            let shape = tensor.size().iter().map(|&extent| extent as usize).collect();
            (name, Bytes { tensor, shape })
        });
        safetensors::serialize(views, None).expect("names are distinct and sizes are right")
    }

    /// Parses the bytes of a file.
    ///
    /// # Errors
    /// If the bytes are not a safetensors file or contain a type other than f16, bf16, f32, f64, i32 or i64.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, WeightsError> {
        let is_pickle = PICKLES.iter().any(|magic| bytes.starts_with(magic));
        let file = SafeTensors::deserialize(bytes)
            .map_err(|error| if is_pickle { WeightsError::Pickle } else { WeightsError::Malformed(error) })?;
        let mut tensors = Vec::new();
        for (name, view) in file.tensors() {
            let Some(kind) = kind(view.dtype()) else {
                return Err(WeightsError::Type { name, dtype: format!("{:?}", view.dtype()) });
            };
            let shape: Vec<i64> = view.shape().iter().map(|&extent| extent as i64).collect();
            let tensor = if shape.contains(&0) {
                Tensor::zeros(shape.as_slice(), (kind, tch::Device::Cpu))
            } else {
                Tensor::from_data_size(view.data(), &shape, kind)
            };
            tensors.push((name, tensor));
        }
        tensors.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(Self { tensors })
    }

    /// Copies the values into `targets`, which must have exactly these names and shapes. Skips
    /// `num_batches_tracked` of batch norms, which PyTorch writes and nothing here uses.
    ///
    /// # Errors
    /// If a name is missing, unexpected or has another shape, with the first one; nothing is copied then.
    pub fn copy_into(&self, targets: Vec<(String, Tensor)>) -> Result<(), WeightsError> {
        if let Some((first, _)) = targets.first()
            && targets.iter().all(|(name, _)| self.get(name).is_err())
        {
            return Err(self.other_names(first, &targets));
        }
        for (name, target) in &targets {
            let value = self.get(name)?;
            let (expected, actual) = (target.size(), value.size());
            if expected != actual {
                return Err(WeightsError::Shape { name: name.clone(), expected, actual });
            }
            if matches!(value.kind(), Kind::Int | Kind::Int64) && target.kind() == Kind::Float {
                let dtype = format!("{:?}", dtype(value.kind()));
                return Err(WeightsError::Type { name: name.clone(), dtype });
            }
        }
        let known = |name: &str| targets.iter().any(|(own, _)| own == name);
        if let Some((name, _)) =
            self.iter().find(|(name, _)| !name.ends_with("num_batches_tracked") && !known(name))
        {
            return Err(WeightsError::Unexpected { name: name.to_owned() });
        }
        for (name, mut target) in targets {
            let value = self.get(&name)?;
            tch::no_grad(|| target.copy_(value));
        }
        Ok(())
    }

    /// Returns the error of a file without any of a model's names; `expected` is the model's first.
    fn other_names(&self, expected: &str, targets: &[(String, Tensor)]) -> WeightsError {
        let prefix_of =
            |name: &str| name.strip_suffix(expected).filter(|p| p.ends_with('.')).map(str::to_owned);
        let has_all =
            |prefix: &String| targets.iter().all(|(name, _)| self.get(&format!("{prefix}{name}")).is_ok());
        let prefixes = self.iter().filter_map(|(name, _)| prefix_of(name)).filter(has_all);
        let prefixes: Vec<_> = prefixes.map(|prefix| format!("`{prefix}`")).collect();
        let name = self.iter().next().map_or_else(|| "no tensor".to_owned(), |(name, _)| format!("`{name}`"));
        let found = match prefixes.as_slice() {
            [] => format!("found {name}"),
            some => format!("found {name}; remove {} from its names", some.join(" or ")),
        };
        WeightsError::OtherNames { expected: expected.to_owned(), found }
    }
}

/// Tensor view for safetensors, which copies the bytes of one tensor at a time.
struct Bytes<'a> {
    tensor: &'a Tensor,
    shape: Vec<usize>,
}

impl View for Bytes<'_> {
    fn dtype(&self) -> Dtype {
        dtype(self.tensor.kind())
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        let mut bytes = vec![0; self.data_len()];
        if !bytes.is_empty() {
            self.tensor.copy_data_u8(&mut bytes, self.tensor.numel());
        }
        bytes.into()
    }

    fn data_len(&self) -> usize {
        self.tensor.numel() * self.tensor.kind().elt_size_in_bytes()
    }
}

/// Number types that files of this crate may have.
const TYPES: [(Kind, Dtype); 6] = [
    (Kind::Half, Dtype::F16),
    (Kind::BFloat16, Dtype::BF16),
    (Kind::Float, Dtype::F32),
    (Kind::Double, Dtype::F64),
    (Kind::Int, Dtype::I32),
    (Kind::Int64, Dtype::I64),
];

fn dtype(kind: Kind) -> Dtype {
    TYPES
        .into_iter()
        .find(|(of, _)| *of == kind)
        .unwrap_or_else(|| unreachable!("a tensor of kind {kind:?}"))
        .1
}

fn kind(dtype: Dtype) -> Option<Kind> {
    TYPES.into_iter().find(|(_, of)| *of == dtype).map(|(kind, _)| kind)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tensors_survive_the_file_bit_for_bit() {
        let tensors = [
            ("b".to_owned(), Tensor::from_slice(&[1.5_f32, -0.0, 3.0e-40])),
            ("a".to_owned(), Tensor::from_slice(&[1_i64, -2]).view([2, 1])),
        ];
        let bytes = NamedTensors::from_tensors(tensors).to_bytes();
        let read = NamedTensors::from_bytes(&bytes).expect("our own file");
        assert_eq!(read.get("a").expect("there").size(), [2, 1]);
        assert_eq!(read.to_bytes(), bytes);
    }

    #[test]
    fn names_of_another_network_are_said_as_such() {
        let file =
            |name: &str| NamedTensors::from_tensors([(name.to_owned(), Tensor::from_slice(&[1.0_f32]))]);
        let targets = || vec![("bn1.bias".to_owned(), Tensor::from_slice(&[0.0_f32]))];
        let wrapped = file("module.bn1.bias").copy_into(targets()).expect_err("another name").to_string();
        assert!(wrapped.contains("found `module.bn1.bias`; remove `module.` from its names"), "{wrapped}");
        let other = file("patch_embed.bias").copy_into(targets()).expect_err("another network").to_string();
        assert!(
            other.starts_with("weights of another network") && other.ends_with("`patch_embed.bias`"),
            "{other}"
        );
    }

    #[test]
    fn a_missing_an_unexpected_and_a_misshapen_tensor_are_each_named() {
        let file = |name: &str, len| {
            NamedTensors::from_tensors([(
                name.to_owned(),
                Tensor::zeros([len], (Kind::Float, tch::Device::Cpu)),
            )])
        };
        let target = || vec![("a".to_owned(), Tensor::zeros([2], (Kind::Float, tch::Device::Cpu)))];
        let both = target().into_iter().chain(file("b", 2).tensors).collect();
        assert!(matches!(file("b", 2).copy_into(both), Err(WeightsError::Missing { name }) if name == "a"));
        assert!(
            matches!(file("a", 3).copy_into(target()), Err(WeightsError::Shape { name, .. }) if name == "a")
        );
        let quantised = NamedTensors::from_tensors([("a".to_owned(), Tensor::from_slice(&[1_i32, 2]))]);
        let error = quantised.copy_into(target()).expect_err("integers");
        assert!(!error.is_of_another_model() && error.to_string().contains("`a` has type I32"), "{error}");
        let error = file("b", 2).copy_into(Vec::new());
        assert!(matches!(error, Err(WeightsError::Unexpected { name }) if name == "b"));
    }
}
