//! The ranks as one group: collectives, and small values that all ranks see.

use std::collections::BTreeMap;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use tch::{Device, Tensor};

use super::first_line;
use super::join::{Joined, join, meet_and_fail};
use super::watch::Watch;
use super::{DistributedError, Rendezvous, ffi};
use crate::failure::Failure;

/// Reduction of all ranks' values to one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduce {
    /// Sum; for bools, whether any is true.
    Sum,
    /// Maximum.
    Max,
}

/// Group of all ranks, as seen by one of them.
///
/// All ranks must call collectives in the same order with tensors of the same shapes and kinds, each from one
/// thread. A collective returns when its result is available (on CUDA: when the current stream waits for it).
/// After an error the group is unusable: the process must end and restart with the others.
///
/// CPU tensors are exchanged by gloo, those of a CUDA device by NCCL. A rank that ends normally calls
/// [`ProcessGroup::leave`] first.
#[derive(Debug)]
pub struct ProcessGroup {
    rank: usize,
    world: usize,
    // Before `joined`, so that rank 0's server outlives its own client.
    store: Store,
    joined: Option<Joined>,
}

impl ProcessGroup {
    /// Creates the group of a single rank, without store or port; its collectives change nothing.
    pub fn alone() -> Self {
        Self { rank: 0, world: 1, store: Store::in_memory(), joined: None }
    }

    /// Returns whether the group has neither other ranks nor a c10d group of one.
    pub fn is_alone(&self) -> bool {
        self.joined.is_none()
    }

    /// Joins the other ranks. Rank 0 opens the store at the meeting point.
    ///
    /// `timeout` limits the joining and then each collective. `device`: device of this rank's tensors, besides the CPU.
    ///
    /// # Errors
    /// If a port is in use, ranks are missing (the error names them), two ranks are equal, NCCL is needed but
    /// unusable, or the loaded libtorch is not the version that this program was built for.
    pub fn join(
        rendezvous: &Rendezvous,
        device: Device,
        timeout: Duration,
    ) -> Result<Self, DistributedError> {
        Self::join_unless_stopped(rendezvous, device, timeout, &AtomicBool::new(false))
    }

    /// Joins the other ranks, until `stop` is set; then this rank and all that wait with it give up.
    ///
    /// # Errors
    /// As [`ProcessGroup::join`], and if it was stopped.
    pub fn join_unless_stopped(
        rendezvous: &Rendezvous,
        device: Device,
        timeout: Duration,
        stop: &AtomicBool,
    ) -> Result<Self, DistributedError> {
        let Some(meeting) = rendezvous.meeting() else {
            return Ok(Self::alone());
        };
        let (joined, store) = join(rendezvous, meeting, device, timeout, stop)?;
        Ok(Self { rank: rendezvous.rank(), world: rendezvous.world(), store, joined: Some(joined) })
    }

    /// Joins the other ranks, for CPU tensors alone.
    ///
    /// # Errors
    /// As [`ProcessGroup::join`].
    pub fn join_on_host(rendezvous: &Rendezvous, timeout: Duration) -> Result<Self, DistributedError> {
        Self::join(rendezvous, Device::Cpu, timeout)
    }

    /// Joins the waiting ranks only to report that this rank ends with `error`, a failure of this kind; they
    /// end too. Does nothing with one rank.
    pub fn fail_before_joining(
        rendezvous: &Rendezvous,
        timeout: Duration,
        stop: &AtomicBool,
        failure: Failure,
        error: &str,
    ) {
        let Some(meeting) = rendezvous.meeting() else { return };
        tracing::warn!("{error}: the other processes hear of it when they come");
        if let Err(error) = meet_and_fail(rendezvous, meeting, timeout, stop, failure) {
            tracing::debug!("the other processes were not told: {error}");
        }
    }

    /// Returns this rank's number.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Returns the number of ranks.
    pub fn world(&self) -> usize {
        self.world
    }

    /// Returns whether this is rank 0.
    pub fn is_first(&self) -> bool {
        self.rank == 0
    }

    /// Replaces the tensor on every rank by the sum or maximum over all ranks, in place.
    ///
    /// # Shape
    /// Any, the same on every rank; bool, i8, i16, i32, i64, u8, f16, bf16, f32 or f64.
    /// # Errors
    /// If a rank is lost or late.
    pub fn all_reduce(&self, tensor: &Tensor, how: Reduce) -> Result<(), DistributedError> {
        let op = match how {
            Reduce::Sum => 0,
            Reduce::Max => 1,
        };
        self.collective("all-reduce", |group| group.all_reduce(tensor, op)).map(|_| ())
    }

    /// Copies rank `from`'s tensors to every rank, in place. All tensors are sent together, as bytes.
    ///
    /// # Shape
    /// Any mixture of shapes and kinds, equal on every rank.
    /// # Errors
    /// If a rank is lost or late.
    pub fn broadcast(&self, tensors: &[Tensor], from: usize) -> Result<(), DistributedError> {
        self.collective("broadcast", |group| group.broadcast(tensors, from)).map(|_| ())
    }

    /// Concatenates the ranks' tensors, ordered by rank.
    ///
    /// # Shape
    /// `own: [n, ...]` -> `[world * n, ...]`, any kind.
    /// # Errors
    /// If a rank is lost or late.
    pub fn all_gather(&self, own: &Tensor) -> Result<Tensor, DistributedError> {
        let mut shape = own.size();
        if let Some(rows) = shape.first_mut() {
            *rows *= self.world as i64;
        }
        let gather = |group: &ffi::Group| {
            let all = Tensor::empty(&shape, (own.kind(), own.device()));
            group.all_gather(&all, own).map(|()| all)
        };
        let all = self.collective("all-gather", gather)?;
        Ok(all.unwrap_or_else(|| own.detach().copy()))
    }

    /// Sums over the ranks, with gradients: each rank's gradient is the sum of the gradients of all ranks' sums.
    ///
    /// # Shape
    /// Any -> the same; a floating kind.
    /// # Errors
    /// If a rank is lost or late. The backward pass has its own errors.
    pub fn sum_with_gradient(&self, tensor: &Tensor) -> Result<Tensor, DistributedError> {
        let sum = self.collective("sum", |group| group.sum_with_gradient(tensor))?;
        Ok(sum.unwrap_or_else(|| tensor.shallow_clone()))
    }

    /// Computes batch norm in training over the images of all ranks, with libtorch's CUDA kernels and
    /// autograd. Gradients of weight and bias are those of this rank's images.
    ///
    /// # Shape
    /// `input: [batch, channels, height, width]` of any float type, on CUDA -> the same; a rank's batch may
    /// be empty. All ranks together need two values of a channel. `parameters: [channels]` f32 each: weight,
    /// bias, running mean and running variance; the last two are updated.
    /// # Errors
    /// If the input is not on CUDA, or a rank is lost or late. The backward pass has its own errors.
    /// # Source
    /// PyTorch's `SyncBatchNorm`.
    pub fn batch_norm(
        &self,
        input: &Tensor,
        parameters: [&Tensor; 4],
        momentum: f64,
        eps: f64,
    ) -> Result<Tensor, DistributedError> {
        let of = |group: Option<&ffi::Group>| ffi::batch_norm(group, input, parameters, (momentum, eps));
        match self.collective("batch norm", |group| of(Some(group)))? {
            Some(output) => Ok(output),
            None => of(None).map_err(|message| DistributedError::Backend {
                what: "batch norm".into(),
                message: first_line(&message),
            }),
        }
    }

    /// Gathers every rank's bytes, ordered by rank. Lengths may differ.
    ///
    /// # Errors
    /// If a rank is lost or late.
    pub fn gather_bytes(&self, own: &[u8]) -> Result<Vec<Vec<u8>>, DistributedError> {
        let lens = self.all_gather(&Tensor::from_slice(&[own.len() as i64]))?;
        let lens = Vec::<i64>::try_from(&lens).expect("a vector of i64 on the CPU");
        let longest = lens.iter().copied().max().unwrap_or(0);
        let mut padded = own.to_vec();
        padded.resize(longest as usize, 0);
        let all = self.all_gather(&Tensor::from_slice(&padded))?;
        let all = Vec::<u8>::try_from(&all).expect("a vector of u8 on the CPU");
        let of_rank = |rank: usize| {
            let begin = rank * longest as usize;
            all[begin..begin + lens[rank] as usize].to_vec()
        };
        Ok((0..self.world).map(of_rank).collect())
    }

    /// Checks that all ranks have the same value; `what` names it in the error.
    ///
    /// # Errors
    /// If a value differs: the same error on every rank, with the first rank that differs from rank 0 and both values.
    pub fn agree(&self, what: &str, value: &str) -> Result<(), DistributedError> {
        let values = self.gather_bytes(value.as_bytes())?;
        let text = |rank: usize| String::from_utf8_lossy(&values[rank]).into_owned();
        match (0..self.world).find(|rank| values[*rank] != values[0]) {
            None => Ok(()),
            Some(rank) => Err(DistributedError::Disagreement {
                what: what.to_owned(),
                rank,
                theirs: text(rank),
                first: text(0),
            }),
        }
    }

    /// Calls `then` if ranks are lost and this group still exists `grace` later. It is for a rank that no
    /// error can reach, such as one blocked behind a collective in a device's queue. Another thread calls
    /// `then` once; it can only end the process.
    pub fn when_lost(&self, grace: Duration, then: impl FnOnce(DistributedError) + Send + 'static) {
        if let Some(joined) = &self.joined {
            joined.watch().when_lost(grace, then);
        }
    }

    /// Marks this rank as done, so that its end alarms no other rank. A rank that ends without this call
    /// counts as lost.
    pub fn leave(&self) {
        if let Some(joined) = &self.joined {
            joined.watch().leave();
        }
    }

    /// Reports that this rank is about to end with its own error. The others end with the same kind of
    /// failure, so that their exit codes tell whether a restart helps.
    pub fn fail(&self, failure: Failure) {
        if let Some(joined) = &self.joined {
            joined.watch().fail(failure);
        }
    }

    /// Returns the group's store of small values, for any thread.
    pub fn store(&self) -> Store {
        self.store.clone()
    }

    /// Runs a collective and explains its error; does nothing with one rank.
    fn collective<T>(
        &self,
        what: &str,
        body: impl FnOnce(&ffi::Group) -> Result<T, ffi::Message>,
    ) -> Result<Option<T>, DistributedError> {
        self.joined.as_ref().map(|joined| joined.collective(what, body)).transpose()
    }
}

/// Handle to the group's key-value store.
///
/// The store's connection is separate from the collectives', so any thread may use it while another is in a
/// collective. With one rank it is a map in memory. The store lives as long as rank 0's group.
#[derive(Clone, Debug)]
pub struct Store {
    backing: Arc<Backing>,
}

#[derive(Debug)]
enum Backing {
    Memory(Mutex<BTreeMap<String, Vec<u8>>>),
    Client { client: ffi::Store, prefix: String, watch: Weak<Watch> },
}

/// Pause between two looks for a key.
const LOOK: Duration = Duration::from_millis(10);

impl Store {
    pub(super) fn in_memory() -> Self {
        Self { backing: Arc::new(Backing::Memory(Mutex::default())) }
    }

    pub(super) fn of_client(client: ffi::Store, prefix: &str, watch: &Arc<Watch>) -> Self {
        let prefix = format!("{prefix}user/");
        Self { backing: Arc::new(Backing::Client { client, prefix, watch: Arc::downgrade(watch) }) }
    }

    /// Sets the value of a key.
    ///
    /// # Errors
    /// If rank 0 is lost.
    pub fn set(&self, key: &str, value: &[u8]) -> Result<(), DistributedError> {
        match &*self.backing {
            Backing::Memory(map) => {
                locked(map).insert(key.to_owned(), value.to_owned());
                Ok(())
            }
            Backing::Client { client, prefix, .. } => {
                client.set(&(prefix.clone() + key), value).map_err(|message| self.failed(key, &message))
            }
        }
    }

    /// Fails if ranks are known to be lost, without waiting.
    ///
    /// # Errors
    /// If ranks are lost.
    pub fn check(&self) -> Result<(), DistributedError> {
        match &*self.backing {
            Backing::Client { watch, .. } => watch.upgrade().map_or(Ok(()), |watch| watch.check()),
            Backing::Memory(_) => Ok(()),
        }
    }

    /// Waits for a key's value without a time limit. Another rank may need long to set it; if that rank is
    /// lost, the watcher notices.
    ///
    /// # Errors
    /// If ranks are lost meanwhile.
    pub fn wait_for(&self, key: &str) -> Result<Vec<u8>, DistributedError> {
        loop {
            if let Some(value) = self.try_get(key)? {
                return Ok(value);
            }
            self.check()?;
            // Not within the client, whose lock would block other threads.
            std::thread::sleep(LOOK);
        }
    }

    /// Returns the value of a key, if set.
    ///
    /// # Errors
    /// If rank 0 is lost.
    pub fn try_get(&self, key: &str) -> Result<Option<Vec<u8>>, DistributedError> {
        match &*self.backing {
            Backing::Memory(map) => Ok(locked(map).get(key).cloned()),
            Backing::Client { client, prefix, .. } => {
                client.try_get(&(prefix.clone() + key)).map_err(|message| self.failed(key, &message))
            }
        }
    }

    fn failed(&self, key: &str, message: &str) -> DistributedError {
        let what = format!("the store's key {key:?}");
        if let Backing::Client { watch, .. } = &*self.backing
            && let Some(watch) = watch.upgrade()
        {
            return watch.explain(&what, 0, message);
        }
        DistributedError::Backend { what, message: message.to_owned() }
    }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Backward passes that average gradients over the ranks, by c10d's Reducer: buckets of up to 25 MB are sent
/// while the backward pass still runs.
///
/// Holds the parameters, and buckets as large as their gradients. All ranks must have the same order. Each
/// parameter must get a gradient in every last backward pass; otherwise the ranks that miss one fail at
/// once. Searching for such parameters would walk the whole graph in every step.
#[derive(Debug)]
pub struct GradientReducer {
    several: Option<(ffi::Reducer, Arc<Watch>)>,
}

impl GradientReducer {
    /// Creates a reducer for these parameters, which require gradients. It does not equalise them: broadcast first.
    ///
    /// # Errors
    /// If ranks have other parameters (by number, shape or kind), or a rank is lost or late.
    pub fn new(group: &ProcessGroup, parameters: &[Tensor]) -> Result<Self, DistributedError> {
        let Some(joined) = &group.joined else {
            return Ok(Self { several: None });
        };
        let compare = |handle: &ffi::Group| ffi::Reducer::new(handle, parameters);
        let reducer = joined.collective("comparing the ranks' parameters", compare)?;
        Ok(Self { several: Some((reducer, joined.watch().clone())) })
    }

    /// Runs the backward pass of a loss. With `last` false, gradients accumulate locally. With true, the
    /// gradients accumulated since the previous last pass become the mean over the ranks.
    ///
    /// # Shape
    /// `loss`: a scalar.
    /// # Errors
    /// If a parameter gets no gradient, or a rank is lost or late.
    pub fn backward(&self, loss: &Tensor, last: bool) -> Result<(), DistributedError> {
        let Some((reducer, watch)) = &self.several else {
            return loss.f_backward().map_err(|error| DistributedError::Backend {
                what: "backward".into(),
                message: first_line(&error.to_string()),
            });
        };
        watch.check()?;
        let number = if last { watch.begin() } else { 0 };
        reducer.backward(loss, last).map_err(|message| watch.explain("backward", number, &message))
    }
}
