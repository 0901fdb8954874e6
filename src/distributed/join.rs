//! Joining of ranks: a store at rank 0, in which each registers, then the watcher, and then libtorch's group.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::io::ErrorKind;
use std::net::{IpAddr, Ipv4Addr, TcpListener, ToSocketAddrs, UdpSocket};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tch::Device;

use super::ffi::{self, GroupParts, Nccl};
use super::rendezvous::Meeting;
use super::watch::{Watch, connect};
use super::{Cause, cause, first_line};
use super::{DistributedError, Rendezvous, Store};
use crate::failure::Failure;

/// libtorch's group of several ranks, with this rank's watcher.
#[derive(Debug)]
pub(super) struct Joined {
    /// `None` once it is being dropped.
    handle: Option<ffi::Group>,
    watch: Arc<Watch>,
    /// Server at rank 0; elsewhere another client.
    #[expect(dead_code, reason = "kept for its drop")]
    server: Arc<ffi::Store>,
}

/// Time that rank 0's store outlives its goodbye while other ranks remain.
const LINGER: Duration = Duration::from_secs(1);
/// Time that rank 0 leaves the others to read the reason why it gives up.
const FAREWELL: Duration = Duration::from_secs(1);
/// Pause between two attempts to reach rank 0, or to read a missing key.
const PAUSE: Duration = Duration::from_millis(20);
/// Longest attempt to connect; signals are checked between attempts, as a machine that is not up may never answer.
const LONGEST_ATTEMPT: Duration = Duration::from_secs(2);

impl Joined {
    /// Runs a collective, counts it for the watcher, and explains its error.
    pub(super) fn collective<T>(
        &self,
        what: &str,
        body: impl FnOnce(&ffi::Group) -> Result<T, ffi::Message>,
    ) -> Result<T, DistributedError> {
        let handle = self.handle.as_ref().expect("there until it is dropped");
        self.watch.check()?;
        let number = self.watch.begin();
        body(handle).map_err(|message| self.watch.explain(what, number, &message))
    }

    pub(super) fn watch(&self) -> &Arc<Watch> {
        &self.watch
    }
}

impl Drop for Joined {
    fn drop(&mut self) {
        self.watch.say_goodbye();
        self.handle = None;
        self.watch.let_others_leave(LINGER);
        self.watch.close();
    }
}

/// Joins the other ranks; see [`super::ProcessGroup::join_unless_stopped`].
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
    let (server, arrival) = Arrival::open(rendezvous, meeting, timeout, stop)?;
    let (watch, places) = arrival.meet()?;
    let interface_named = std::env::var_os("GLOO_SOCKET_IFNAME").is_some_and(|name| !name.is_empty());
    let address = listening(&places, &places[rank], &meeting.host, interface_named);
    tracing::debug!(rank, world, address = ?address, "the ranks have met");
    let handle = arrival.make_group(&server, address, nccl, &watch)?;
    let store = Store::of_client(arrival.store, &meeting.prefix, &watch);
    Ok((Joined { handle: Some(handle), watch, server }, store))
}

/// Joins the others only to report that this rank ends with an error.
pub(super) fn meet_and_fail(
    rendezvous: &Rendezvous,
    meeting: &Meeting,
    timeout: Duration,
    stop: &AtomicBool,
    failure: Failure,
) -> Result<(), DistributedError> {
    // The server is dropped last, as the others may still use it.
    let (_server, arrival) = Arrival::open(rendezvous, meeting, timeout, stop)?;
    let (watch, _) = arrival.meet()?;
    watch.fail(failure);
    watch.let_others_leave(LINGER);
    watch.close();
    Ok(())
}

fn listen(meeting: &Meeting) -> Result<TcpListener, DistributedError> {
    let bound = match &meeting.listener {
        Some(listener) => listener.try_clone(),
        None => TcpListener::bind((meeting.interface(), meeting.port)),
    };
    bound.map_err(|error| {
        let why = match error.kind() {
            ErrorKind::AddrInUse => "the port is in use; choose another (MASTER_PORT or --master)".to_owned(),
            _ => error.to_string(),
        };
        DistributedError::Rendezvous { reason: format!("rank 0 cannot listen at {}: {why}", meeting.name()) }
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
        // The host name may also become known only later.
        let Err(error) = connect(&meeting.host, meeting.port, left) else { return Ok(()) };
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

/// Arrival of a rank, which looks for the others in the store.
#[derive(Debug)]
struct Arrival<'a> {
    store: ffi::Store,
    meeting: &'a Meeting,
    rank: usize,
    world: usize,
    deadline: Instant,
    timeout: Duration,
    stop: &'a AtomicBool,
}

impl<'a> Arrival<'a> {
    /// Opens the store at rank 0. Also returns the handle that serves the store on rank 0; on other ranks that is
    /// one more client.
    fn open(
        rendezvous: &Rendezvous,
        meeting: &'a Meeting,
        timeout: Duration,
        stop: &'a AtomicBool,
    ) -> Result<(Arc<ffi::Store>, Self), DistributedError> {
        let (rank, world) = (rendezvous.rank(), rendezvous.world());
        let deadline = Instant::now() + timeout;
        let listener = if rank == 0 && meeting.serve { Some(listen(meeting)?) } else { None };
        if listener.is_none() {
            reach(meeting, deadline, timeout, stop)?;
        }
        let host = if listener.is_some() { meeting.own_host() } else { meeting.host.clone() };
        let open = |listener| {
            ffi::Store::open(&host, meeting.port, listener, timeout).map_err(|message| {
                let (name, message) = (meeting.name(), first_line(&message));
                let reason = format!("the store at {name} cannot be used: {message}");
                DistributedError::Rendezvous { reason }
            })
        };
        let server = Arc::new(open(listener.map(OwnedFd::from))?);
        let store = open(None)?;
        Ok((server, Self { store, meeting, rank, world, deadline, timeout, stop }))
    }

    /// Registers this rank, waits for the others, and starts the watcher.
    fn meet(&self) -> Result<(Arc<Watch>, Vec<Place>), DistributedError> {
        let place = serde_json::to_vec(&Place::here()).expect("a place is two texts");
        if self.store.add(&self.key(&format!("count/{}", self.rank)), 1).map_err(|text| self.broken(&text))?
            > 1
        {
            let what = format!("two processes say that they are rank {}", self.rank);
            return Err(DistributedError::Contradiction { what });
        }
        let token = token();
        let no_watch = |error: std::io::Error| DistributedError::Rendezvous {
            reason: format!("rank {}'s watcher cannot be started: {error}", self.rank),
        };
        let lead = || {
            let (world, at) = (self.world, self.meeting.interface());
            let (watch, port) = Watch::lead(world, at, token.clone(), self.timeout).map_err(no_watch)?;
            self.set("watch", format!("{port} {token}").as_bytes())?;
            Ok::<_, DistributedError>(watch)
        };
        let lead = (self.rank == 0).then(lead).transpose()?;
        self.set(&format!("place/{}", self.rank), &place)?;
        let places = self.all_places()?;
        let follow = || {
            let text = self.try_get("watch")?.unwrap_or_default();
            let text = String::from_utf8_lossy(&text);
            let (port, token) = text.split_once(' ').unwrap_or_default();
            let at = (self.meeting.host.as_str(), port.parse().unwrap_or_default());
            Watch::follow((self.rank, self.world), at, token.to_owned(), self.timeout).map_err(no_watch)
        };
        let watch = lead.map_or_else(follow, Ok)?;
        while !watch.absent().is_empty() {
            self.or_too_late(&watch.absent())?;
            std::thread::sleep(PAUSE);
        }
        Ok((Arc::new(watch), places))
    }

    /// Creates libtorch's group on another thread, as this waits for every rank and one may be lost meanwhile.
    fn make_group(
        &self,
        server: &Arc<ffi::Store>,
        address: Option<IpAddr>,
        nccl: Option<Nccl>,
        watch: &Watch,
    ) -> Result<ffi::Group, DistributedError> {
        let (store, prefix) = (server.clone(), self.meeting.prefix.clone());
        let Self { rank, world, timeout, .. } = *self;
        let (sender, receiver) = std::sync::mpsc::channel();
        let make = move || {
            let address = address.map(|address| address.to_string());
            let address = address.as_deref();
            let parts = GroupParts { store: &store, prefix: &prefix, rank, world, timeout, address, nccl };
            // Without a receiver, ranks were lost.
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
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) if self.stop.load(Ordering::Relaxed) => {
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

    fn all_places(&self) -> Result<Vec<Place>, DistributedError> {
        let mut places: Vec<Option<Place>> = vec![None; self.world];
        loop {
            for (rank, place) in places.iter_mut().enumerate().filter(|(_, place)| place.is_none()) {
                let found = self.try_get(&format!("place/{rank}"))?;
                *place = found.and_then(|bytes| serde_json::from_slice(&bytes).ok());
                if place.is_none() && Instant::now() < self.deadline {
                    // Before the deadline, ask for one missing rank at a time.
                    break;
                }
            }
            let missing: Vec<_> = (0..self.world).filter(|rank| places[*rank].is_none()).collect();
            if missing.is_empty() {
                return Ok(places.into_iter().flatten().collect());
            }
            self.or_too_late(&missing)?;
            std::thread::sleep(PAUSE);
        }
    }

    /// Fails with the missing ranks after the deadline, here or at rank 0, or after a rank was stopped.
    fn or_too_late(&self, missing: &[usize]) -> Result<(), DistributedError> {
        if self.stop.load(Ordering::Relaxed) {
            // Others may already be gone, stopped by the same signal.
            let _ = self.give_up(&format!("rank {} was stopped before all had come", self.rank));
            return Err(DistributedError::Stopped);
        }
        if let Some(reason) = self.try_get("gave_up")? {
            let reason = String::from_utf8_lossy(&reason).into_owned();
            return Err(DistributedError::Rendezvous { reason });
        }
        if Instant::now() < self.deadline {
            return Ok(());
        }
        let came = self.world - missing.len();
        let seconds = self.timeout.as_secs();
        let reason = format!(
            "{} did not come within {seconds} s; {came} of {} ranks came",
            ranks(missing),
            self.world
        );
        if self.rank == 0 {
            self.give_up(&reason)?;
        }
        Err(DistributedError::Rendezvous { reason })
    }

    /// Publishes the reason for giving up, for the ranks that have arrived and wait.
    fn give_up(&self, reason: &str) -> Result<(), DistributedError> {
        self.set("gave_up", reason.as_bytes())?;
        if self.rank == 0 {
            // Leave time to read the reason, as the store ends with this rank.
            std::thread::sleep(FAREWELL);
        }
        Ok(())
    }

    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.meeting.prefix)
    }

    fn set(&self, name: &str, value: &[u8]) -> Result<(), DistributedError> {
        self.store.set(&self.key(name), value).map_err(|message| self.broken(&message))
    }

    fn try_get(&self, name: &str) -> Result<Option<Vec<u8>>, DistributedError> {
        self.store.try_get(&self.key(name)).map_err(|message| self.broken(&message))
    }

    fn broken(&self, message: &str) -> DistributedError {
        let reason = format!("rank 0 was lost before all had come: {}", first_line(message));
        DistributedError::Rendezvous { reason }
    }
}

/// Lists ranks for an error, at most eight by number.
fn ranks(numbers: &[usize]) -> String {
    const NAMED: usize = 8;
    let named: Vec<_> = numbers.iter().take(NAMED).map(ToString::to_string).collect();
    let more = numbers.len().saturating_sub(NAMED);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    format!("{} {}{more}", if numbers.len() == 1 { "rank" } else { "ranks" }, named.join(", "))
}

/// Returns a number that an outsider cannot guess: the standard library seeds it from the operating system.
fn token() -> String {
    format!("{:016x}", RandomState::new().build_hasher().finish())
}

/// Machine that a rank runs on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Place {
    /// Name of the machine.
    host: String,
    /// Id that ranks share if they reach each other by 127.0.0.1: kernel and network namespace.
    loopback: String,
}

impl Place {
    /// Returns the place of this process.
    fn here() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).map(|text| text.trim().to_owned());
        let host = read("/proc/sys/kernel/hostname").unwrap_or_default();
        let boot = read("/proc/sys/kernel/random/boot_id").unwrap_or_else(|_| host.clone());
        let network = std::fs::read_link("/proc/self/ns/net").unwrap_or_default();
        Self { host, loopback: format!("{boot} {}", network.display()) }
    }
}

/// Returns the address that gloo shall listen on; `None` leaves the choice to gloo.
///
/// gloo uses the address of the machine's name. On many machines this is 127.0.1.1, which other machines
/// cannot reach. `GLOO_SOCKET_IFNAME` (`interface_named`) overrides this choice.
fn listening(places: &[Place], here: &Place, master: &str, interface_named: bool) -> Option<IpAddr> {
    if interface_named {
        return None;
    }
    if places.iter().all(|place| place.loopback == here.loopback) {
        return Some(Ipv4Addr::LOCALHOST.into());
    }
    if outside(&here.host).is_some() {
        return None;
    }
    // Use the address that reaches another machine. Rank 0's name may resolve to a loopback address on its own machine.
    let others =
        places.iter().filter(|place| place.loopback != here.loopback).map(|place| place.host.as_str());
    let towards = std::iter::once(master).chain(others).find_map(outside)?;
    let any: IpAddr =
        if towards.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    // Sends nothing, only chooses a route.
    socket.connect((towards, 9)).ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|address| !address.is_loopback())
}

/// Returns an address of the host that is not a loopback address.
fn outside(host: &str) -> Option<IpAddr> {
    let addresses = (host, 0).to_socket_addrs().ok()?;
    addresses.map(|address| address.ip()).find(|address| !address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(host: &str, loopback: &str) -> Place {
        Place { host: host.into(), loopback: loopback.into() }
    }

    #[test]
    fn ranks_of_one_machine_listen_on_the_loopback() {
        let here = Place::here();
        assert_eq!(here, Place::here());
        let both = [here.clone(), here.clone()];
        assert_eq!(listening(&both, &here, "localhost", false), Some(Ipv4Addr::LOCALHOST.into()));
        assert_eq!(listening(&both, &here, "localhost", true), None, "a named interface wins");
    }

    #[test]
    fn several_machines_never_listen_on_the_loopback() {
        let places = [place("127.0.1.1", "a"), place("192.0.2.7", "b")];
        let chosen = listening(&places, &places[0], "127.0.1.1", false);
        assert!(chosen.is_none_or(|address| !address.is_loopback()), "{chosen:?}");
        // A name that others can resolve is left to gloo.
        assert_eq!(listening(&places, &places[1], "127.0.1.1", false), None);
    }
}
