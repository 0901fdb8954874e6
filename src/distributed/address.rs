//! Which of a machine's addresses gloo shall listen on, where its own choice would not do.
//!
//! gloo takes what the machine's name resolves to. On many machines that is 127.0.1.1, where no other machine can
//! connect. `GLOO_SOCKET_IFNAME` wins over all that is decided here.

use std::net::{IpAddr, Ipv4Addr, ToSocketAddrs, UdpSocket};

use serde::{Deserialize, Serialize};

/// Where a rank runs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Place {
    /// The machine's name.
    pub(super) host: String,
    /// What ranks have in common that reach each other by 127.0.0.1: a kernel and a namespace of its network.
    pub(super) loopback: String,
}

impl Place {
    /// This process's.
    pub(super) fn here() -> Self {
        let read = |path: &str| std::fs::read_to_string(path).map(|text| text.trim().to_owned());
        let host = read("/proc/sys/kernel/hostname").unwrap_or_default();
        let boot = read("/proc/sys/kernel/random/boot_id").unwrap_or_else(|_| host.clone());
        let network = std::fs::read_link("/proc/self/ns/net").unwrap_or_default();
        Self { host, loopback: format!("{boot} {}", network.display()) }
    }
}

/// The address to listen on; `None` leaves the choice to gloo.
pub(super) fn listening(
    places: &[Place],
    here: &Place,
    master: &str,
    interface_named: bool,
) -> Option<IpAddr> {
    if interface_named {
        return None;
    }
    if places.iter().all(|place| place.loopback == here.loopback) {
        return Some(Ipv4Addr::LOCALHOST.into());
    }
    if outside(&here.host).is_some() {
        return None;
    }
    // The one from which another machine is reached. Rank 0's own name may lead nowhere on its own machine.
    let others =
        places.iter().filter(|place| place.loopback != here.loopback).map(|place| place.host.as_str());
    let towards = std::iter::once(master).chain(others).find_map(outside)?;
    let any: IpAddr =
        if towards.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { std::net::Ipv6Addr::UNSPECIFIED.into() };
    let socket = UdpSocket::bind((any, 0)).ok()?;
    // Sends nothing: it only chooses a route.
    socket.connect((towards, 9)).ok()?;
    socket.local_addr().ok().map(|address| address.ip()).filter(|address| !address.is_loopback())
}

/// An address of the host that other machines may know.
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
        // A name that others know is left to gloo.
        assert_eq!(listening(&places, &places[1], "127.0.1.1", false), None);
    }
}
