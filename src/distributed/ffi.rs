//! Safe Rust bindings of the C functions in `shim/`; the only file of this module with unsafe code.
//!
//! A handle owns its C++ object. The C++ side catches every exception and keeps no pointer that it is given
//! (tensors are counted references there). It reports a failure as 1, with a message for the calling thread.

#![expect(
    unsafe_code,
    reason = "C++ is reached through C functions; all of them are declared and called here"
)]

use std::ffi::{CStr, CString, c_char, c_void};
use std::os::fd::{IntoRawFd, OwnedFd};
use std::ptr::{NonNull, null, null_mut};
use std::time::Duration;

use libloading::os::unix::{Library, Symbol};
use tch::Tensor;
use torch_sys::C_tensor;

/// Message of a C++ exception.
pub(super) type Message = String;

unsafe extern "C" {
    fn dist_last_error() -> *const c_char;
    fn dist_prepare() -> i32;
    fn dist_end_process(code: i32) -> !;
    fn dist_store_new(
        host: *const c_char,
        port: u16,
        listening: i32,
        timeout_ms: i64,
        out: *mut *mut c_void,
    ) -> i32;
    fn dist_store_free(store: *mut c_void);
    fn dist_store_set(store: *mut c_void, key: *const c_char, bytes: *const u8, len: usize) -> i32;
    fn dist_store_try_get(
        store: *mut c_void,
        key: *const c_char,
        bytes: *mut *mut u8,
        len: *mut usize,
    ) -> i32;
    fn dist_bytes_free(bytes: *mut u8);
    fn dist_store_add(store: *mut c_void, key: *const c_char, by: i64, sum: *mut i64) -> i32;
    fn dist_group_new(
        store: *mut c_void,
        prefix: *const c_char,
        rank: i32,
        world: i32,
        timeout_ms: i64,
        address: *const c_char,
        cuda_device: i32,
        make_nccl: *const c_void,
        out: *mut *mut c_void,
    ) -> i32;
    fn dist_group_free(group: *mut c_void);
    fn dist_all_reduce(group: *mut c_void, tensor: *const C_tensor, op: i32) -> i32;
    fn dist_broadcast(group: *mut c_void, tensors: *const *const C_tensor, count: usize, from: i32) -> i32;
    fn dist_all_gather(group: *mut c_void, all: *const C_tensor, own: *const C_tensor) -> i32;
    fn dist_sum_with_gradient(group: *mut c_void, own: *const C_tensor, sum: *mut *mut C_tensor) -> i32;
    fn dist_batch_norm(
        group: *const c_void,
        input: *const C_tensor,
        parameters: *const *const C_tensor,
        momentum: f64,
        eps: f64,
        out: *mut *mut C_tensor,
    ) -> i32;
    #[cfg(test)]
    fn dist_emulate_kernels() -> i32;
    fn dist_reducer_new(
        group: *mut c_void,
        parameters: *const *const C_tensor,
        count: usize,
        out: *mut *mut c_void,
    ) -> i32;
    fn dist_reducer_free(reducer: *mut c_void);
    fn dist_reducer_backward(reducer: *mut c_void, loss: *const C_tensor, last: i32) -> i32;
}

fn done(code: i32) -> Result<(), Message> {
    if code == 0 {
        return Ok(());
    }
    // SAFETY: the message lives until this thread's next call into the shim, and is copied before.
    let message = unsafe { CStr::from_ptr(dist_last_error()) };
    Err(message.to_string_lossy().into_owned())
}

fn text(text: &str) -> Result<CString, Message> {
    CString::new(text).map_err(|_| format!("{text:?} holds a zero byte"))
}

fn milliseconds(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// Owned object of the shim, freed on drop.
#[derive(Debug)]
struct Handle {
    object: NonNull<c_void>,
    free: unsafe extern "C" fn(*mut c_void),
}

impl Handle {
    /// Takes ownership of an object. `free` is the function for objects of its kind, and nothing else frees it.
    fn new(object: *mut c_void, free: unsafe extern "C" fn(*mut c_void)) -> Result<Self, Message> {
        let object = NonNull::new(object).ok_or_else(|| "the shim gave no object".to_owned())?;
        Ok(Self { object, free })
    }

    fn get(&self) -> *mut c_void {
        self.object.as_ptr()
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        // SAFETY: made by the shim with this function to free it, freed once. Objects that depend on it (a group on its
        // store, a reducer on its group, a graph on its memory) count their own reference.
        unsafe { (self.free)(self.object.as_ptr()) }
    }
}

/// Ends the process at once, without the exit handlers of libraries. They would never return in a process that is
/// blocked in a device's queue behind a lost rank.
pub fn end_process(code: u8) -> ! {
    // SAFETY: takes a number and does not return.
    unsafe { dist_end_process(code.into()) }
}

/// Fails if the loaded libtorch is not the version that this program was built for.
pub(super) fn prepare() -> Result<(), Message> {
    // SAFETY: takes nothing; sets a flag of libtorch's logging, which every caller sets to the same value,
    // and once a variable of the environment.
    done(unsafe { dist_prepare() })
}

/// Client of a TCPStore, which may also serve it.
#[derive(Debug)]
pub(super) struct Store(Handle);

// SAFETY: TCPStore holds a lock during each operation; the object is bound to no thread.
unsafe impl Send for Store {}
// SAFETY: as above.
unsafe impl Sync for Store {}

impl Store {
    /// Opens a client; with `listening`, a bound socket, this store also serves.
    pub(super) fn open(
        host: &str,
        port: u16,
        listening: Option<OwnedFd>,
        timeout: Duration,
    ) -> Result<Self, Message> {
        let host = text(host)?;
        let listening = listening.map_or(-1, IntoRawFd::into_raw_fd);
        let mut out = null_mut();
        // SAFETY: the texts and `out` live through the call; the shim takes ownership of the socket.
        let code = unsafe { dist_store_new(host.as_ptr(), port, listening, milliseconds(timeout), &mut out) };
        done(code)?;
        Ok(Self(Handle::new(out, dist_store_free)?))
    }

    pub(super) fn set(&self, key: &str, value: &[u8]) -> Result<(), Message> {
        let key = text(key)?;
        // SAFETY: the handle is valid until dropped; pointer and length belong to one slice, which is copied.
        done(unsafe { dist_store_set(self.0.get(), key.as_ptr(), value.as_ptr(), value.len()) })
    }

    pub(super) fn try_get(&self, key: &str) -> Result<Option<Vec<u8>>, Message> {
        let key = text(key)?;
        let (mut bytes, mut len) = (null_mut(), 0);
        // SAFETY: the handle is valid; the results are written before the call returns 0.
        done(unsafe { dist_store_try_get(self.0.get(), key.as_ptr(), &mut bytes, &mut len) })?;
        if bytes.is_null() {
            return Ok(None);
        }
        // SAFETY: the shim allocated at least `len` bytes there and passes their ownership.
        let value = unsafe { std::slice::from_raw_parts(bytes, len) }.to_vec();
        // SAFETY: allocated by the shim, freed once.
        unsafe { dist_bytes_free(bytes) };
        Ok(Some(value))
    }

    pub(super) fn add(&self, key: &str, by: i64) -> Result<i64, Message> {
        let key = text(key)?;
        let mut sum = 0;
        // SAFETY: the handle is valid; `sum` lives through the call.
        done(unsafe { dist_store_add(self.0.get(), key.as_ptr(), by, &mut sum) })?;
        Ok(sum)
    }
}

/// Loader of NCCL for one device.
#[derive(Clone, Copy, Debug)]
pub(super) struct Nccl {
    device: i32,
    make: *const c_void,
    set_device: unsafe extern "C" fn(i32, *mut c_char, usize) -> i32,
}

// SAFETY: two functions of a library that is never unloaded.
unsafe impl Send for Nccl {}

impl Nccl {
    /// Makes the device current for the calling thread; NCCL's streams are taken from it.
    pub(super) fn make_current(&self) -> Result<(), Message> {
        // SAFETY: a function of this type in a library that stays loaded; it writes at most the given length.
        done_there(|message, capacity| unsafe { (self.set_device)(self.device, message, capacity) })
    }

    /// Loads the CUDA part.
    pub(super) fn load(device: usize) -> Result<Self, Message> {
        let library = cuda_part()?;
        let device = i32::try_from(device).map_err(|error| error.to_string())?;
        // SAFETY: cuda.cpp defines both with these types.
        unsafe {
            let make: *const c_void = entry(library, "dist_nccl_new")?;
            Ok(Self { device, make, set_device: entry(library, "dist_nccl_set_device")? })
        }
    }
}

/// Loads the CUDA part: a library embedded in the program (see build.rs). It is loaded after libtorch_cuda,
/// whose functions it calls, and never unloaded.
#[cfg(feature = "nccl")]
fn cuda_part() -> Result<&'static Library, Message> {
    use libloading::os::unix::{RTLD_LOCAL, RTLD_NOW};
    use rustix::fs::{MemfdFlags, memfd_create};
    use std::io::Write;
    use std::os::fd::AsRawFd;
    use std::sync::OnceLock;

    static PART: &[u8] = include_bytes!(env!("INSTDISC_CUDA_PART"));
    static LOADED: OnceLock<Result<Library, String>> = OnceLock::new();
    let load = || {
        // SAFETY: libtorch_cuda's initialisers register its kernels with the libtorch_cpu that this program
        // is linked to; the library is never unloaded.
        let cuda = unsafe { Library::open(Some("libtorch_cuda.so"), RTLD_NOW | RTLD_LOCAL) };
        std::mem::forget(cuda.map_err(|error| format!("libtorch_cuda.so cannot be loaded: {error}"))?);
        let unwritten = |error: std::io::Error| format!("the CUDA part cannot be put into memory: {error}");
        // Not a file in /tmp, which may be mounted without execution.
        let memory = memfd_create("instdisc_cuda", MemfdFlags::CLOEXEC);
        let mut file = std::fs::File::from(memory.map_err(|error| unwritten(error.into()))?);
        file.write_all(PART).map_err(unwritten)?;
        let path = format!("/proc/self/fd/{}", file.as_raw_fd());
        // SAFETY: our own library; it has no initialisers except those of libtorch's headers. With RTLD_NOW a
        // function that this libtorch lacks is an error that names it.
        unsafe { Library::open(Some(path), RTLD_NOW | RTLD_LOCAL) }
            .map_err(|error| format!("the CUDA part cannot be loaded: {error}"))
    };
    LOADED.get_or_init(load).as_ref().map_err(Clone::clone)
}

/// Fails, as this program has no CUDA part.
#[cfg(not(feature = "nccl"))]
fn cuda_part() -> Result<&'static Library, Message> {
    Err("this program was built without the cargo feature nccl".into())
}

/// Finds a function of the CUDA part.
///
/// # Safety
/// `F` must be the type of a pointer to the function with this name.
unsafe fn entry<F: Copy>(library: &'static Library, name: &str) -> Result<F, Message> {
    // SAFETY: the caller answers for the type; the library stays loaded, and so does its function.
    let symbol: Symbol<F> = unsafe { library.get(name.as_bytes()) }.map_err(|error| error.to_string())?;
    Ok(*symbol)
}

/// Calls into the CUDA part, which writes a failure's message into memory of the given length.
fn done_there(call: impl FnOnce(*mut c_char, usize) -> i32) -> Result<(), Message> {
    let mut message = [0u8; 1024];
    if call(message.as_mut_ptr().cast(), message.len()) == 0 {
        return Ok(());
    }
    let text = CStr::from_bytes_until_nul(&message).unwrap_or_default();
    Err(text.to_string_lossy().into_owned())
}

/// Function that takes a handle and reports failures.
type OfHandle = unsafe extern "C" fn(*mut c_void, *mut c_char, usize) -> i32;

/// Graph functions of cuda.cpp.
#[derive(Clone, Copy, Debug)]
struct GraphFunctions {
    begin: unsafe extern "C" fn(*const c_void, *mut *mut c_void, *mut c_char, usize) -> i32,
    end: OfHandle,
    replay: OfHandle,
    free: unsafe extern "C" fn(*mut c_void),
}

/// Recorder of a CUDA device's work as graphs. They share memory, so they must be replayed in the order of
/// their recording.
#[derive(Debug)]
pub struct GraphRecorder {
    handle: Handle,
    functions: GraphFunctions,
}

/// Recorded work of a CUDA device, which replays at the same addresses.
#[derive(Debug)]
pub struct CudaGraph {
    handle: Handle,
    replay: OfHandle,
}

impl GraphRecorder {
    /// Creates a recorder for the CUDA device with this number, which becomes the thread's current device.
    ///
    /// # Errors
    /// If the program or the machine has no CUDA, with libtorch's message.
    pub fn new(device: usize) -> Result<Self, String> {
        type New = unsafe extern "C" fn(i32, *mut *mut c_void, *mut c_char, usize) -> i32;
        prepare()?;
        let library = cuda_part()?;
        let device = i32::try_from(device).map_err(|error| error.to_string())?;
        // SAFETY: cuda.cpp defines all of them with these types.
        let (new, free, functions) = unsafe {
            let functions = GraphFunctions {
                begin: entry(library, "dist_graph_begin")?,
                end: entry(library, "dist_graph_end")?,
                replay: entry(library, "dist_graph_replay")?,
                free: entry(library, "dist_graph_free")?,
            };
            (entry::<New>(library, "dist_recorder_new")?, entry(library, "dist_recorder_free")?, functions)
        };
        let mut out = null_mut();
        // SAFETY: `out` and the message live through the call.
        done_there(|message, capacity| unsafe { new(device, &mut out, message, capacity) })?;
        Ok(Self { handle: Handle::new(out, free)?, functions })
    }

    /// Records the work that `work` queues on the device, without running it. Tensors that it creates keep
    /// their addresses while they live; all other tensors that it uses must live as long as the graph. `work`
    /// must return its failure: a panic would not end the recording.
    ///
    /// # Errors
    /// If the work fails, with its message, or cannot be recorded, with libtorch's.
    pub fn record<T>(&self, work: impl FnOnce() -> Result<T, String>) -> Result<(CudaGraph, T), String> {
        let GraphFunctions { begin, end, replay, free } = self.functions;
        let mut out = null_mut();
        // SAFETY: the handle is valid; `out` and the message live through the call.
        done_there(|message, capacity| unsafe { begin(self.handle.get(), &mut out, message, capacity) })?;
        let graph = CudaGraph { handle: Handle::new(out, free)?, replay };
        let made = work();
        // End the recording even if the work failed, so that the thread's operators run again.
        let ended = graph.call(end);
        let made = made?;
        ended?;
        Ok((graph, made))
    }
}

impl CudaGraph {
    /// Queues the recorded work again in the thread's current stream.
    ///
    /// # Errors
    /// If the replay fails, with libtorch's message.
    pub fn replay(&self) -> Result<(), String> {
        self.call(self.replay)
    }

    fn call(&self, function: OfHandle) -> Result<(), Message> {
        // SAFETY: the handle is valid; the message lives through the call.
        done_there(|message, capacity| unsafe { function(self.handle.get(), message, capacity) })
    }
}

/// Options and parts of a group.
#[derive(Debug)]
pub(super) struct GroupParts<'a> {
    pub store: &'a Store,
    pub prefix: &'a str,
    pub rank: usize,
    pub world: usize,
    pub timeout: Duration,
    /// Address that gloo listens on; `None` for c10d's choice.
    pub address: Option<&'a str>,
    pub nccl: Option<Nccl>,
}

/// Process group of c10d with its backends.
#[derive(Debug)]
pub(super) struct Group(Handle);

// SAFETY: the object is bound to no thread; without Sync, one thread at a time uses it.
unsafe impl Send for Group {}

impl Group {
    pub(super) fn new(parts: &GroupParts<'_>) -> Result<Self, Message> {
        let prefix = text(parts.prefix)?;
        let address = parts.address.map(text).transpose()?;
        let rank = |number: usize| i32::try_from(number).map_err(|_| format!("rank {number} is too high"));
        let mut out = null_mut();
        // SAFETY: all pointers live through the call; `make_nccl` is only called with a device, and then is
        // the function of that type in the loaded library.
        let code = unsafe {
            dist_group_new(
                parts.store.0.get(),
                prefix.as_ptr(),
                rank(parts.rank)?,
                rank(parts.world)?,
                milliseconds(parts.timeout),
                address.as_ref().map_or(null(), |address| address.as_ptr()),
                parts.nccl.as_ref().map_or(-1, |nccl| nccl.device),
                parts.nccl.as_ref().map_or(null(), |nccl| nccl.make),
                &mut out,
            )
        };
        done(code)?;
        Ok(Self(Handle::new(out, dist_group_free)?))
    }

    pub(super) fn all_reduce(&self, tensor: &Tensor, op: i32) -> Result<(), Message> {
        // SAFETY: handle and tensor are valid; `op` is one of the two that the shim knows.
        done(unsafe { dist_all_reduce(self.0.get(), tensor.as_ptr(), op.clamp(0, 1)) })
    }

    pub(super) fn broadcast(&self, tensors: &[Tensor], from: usize) -> Result<(), Message> {
        let pointers: Vec<_> = tensors.iter().map(Tensor::as_ptr).collect();
        let from = i32::try_from(from).unwrap_or(-1);
        // SAFETY: the handle is valid, and the list has this many valid tensors.
        done(unsafe { dist_broadcast(self.0.get(), pointers.as_ptr(), pointers.len(), from) })
    }

    pub(super) fn all_gather(&self, all: &Tensor, own: &Tensor) -> Result<(), Message> {
        // SAFETY: handle and tensors are valid; c10d checks their sizes.
        done(unsafe { dist_all_gather(self.0.get(), all.as_ptr(), own.as_ptr()) })
    }

    pub(super) fn sum_with_gradient(&self, own: &Tensor) -> Result<Tensor, Message> {
        let mut sum = null_mut();
        // SAFETY: handle and tensor are valid; `sum` lives through the call.
        done(unsafe { dist_sum_with_gradient(self.0.get(), own.as_ptr(), &mut sum) })?;
        // SAFETY: a new tensor, owned by us.
        Ok(unsafe { Tensor::from_ptr(sum) })
    }
}

/// Computes batch norm over a group's ranks, or over one alone. `parameters`: weight, bias, running mean and variance.
pub(super) fn batch_norm(
    group: Option<&Group>,
    input: &Tensor,
    parameters: [&Tensor; 4],
    (momentum, eps): (f64, f64),
) -> Result<Tensor, Message> {
    let group = group.map_or(null(), |group| group.0.get().cast_const());
    let (parameters, mut out) = (parameters.map(Tensor::as_ptr), null_mut());
    // SAFETY: the group is valid or null, and so are the input and four tensors.
    done(unsafe { dist_batch_norm(group, input.as_ptr(), parameters.as_ptr(), momentum, eps, &mut out) })?;
    // SAFETY: a new tensor, owned by us.
    Ok(unsafe { Tensor::from_ptr(out) })
}

/// Registers batch norm's kernels for the CPU in this process.
#[cfg(test)]
pub(crate) fn emulate_kernels() {
    // SAFETY: takes nothing.
    done(unsafe { dist_emulate_kernels() }).expect("libtorch takes them");
}

/// Gradient reducer of c10d.
#[derive(Debug)]
pub(super) struct Reducer(Handle);

// SAFETY: the object is bound to no thread; without Sync, one thread at a time uses it.
unsafe impl Send for Reducer {}

impl Reducer {
    pub(super) fn new(group: &Group, parameters: &[Tensor]) -> Result<Self, Message> {
        let pointers: Vec<_> = parameters.iter().map(Tensor::as_ptr).collect();
        let mut out = null_mut();
        // SAFETY: the group is valid, and the list has this many valid tensors.
        done(unsafe { dist_reducer_new(group.0.get(), pointers.as_ptr(), pointers.len(), &mut out) })?;
        Ok(Self(Handle::new(out, dist_reducer_free)?))
    }

    pub(super) fn backward(&self, loss: &Tensor, last: bool) -> Result<(), Message> {
        // SAFETY: handle and tensor are valid.
        done(unsafe { dist_reducer_backward(self.0.get(), loss.as_ptr(), i32::from(last)) })
    }
}
