//! Online linear probe: a linear classifier that learns beside the encoder.
//!
//! The probe trains on the pooled features of each step's own forward pass, with the labels of its images.
//! Its gradient is a closed form on detached features: no graph leads to the encoder, and no random numbers
//! are drawn. So encoder and bank have the same bits with and without a probe.

use tch::{Device, Kind, Tensor, no_grad};

use crate::distributed::{DistributedError, ProcessGroup, Reduce};
use crate::feature_table::FeatureTable;
use crate::ids::ClassId;
use crate::model::libtorch::upload_indices;
use crate::model::{NamedTensors, WeightsError};

const MOMENTUM: f64 = 0.9;
/// Stands for a missing label.
const NO_LABEL: i64 = -1;
/// Sums besides the gradient: loss, hits, and images with a label.
const NUMBERS: i64 = 3;

/// Linear classifier of pooled features with its optimiser: SGD with momentum 0.9 on the mean cross entropy,
/// without weight decay and with a constant learning rate. Starts at zero.
///
/// # Source
/// SimCLR's code (`lineareval_while_pretraining`): a supervised head behind a stopped gradient.
#[derive(Debug)]
pub struct Probe {
    /// `[classes, width + 1]` f32: the weights of each class, then its bias.
    map: Tensor,
    /// `[classes, width + 1]` f32.
    momentum: Tensor,
    lr: f64,
}

impl Probe {
    /// Creates a probe for features of length `width`. Its classes reach up to the greatest label of the
    /// training images; it cannot predict further classes of other splits.
    pub(super) fn new(width: i64, labels: &[Option<ClassId>], lr: f64, device: Device) -> Self {
        let classes = labels.iter().flatten().map(|class| i64::from(class.0) + 1).max().unwrap_or(0);
        let zeros = || Tensor::zeros([classes, width + 1], (Kind::Float, device));
        Self { map: zeros(), momentum: zeros(), lr }
    }

    /// Returns sums over some images before the update: the probe's gradient, the loss in nats, hits, and
    /// images with a label. Images without a label contribute nothing.
    ///
    /// # Shape
    /// `pooled: [images, width]` f32, `labels: [images]` -> `[classes * (width + 1) + 3]` f32
    pub(super) fn sums(&self, pooled: &Tensor, labels: &[Option<ClassId>]) -> Tensor {
        no_grad(|| {
            let labels = upload_indices(&indices(labels), self.map.device());
            let features = with_one(pooled);
            let logits = features.matmul(&self.map.tr());
            let is_labelled = labels.ge(0).to_kind(Kind::Float).unsqueeze(1);
            let own = labels.clamp_min(0).unsqueeze(1);
            let log_shares = logits.log_softmax(1, Kind::Float);
            let loss = -(log_shares.gather(1, &own, false) * &is_labelled).sum(Kind::Float);
            let minus_one = Tensor::full_like(&is_labelled, -1.0);
            let error = log_shares.exp().scatter_add(1, &own, &minus_one) * &is_labelled;
            let hits = logits.argmax(1, false).eq_tensor(&labels).sum(Kind::Float);
            let numbers = Tensor::stack(&[loss, hits, is_labelled.sum(Kind::Float)], 0);
            Tensor::cat(&[error.tr().matmul(&features).reshape([-1]), numbers], 0)
        })
    }

    /// Updates the weights by the sums over a whole batch. Returns their loss, hits and images.
    ///
    /// # Shape
    /// as [`Probe::sums`] -> three f64 scalars
    pub(super) fn step(&mut self, sums: &Tensor) -> Vec<Tensor> {
        no_grad(|| {
            let length = self.map.numel() as i64;
            let numbers = sums.narrow(0, length, NUMBERS);
            let gradient = sums.narrow(0, 0, length).view_as(&self.map) / numbers.get(2).clamp_min(1.0);
            self.momentum = &self.momentum * MOMENTUM + gradient;
            self.map -= &self.momentum * self.lr;
            numbers.to_kind(Kind::Double).unbind(0)
        })
    }

    /// Returns whether a step has updated the probe.
    pub fn has_learnt(&self) -> bool {
        self.map.count_nonzero(None).int64_value(&[]) > 0
    }

    /// Returns the fraction of labelled images whose own class has the highest score, over all processes, each of which
    /// has some of the features. Ties go to the lower class; a class without training images is never hit.
    ///
    /// # Errors
    /// If a collective fails.
    /// # Panics
    /// If the table's layer is not `pooled`.
    pub fn top1(&self, table: &FeatureTable, group: &ProcessGroup) -> Result<f64, DistributedError> {
        assert_eq!(table.meta.layer, "pooled", "the layer that the probe learns from");
        let labels = Tensor::from_slice(&indices(&table.labels));
        let features = Tensor::from_slice(&table.features).view([labels.size()[0], self.width()]);
        let features = with_one(&features.to_device(self.map.device()));
        let best = no_grad(|| features.matmul(&self.map.tr()).argmax(1, false)).to_device(Device::Cpu);
        let counts = [best.eq_tensor(&labels), labels.ge(0)].map(|flags| flags.sum(Kind::Int64));
        let counts = Tensor::stack(&counts, 0);
        group.all_reduce(&counts, Reduce::Sum)?;
        Ok(counts.int64_value(&[0]) as f64 / counts.int64_value(&[1]).max(1) as f64)
    }

    /// Returns the tensors of a checkpoint: `weight` and `bias` as in `torch.nn.Linear`, with their momentum.
    pub(super) fn tensors(&self) -> NamedTensors {
        NamedTensors::from_tensors(self.named())
    }

    /// Loads weights and momentum from a checkpoint.
    pub(super) fn load(&mut self, tensors: &NamedTensors) -> Result<(), WeightsError> {
        tensors.copy_into(self.named())
    }

    fn width(&self) -> i64 {
        self.map.size()[1] - 1
    }

    /// Returns views of weights and momentum, by name.
    fn named(&self) -> Vec<(String, Tensor)> {
        let views = |tensor: &Tensor, behind: &str| {
            let (weight, bias) = (tensor.narrow(1, 0, self.width()), tensor.select(1, self.width()));
            [(format!("weight{behind}"), weight), (format!("bias{behind}"), bias)]
        };
        let [map, momentum] = [views(&self.map, ""), views(&self.momentum, ".momentum")];
        map.into_iter().chain(momentum).collect()
    }
}

fn indices(labels: &[Option<ClassId>]) -> Vec<i64> {
    labels.iter().map(|label| label.map_or(NO_LABEL, |class| i64::from(class.0))).collect()
}

/// Appends a 1 to each feature, which multiplies the bias.
fn with_one(features: &Tensor) -> Tensor {
    let one = Tensor::ones([features.size()[0], 1], (Kind::Float, features.device()));
    Tensor::cat(&[features, &one], 1)
}

#[cfg(test)]
mod tests {
    use tch::Reduction;

    use super::*;
    use crate::run_config::TrainConfig;
    use crate::train::optim::Optimizer;

    const LABELS: [Option<ClassId>; 4] = [Some(ClassId(2)), None, Some(ClassId(0)), Some(ClassId(1))];

    fn probe() -> Probe {
        Probe::new(5, &LABELS, 0.3, Device::Cpu)
    }

    /// Returns the features of a batch, `[4, 5]`.
    fn features(number: i64) -> Tensor {
        (Tensor::arange(20, (Kind::Float, Device::Cpu)) * (number + 1)).sin().view([4, 5])
    }

    fn learn(probe: &mut Probe, number: i64) -> Vec<f64> {
        let sums = probe.sums(&features(number), &LABELS);
        probe.step(&sums).iter().map(|number| number.double_value(&[])).collect()
    }

    #[test]
    fn it_moves_as_sgd_does_on_the_mean_cross_entropy_of_labelled_images() {
        let zeros = |shape: &[i64]| Tensor::zeros(shape, (Kind::Float, Device::Cpu)).set_requires_grad(true);
        let (weight, bias) = (zeros(&[3, 5]), zeros(&[3]));
        let named = [("weight", &weight), ("bias", &bias)].map(|(name, t)| (name.into(), t.shallow_clone()));
        let config = TrainConfig { weight_decay: 0.0, ..TrainConfig::default() };
        let mut sgd = Optimizer::new(named.into(), &config);
        let mut probe = probe();
        assert!(!probe.has_learnt());
        for number in 0..4 {
            let logits = features(number).matmul(&weight.tr()) + &bias;
            let targets = Tensor::from_slice(&[2_i64, -100, 0, 1]);
            let loss = logits.cross_entropy_loss(&targets, None::<Tensor>, Reduction::Mean, -100, 0.0);
            sgd.drop_gradients();
            loss.backward();
            sgd.step(0.3, None);
            let measured = learn(&mut probe, number);
            let hits = logits.argmax(1, false).eq_tensor(&targets).sum(Kind::Double).double_value(&[]);
            assert!((measured[0] / 3.0 - loss.double_value(&[])).abs() < 1e-5, "{measured:?}");
            assert_eq!(measured[1..], [hits, 3.0]);
        }
        let tensors = probe.tensors();
        for (name, expected) in [("weight", weight), ("bias", bias)] {
            let off = (tensors.get(name).expect(name) - expected).abs().max().double_value(&[]);
            assert!(off < 1e-5, "{name}: {off}");
        }
        assert!(probe.has_learnt());
    }

    #[test]
    fn one_that_is_put_back_goes_on_with_the_same_bits_and_without_its_momentum_does_not() {
        let mut whole = probe();
        learn(&mut whole, 0);
        let kept = whole.tensors();
        learn(&mut whole, 1);
        let resumed = |kept: &NamedTensors| {
            let mut resumed = probe();
            resumed.load(kept).expect("its own file");
            learn(&mut resumed, 1);
            resumed.tensors().to_bytes()
        };
        assert!(resumed(&kept) == whole.tensors().to_bytes());
        let still = |(name, tensor): (&str, &Tensor)| {
            let tensor = if name.ends_with("momentum") { tensor.zeros_like() } else { tensor.copy() };
            (name.to_owned(), tensor)
        };
        assert!(resumed(&NamedTensors::from_tensors(kept.iter().map(still))) != whole.tensors().to_bytes());
    }
}
