//! How ranks come together: a store at rank 0, the watcher, and then libtorch's group.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener, TcpStream, ToSocketAddrs};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tch::Device;

use super::address;
use super::arrival::Arrival;
use super::error::{Cause, cause, first_line};
use super::ffi::{self, GroupParts, Nccl};
use super::rendezvous::Meeting;
use super::watch::Watch;
use super::{DistributedError, Rendezvous, Store};

/// What a rank of several has.
#[derive(Debug)]
pub(super) struct Joined {
    /// Empty once it is being dropped.
    pub(super) handle: Option<ffi::Group>,
    pub(super) watch: Arc<Watch>,
    /// The server, at rank 0.
    #[expect(dead_code, reason = "kept for its drop")]
    keeper: Arc<ffi::Store>,
}

/// How long rank 0's store outlives its goodbye while others are still there.
const LINGER: Duration = Duration::from_secs(1);
/// Between two attempts to reach rank 0, or looks for what is missing.
const PAUSE: Duration = Duration::from_millis(20);
/// A machine that is not up yet may answer nothing at all, and a signal is looked for between attempts.
const LONGEST_ATTEMPT: Duration = Duration::from_secs(2);

impl Drop for Joined {
    fn drop(&mut self) {
        self.watch.say_goodbye();
        self.handle = None;
        self.watch.let_others_leave(LINGER);
        self.watch.close();
    }
}

/// Joins the others; see [`super::ProcessGroup::join_unless_stopped`].
pub(super) fn join(
    rendezvous: &Rendezvous,
    meeting: &Meeting,
    device: Device,
    timeout: Duration,
    stop: &AtomicBool,
) -> Result<(Joined, Store), DistributedError> {
    let (rank, world) = (rendezvous.rank(), rendezvous.world());
    let backend = |what: &str| {
        let what = what.to_owned();
        move |message: String| DistributedError::Backend { what, message: first_line(&message) }
    };
    ffi::prepare().map_err(backend("libtorch's version"))?;
    let nccl = match device {
        Device::Cuda(number) => {
            let no_nccl = |reason: String| DistributedError::NoNccl { reason: first_line(&reason) };
            let nccl = Nccl::load(number).map_err(no_nccl)?;
            nccl.make_current().map_err(no_nccl)?;
            Some(nccl)
        }
        _ => None,
    };
    let deadline = Instant::now() + timeout;
    let listener = if rank == 0 && meeting.serve { Some(listen(meeting)?) } else { None };
    if listener.is_none() {
        reach(meeting, deadline, timeout, stop)?;
    }
    let unreached = |message: String| DistributedError::Rendezvous {
        reason: format!("the store at {} cannot be used: {}", meeting.name(), first_line(&message)),
    };
    let (host, port) =
        (if listener.is_some() { meeting.own_host() } else { meeting.host.clone() }, meeting.port);
    let listener = listener.map(OwnedFd::from);
    let keeper = ffi::Store::open(&host, port, listener, timeout).map_err(unreached)?;
    let keeper = Arc::new(keeper);
    let client = ffi::Store::open(&host, port, None, timeout).map_err(unreached)?;
    let come = Arrival { store: &client, meeting, rank, world, deadline, timeout, stop };
    let (watch, places) = come.meet()?;
    let here = &places[rank];
    let interface_named = std::env::var_os("GLOO_SOCKET_IFNAME").is_some_and(|name| !name.is_empty());
    let address = address::listening(&places, here, &meeting.host, interface_named);
    tracing::debug!(rank, world, address = ?address, "the ranks have met");
    let handle = make_group(&keeper, meeting, (rank, world), timeout, address, nccl, (&watch, stop))?;
    let store = Store::of_client(client, &meeting.prefix, &watch, timeout);
    Ok((Joined { handle: Some(handle), watch, keeper }, store))
}

impl Meeting {
    /// HOST:PORT.
    pub(super) fn name(&self) -> String {
        let host = &self.host;
        if host.contains(':') { format!("[{host}]:{}", self.port) } else { format!("{host}:{}", self.port) }
    }

    /// Where rank 0 finds itself: its own name may lead nowhere yet.
    fn own_host(&self) -> String {
        match self.interface() {
            address if address.is_loopback() => address.to_string(),
            _ => Ipv4Addr::LOCALHOST.to_string(),
        }
    }

    /// Where rank 0 listens: on the loopback alone where the others look for it there.
    pub(super) fn interface(&self) -> IpAddr {
        match self.host.parse::<IpAddr>() {
            Ok(address) if address.is_loopback() => address,
            _ if self.host == "localhost" => Ipv4Addr::LOCALHOST.into(),
            // Takes connections of IPv4 too.
            _ if TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok() => Ipv6Addr::UNSPECIFIED.into(),
            _ => Ipv4Addr::UNSPECIFIED.into(),
        }
    }
}

fn listen(meeting: &Meeting) -> Result<TcpListener, DistributedError> {
    let bound = match &meeting.listener {
        Some(listener) => listener.try_clone(),
        None => TcpListener::bind((meeting.interface(), meeting.port)),
    };
    bound.map_err(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => DistributedError::PortInUse { address: meeting.name() },
        _ => DistributedError::Rendezvous {
            reason: format!("rank 0 cannot listen at {}: {error}", meeting.name()),
        },
    })
}

/// Waits until rank 0 listens.
fn reach(
    meeting: &Meeting,
    deadline: Instant,
    timeout: Duration,
    stop: &AtomicBool,
) -> Result<(), DistributedError> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now()).clamp(PAUSE, LONGEST_ATTEMPT);
        // The name too may come later than this process.
        let addresses = (meeting.host.as_str(), meeting.port).to_socket_addrs();
        let attempt = addresses.and_then(|addresses| {
            let mut last = std::io::Error::other("the name has no address");
            for address in addresses {
                match TcpStream::connect_timeout(&address, left) {
                    Ok(_) => return Ok(()),
                    Err(error) => last = error,
                }
            }
            Err(last)
        });
        let Err(error) = attempt else { return Ok(()) };
        if stop.load(Ordering::Relaxed) {
            return Err(DistributedError::Stopped);
        }
        if Instant::now() >= deadline {
            let seconds = timeout.as_secs();
            let reason = format!("rank 0 did not listen at {} within {seconds} s: {error}", meeting.name());
            return Err(DistributedError::Rendezvous { reason });
        }
        std::thread::sleep(PAUSE);
    }
}

/// Makes libtorch's group, on a thread of its own: it waits for every rank, and a rank may be lost just then.
fn make_group(
    keeper: &Arc<ffi::Store>,
    meeting: &Meeting,
    (rank, world): (usize, usize),
    timeout: Duration,
    address: Option<IpAddr>,
    nccl: Option<Nccl>,
    (watch, stop): (&Watch, &AtomicBool),
) -> Result<ffi::Group, DistributedError> {
    let (store, prefix) = (keeper.clone(), meeting.prefix.clone());
    let (sender, receiver) = std::sync::mpsc::channel();
    let make = move || {
        let address = address.map(|address| address.to_string());
        let address = address.as_deref();
        let parts = GroupParts { store: &store, prefix: &prefix, rank, world, timeout, address, nccl };
        // Nobody listens any more where the ranks were lost.
        let _ = sender.send(ffi::Group::new(&parts));
    };
    let spawned = std::thread::Builder::new().name("join".into()).spawn(make);
    spawned.map_err(|error| DistributedError::Backend {
        what: "joining the group".into(),
        message: error.to_string(),
    })?;
    loop {
        match receiver.recv_timeout(PAUSE) {
            Ok(Ok(group)) => return Ok(group),
            Ok(Err(message)) if nccl.is_some() && cause(&message) == Cause::Other => {
                return Err(DistributedError::NoNccl { reason: first_line(&message) });
            }
            Ok(Err(message)) => return Err(watch.explain("joining the group", 0, &message)),
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) if stop.load(Ordering::Relaxed) => {
                return Err(DistributedError::Stopped);
            }
            Err(std::sync::mpsc::RecvTimeoutError::Timeout) => watch.check()?,
            Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => {
                let what = "joining the group".into();
                return Err(DistributedError::Backend { what, message: "its thread ended".into() });
            }
        }
    }
}
