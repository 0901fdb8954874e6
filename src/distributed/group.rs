//! The ranks as one group, what they do together, and small values that all of them see.

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

/// How values of all ranks become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reduce {
    /// Their sum; of bools whether any is true.
    Sum,
    /// The greatest.
    Max,
}

/// The ranks, as one of them sees them.
///
/// Collectives must be called by all ranks in the same order with tensors of the same shapes and kinds, by one
/// thread of each. They return when the result is there (on CUDA: when the current stream waits for it). After an
/// error the group cannot be used again: the process ends, and is started again with the others.
///
/// Tensors of the CPU travel by gloo, those of a CUDA device by NCCL. A rank that ends well calls
/// [`ProcessGroup::leave`] before.
#[derive(Debug)]
pub struct ProcessGroup {
    rank: usize,
    world: usize,
    // Before `joined`, so that rank 0's server outlives its own client.
    store: Store,
    joined: Option<Joined>,
}

impl ProcessGroup {
    /// The group of one rank: no store, no port, and every collective leaves things as they are.
    pub fn alone() -> Self {
        Self { rank: 0, world: 1, store: Store::in_memory(), joined: None }
    }

    /// Whether there are no other ranks to talk to, nor c10d's group of one.
    pub fn is_alone(&self) -> bool {
        self.joined.is_none()
    }

    /// Joins the other ranks. Rank 0 opens a store where the others look for it.
    ///
    /// `timeout` holds for the joining and then for each collective. `device`: the one whose tensors this rank's
    /// collectives will take, besides the CPU's.
    ///
    /// # Errors
    /// If a port is in use, ranks do not come (they are named), two are the same, NCCL is needed and cannot be
    /// used, or the libtorch loaded is not the one this was built for.
    pub fn join(
        rendezvous: &Rendezvous,
        device: Device,
        timeout: Duration,
    ) -> Result<Self, DistributedError> {
        Self::join_unless_stopped(rendezvous, device, timeout, &AtomicBool::new(false))
    }

    /// Likewise, until `stop` is set: then it gives up, and those who wait with it do too.
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

    /// As [`ProcessGroup::join`], for tensors of the CPU alone.
    ///
    /// # Errors
    /// As [`ProcessGroup::join`].
    pub fn join_on_host(rendezvous: &Rendezvous, timeout: Duration) -> Result<Self, DistributedError> {
        Self::join(rendezvous, Device::Cpu, timeout)
    }

    /// Meets the other ranks, which wait for this one, only to tell them that it ends with `error`, of this
    /// kind; they end likewise. Nothing with one rank.
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

    /// This rank's number.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// The number of ranks.
    pub fn world(&self) -> usize {
        self.world
    }

    /// Whether this is rank 0.
    pub fn is_first(&self) -> bool {
        self.rank == 0
    }

    /// Makes the tensor on every rank the sum or the greatest of all ranks' ones, in place.
    ///
    /// # Shape
    /// Any, the same on every rank; bool, i8, i16, i32, i64, u8, f16, bf16, f32 or f64.
    /// # Errors
    /// If a rank is lost or does not come in time.
    pub fn all_reduce(&self, tensor: &Tensor, how: Reduce) -> Result<(), DistributedError> {
        let op = match how {
            Reduce::Sum => 0,
            Reduce::Max => 1,
        };
        self.collective("all-reduce", |group| group.all_reduce(tensor, op)).map(|_| ())
    }

    /// Gives every rank rank `from`'s tensors, in place. They travel together, as bytes.
    ///
    /// # Shape
    /// Any mixture of shapes and kinds, the same on every rank.
    /// # Errors
    /// If a rank is lost or does not come in time.
    pub fn broadcast(&self, tensors: &[Tensor], from: usize) -> Result<(), DistributedError> {
        self.collective("broadcast", |group| group.broadcast(tensors, from)).map(|_| ())
    }

    /// The ranks' tensors one below the other, by rank.
    ///
    /// # Shape
    /// `own: [n, ...]` -> `[world * n, ...]`, any kind.
    /// # Errors
    /// If a rank is lost or does not come in time.
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

    /// The sum over the ranks, through which gradients flow: each rank's gradient is the sum of those that arrive
    /// at the ranks' sums.
    ///
    /// # Shape
    /// Any -> the same; a floating kind.
    /// # Errors
    /// If a rank is lost or does not come in time. The backward pass has its own errors.
    pub fn sum_with_gradient(&self, tensor: &Tensor) -> Result<Tensor, DistributedError> {
        let sum = self.collective("sum", |group| group.sum_with_gradient(tensor))?;
        Ok(sum.unwrap_or_else(|| tensor.shallow_clone()))
    }

    /// Batch norm in training over the images of all ranks, by libtorch's own CUDA kernels; autograd goes through it.
    /// The gradients of weight and bias are those of this rank's images.
    ///
    /// # Shape
    /// `input: [batch, channels, height, width]` of any float type, on CUDA -> the same; a rank's batch may be empty.
    /// All ranks together need two values of a channel. `parameters: [channels]` f32 each: weight, bias,
    /// running mean and running variance, of which the last two move.
    /// # Errors
    /// If the input is elsewhere, a rank is lost or does not come in time. The backward pass has its own errors.
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

    /// Every rank's bytes, by rank. Their lengths may differ.
    ///
    /// # Errors
    /// If a rank is lost or does not come in time.
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

    /// Checks that all ranks have the same value of what is named.
    ///
    /// # Errors
    /// On every rank the same, with the first rank that differs from rank 0 and both values.
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

    /// Calls `then` if ranks are lost and this group is still there `grace` later: for a rank that is blocked where
    /// no error can reach it, as in a device's queue behind a collective that never ends. Another
    /// thread calls it, once; all it can do is end the process.
    pub fn when_lost(&self, grace: Duration, then: impl FnOnce(DistributedError) + Send + 'static) {
        if let Some(joined) = &self.joined {
            joined.watch().when_lost(grace, then);
        }
    }

    /// This rank has done its work, and so have the others: its end will not alarm them. A rank that ends without is
    /// lost to the others, whatever its reason.
    pub fn leave(&self) {
        if let Some(joined) = &self.joined {
            joined.watch().leave();
        }
    }

    /// This rank is about to end with its own error: the others end with the same kind of failure, so that
    /// their exit codes tell whether to start them again.
    pub fn fail(&self, failure: Failure) {
        if let Some(joined) = &self.joined {
            joined.watch().fail(failure);
        }
    }

    /// The group's store of small values, for any thread.
    pub fn store(&self) -> Store {
        self.store.clone()
    }

    /// Runs a collective and explains its error; nothing with one rank.
    fn collective<T>(
        &self,
        what: &str,
        body: impl FnOnce(&ffi::Group) -> Result<T, ffi::Message>,
    ) -> Result<Option<T>, DistributedError> {
        self.joined.as_ref().map(|joined| joined.collective(what, body)).transpose()
    }
}

/// A handle to the group's store of keys and values.
///
/// Its connection is not the one that collectives use, so that any thread may use it while another is in a
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

/// Between two looks for a key.
const LOOK: Duration = Duration::from_millis(10);

impl Store {
    pub(super) fn in_memory() -> Self {
        Self { backing: Arc::new(Backing::Memory(Mutex::default())) }
    }

    pub(super) fn of_client(client: ffi::Store, prefix: &str, watch: &Arc<Watch>) -> Self {
        let prefix = format!("{prefix}user/");
        Self { backing: Arc::new(Backing::Client { client, prefix, watch: Arc::downgrade(watch) }) }
    }

    /// Gives the key this value.
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

    /// Whether ranks are known to be lost, without waiting.
    ///
    /// # Errors
    /// If ranks are lost.
    pub fn check(&self) -> Result<(), DistributedError> {
        match &*self.backing {
            Backing::Client { watch, .. } => watch.upgrade().map_or(Ok(()), |watch| watch.check()),
            Backing::Memory(_) => Ok(()),
        }
    }

    /// The key's value as soon as it has one, however long that takes: what another rank does may take its time,
    /// and the watcher finds out if it is lost.
    ///
    /// # Errors
    /// If ranks are lost meanwhile.
    pub fn wait_for(&self, key: &str) -> Result<Vec<u8>, DistributedError> {
        loop {
            if let Some(value) = self.try_get(key)? {
                return Ok(value);
            }
            self.check()?;
            // Not within the client, whose lock would keep other threads out.
            std::thread::sleep(LOOK);
        }
    }

    /// The key's value, if it has one.
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

/// Runs backward passes after which gradients are the mean over the ranks, by c10d's Reducer: gradients are sent in
/// buckets of up to 25 MB while the rest of the backward pass still runs.
///
/// It holds the parameters, and buckets as large as their gradients. Their order must be the same on every rank.
/// Every parameter must get a gradient in every last backward pass; one that does not is an error at once, on the
/// ranks where it is so. Looking for such parameters would walk through the whole graph in every step.
#[derive(Debug)]
pub struct GradientReducer {
    several: Option<(ffi::Reducer, Arc<Watch>)>,
}

impl GradientReducer {
    /// Makes it for these parameters, which require gradients. They are not made equal: broadcast them before.
    ///
    /// # Errors
    /// If ranks have other parameters (by number, shape or kind), a rank is lost or does not come in time.
    pub fn new(group: &ProcessGroup, parameters: &[Tensor]) -> Result<Self, DistributedError> {
        let Some(joined) = &group.joined else {
            return Ok(Self { several: None });
        };
        let compare = |handle: &ffi::Group| ffi::Reducer::new(handle, parameters);
        let reducer = joined.collective("comparing the ranks' parameters", compare)?;
        Ok(Self { several: Some((reducer, joined.watch().clone())) })
    }

    /// The backward pass of a loss. With `last` false gradients add up where they are, and nothing is sent; with
    /// true they become the mean over the ranks, of what has added up since the last one.
    ///
    /// # Shape
    /// `loss`: a scalar.
    /// # Errors
    /// If a parameter gets no gradient, a rank is lost or does not come in time.
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
