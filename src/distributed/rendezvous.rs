//! Rank of this process, and the meeting point of all ranks: from flags, torchrun or SLURM.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::process::Command;
use std::sync::Arc;

use super::DistributedError;

/// Rendezvous options of the command line. All three are required once one is given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RendezvousFlags {
    /// `--rank`, from 0.
    pub rank: Option<usize>,
    /// `--world-size`, the number of ranks.
    pub world_size: Option<usize>,
    /// `--master`, HOST:PORT at which rank 0 listens.
    pub master: Option<String>,
}

/// Meeting point of the ranks.
#[derive(Clone, Debug)]
pub(super) struct Meeting {
    /// Host of rank 0.
    pub host: String,
    pub port: u16,
    /// Whether rank 0 opens the store; false if torchrun's agent already serves one.
    pub serve: bool,
    /// Prefix of all keys, since torchrun's agent keeps its store over restarts of its workers.
    pub prefix: String,
    /// Socket already bound to the port, if any.
    pub listener: Option<Arc<TcpListener>>,
}

impl Meeting {
    fn new(host: String, port: u16) -> Self {
        Self { host, port, serve: true, prefix: "instdisc/".into(), listener: None }
    }

    /// Returns HOST:PORT.
    pub(super) fn name(&self) -> String {
        let host = &self.host;
        if host.contains(':') { format!("[{host}]:{}", self.port) } else { format!("{host}:{}", self.port) }
    }

    /// Returns the address at which rank 0 reaches itself, as its own name may not resolve yet.
    pub(super) fn own_host(&self) -> String {
        match self.interface() {
            address if address.is_loopback() => address.to_string(),
            _ => Ipv4Addr::LOCALHOST.to_string(),
        }
    }

    /// Returns the address that rank 0 listens on: only the loopback if the meeting point is there.
    pub(super) fn interface(&self) -> IpAddr {
        match self.host.parse::<IpAddr>() {
            Ok(address) if address.is_loopback() => address,
            _ if self.host == "localhost" => Ipv4Addr::LOCALHOST.into(),
            // Accepts IPv4 connections too.
            _ if TcpListener::bind((Ipv6Addr::UNSPECIFIED, 0)).is_ok() => Ipv6Addr::UNSPECIFIED.into(),
            _ => Ipv4Addr::UNSPECIFIED.into(),
        }
    }
}

/// Rank of one process, and the meeting point.
#[derive(Clone, Debug)]
pub struct Rendezvous {
    rank: usize,
    world: usize,
    local_rank: usize,
    meeting: Option<Meeting>,
}

/// Function that reads an environment variable.
type Environment<'a> = &'a dyn Fn(&str) -> Option<String>;

/// First step number that SLURM reserves, for the batch script or an interactive shell.
const FIRST_RESERVED_STEP: u64 = 0xffff_fff0;

impl Rendezvous {
    /// Returns the rendezvous of a single rank.
    pub fn alone() -> Self {
        Self { rank: 0, world: 1, local_rank: 0, meeting: None }
    }

    /// Finds this process's rank: from the flags if any is given, else from torchrun (`RANK`, `WORLD_SIZE`),
    /// where the index of a Kubernetes Indexed Job replaces a missing `RANK`, else from a SLURM step of
    /// several tasks. Otherwise the process is alone.
    ///
    /// Ranks of a SLURM step meet on its first node at `MASTER_PORT`, or 20000 + (job + 97 step) % 12000. A
    /// batch script without srun is a single rank. `MASTER_ADDR` overrides rank 0's host.
    ///
    /// # Errors
    /// If variables or flags are missing or contradict each other.
    pub fn find(flags: &RendezvousFlags, env: Environment<'_>) -> Result<Self, DistributedError> {
        // An empty variable counts as unset.
        let env: Environment<'_> = &|name| env(name).filter(|value| !value.is_empty());
        if *flags != RendezvousFlags::default() {
            Self::of_flags(flags, env)
        } else if env("RANK").is_some() || env("WORLD_SIZE").is_some() {
            Self::of_torchrun(env)
        } else if in_slurm_step(env)? {
            Self::of_slurm(env)
        } else {
            Ok(Self::alone())
        }
    }

    /// Returns this process's rank.
    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Returns the number of processes.
    pub fn world(&self) -> usize {
        self.world
    }

    /// Returns this process's number on its machine, which selects its GPU. With `--rank` alone it is the
    /// rank if the master has a loopback address of this machine, else 0.
    pub fn local_rank(&self) -> usize {
        self.local_rank
    }

    /// Returns whether this process meets no others and needs no collectives.
    pub fn is_alone(&self) -> bool {
        self.meeting.is_none()
    }

    /// Returns the meeting point; `None` for a single process.
    pub(super) fn meeting(&self) -> Option<&Meeting> {
        self.meeting.as_ref()
    }

    fn of_flags(flags: &RendezvousFlags, env: Environment<'_>) -> Result<Self, DistributedError> {
        let given = [
            ("--rank", flags.rank.is_some()),
            ("--world-size", flags.world_size.is_some()),
            ("--master", flags.master.is_some()),
        ];
        let beside = given.iter().find(|(_, given)| *given).map_or("--rank", |(name, _)| name);
        let missing = |name| missing(name, beside);
        let rank = flags.rank.ok_or_else(|| missing("--rank"))?;
        let world = flags.world_size.ok_or_else(|| missing("--world-size"))?;
        let master = flags.master.as_deref().ok_or_else(|| missing("--master"))?;
        let (host, port) = split_address(master)?;
        let is_here = host == "localhost" || host.starts_with("127.") || host == "::1";
        let local_rank = number(env, "LOCAL_RANK")?.unwrap_or(if is_here { rank } else { 0 });
        let meeting = Meeting::new(host, port);
        let found = Self::checked(("--rank", rank), ("--world-size", world), local_rank, meeting.clone())?;
        // A single process with flags takes the path of several, so that NCCL can be tried on one GPU.
        Ok(Self { meeting: Some(meeting), ..found })
    }

    fn of_torchrun(env: Environment<'_>) -> Result<Self, DistributedError> {
        let world = number(env, "WORLD_SIZE")?.ok_or_else(|| missing("WORLD_SIZE", "RANK"))?;
        // Kubernetes numbers the pods of an Indexed Job by JOB_COMPLETION_INDEX.
        let rank = match first_number(env, ["RANK", "JOB_COMPLETION_INDEX"])? {
            Some(rank) => rank,
            None if world == 1 => 0,
            None => return Err(missing("RANK", "WORLD_SIZE")),
        };
        let local_rank = number(env, "LOCAL_RANK")?.unwrap_or(0);
        if let Some(local_world) = number(env, "LOCAL_WORLD_SIZE")?
            && local_rank >= local_world
        {
            return contradiction(format!("LOCAL_RANK={local_rank} with LOCAL_WORLD_SIZE={local_world}"));
        }
        if world == 1 && rank == 0 {
            return Ok(Self { local_rank, ..Self::alone() });
        }
        let host = env("MASTER_ADDR").ok_or_else(|| missing("MASTER_ADDR", "RANK"))?;
        let port = port(env)?.ok_or_else(|| missing("MASTER_PORT", "RANK"))?;
        let mut meeting = Meeting::new(host, port);
        if env("TORCHELASTIC_USE_AGENT_STORE").is_some_and(|value| value == "True") {
            meeting.serve = false;
            meeting.prefix += &format!("{}/", env("TORCHELASTIC_RESTART_COUNT").unwrap_or_default());
        }
        Self::checked(("RANK", rank), ("WORLD_SIZE", world), local_rank, meeting)
    }

    fn of_slurm(env: Environment<'_>) -> Result<Self, DistributedError> {
        let missing = |name| missing(name, "SLURM_PROCID");
        let rank = number(env, "SLURM_PROCID")?.ok_or_else(|| missing("SLURM_PROCID"))?;
        let world = slurm_tasks(env)?.ok_or_else(|| missing("SLURM_NTASKS"))?;
        let local_rank = number(env, "SLURM_LOCALID")?.ok_or_else(|| missing("SLURM_LOCALID"))?;
        let step = first_number(env, ["SLURM_STEP_ID", "SLURM_STEPID"])?.unwrap_or(0);
        let nodes = first_number(env, ["SLURM_STEP_NUM_NODES", "SLURM_NNODES"])?;
        let host = match env("MASTER_ADDR") {
            Some(host) => host,
            // No host name to resolve, and no other machine can connect.
            None if nodes == Some(1) => "127.0.0.1".to_owned(),
            None => {
                let list = env("SLURM_STEP_NODELIST").or_else(|| env("SLURM_JOB_NODELIST"));
                let list = list.ok_or_else(|| missing("SLURM_JOB_NODELIST"))?;
                first_host(&list).or_else(|| ask_scontrol(&list)).ok_or_else(|| {
                    DistributedError::Contradiction {
                        what: format!("SLURM's node list {list:?} names no node"),
                    }
                })?
            }
        };
        let port = match port(env)? {
            Some(port) => port,
            None => {
                // Below the system's ephemeral ports, and different for each step of a job.
                let job = number(env, "SLURM_JOB_ID")?.ok_or_else(|| missing("SLURM_JOB_ID"))?;
                20_000 + u16::try_from((job + 97 * step) % 12_000).expect("below 12,000")
            }
        };
        let mut meeting = Meeting::new(host, port);
        meeting.prefix += &format!("step-{step}/");
        Self::checked(("SLURM_PROCID", rank), ("SLURM_NTASKS", world), local_rank, meeting)
    }

    fn checked(
        (rank_name, rank): (&str, usize),
        (world_name, world): (&str, usize),
        local_rank: usize,
        meeting: Meeting,
    ) -> Result<Self, DistributedError> {
        if rank >= world {
            return contradiction(format!(
                "{rank_name}={rank} with {world_name}={world}: ranks count from 0, so the last one is {}",
                world.saturating_sub(1)
            ));
        }
        let meeting = (world > 1).then_some(meeting);
        Ok(Self { rank, world, local_rank, meeting })
    }

    /// Creates the rendezvous of a rank within one process, for tests; rank 0 takes the socket.
    #[cfg(test)]
    pub(super) fn at(listener: &Arc<TcpListener>, rank: usize, world: usize) -> Self {
        let port = listener.local_addr().expect("bound").port();
        let mut meeting = Meeting::new("127.0.0.1".into(), port);
        meeting.listener = (rank == 0).then(|| listener.clone());
        Self { rank, world, local_rank: rank, meeting: (world > 1).then_some(meeting) }
    }
}

/// Returns the error for a variable or flag that is missing although `beside` is set.
fn missing(name: &str, beside: &str) -> DistributedError {
    DistributedError::Contradiction { what: format!("{name} is not set, though {beside} is") }
}

fn contradiction<T>(what: String) -> Result<T, DistributedError> {
    Err(DistributedError::Contradiction { what })
}

/// Parses the variable as a number, if set.
fn number(env: Environment<'_>, name: &str) -> Result<Option<usize>, DistributedError> {
    let Some(text) = env(name) else {
        return Ok(None);
    };
    let number = text.trim().parse();
    number.map(Some).or_else(|_| contradiction(format!("{name}={text:?} is not a number")))
}

/// Parses the first of these variables that is set.
fn first_number(env: Environment<'_>, names: [&str; 2]) -> Result<Option<usize>, DistributedError> {
    names.into_iter().find_map(|name| number(env, name).transpose()).transpose()
}

fn port(env: Environment<'_>) -> Result<Option<u16>, DistributedError> {
    let Some(port) = number(env, "MASTER_PORT")? else { return Ok(None) };
    match u16::try_from(port) {
        Ok(port) if port > 0 => Ok(Some(port)),
        _ => contradiction(format!("MASTER_PORT={port} is not a port")),
    }
}

/// Returns the number of tasks of the step, as `SLURM_NTASKS` may be that of the job.
fn slurm_tasks(env: Environment<'_>) -> Result<Option<usize>, DistributedError> {
    first_number(env, ["SLURM_STEP_NUM_TASKS", "SLURM_NTASKS"])
}

/// Returns whether srun started this process as one of several. A batch script has SLURM_PROCID too.
fn in_slurm_step(env: Environment<'_>) -> Result<bool, DistributedError> {
    let step = env("SLURM_STEP_ID").or_else(|| env("SLURM_STEPID"));
    let is_step = step.and_then(|id| id.parse::<u64>().ok()).is_some_and(|id| id < FIRST_RESERVED_STEP);
    Ok(is_step && env("SLURM_PROCID").is_some() && slurm_tasks(env)?.is_some_and(|tasks| tasks > 1))
}

/// Splits HOST:PORT, where an IPv6 address has brackets.
fn split_address(address: &str) -> Result<(String, u16), DistributedError> {
    let wrong = || DistributedError::Contradiction { what: format!("--master {address:?} is not HOST:PORT") };
    let (host, port) = address.rsplit_once(':').ok_or_else(wrong)?;
    let port: u16 = port.parse().map_err(|_| wrong())?;
    let is_bracketed = host.starts_with('[') && host.ends_with(']');
    let host = if is_bracketed { &host[1..host.len() - 1] } else { host };
    if host.is_empty() || port == 0 || (host.contains(':') && !is_bracketed) {
        return Err(wrong());
    }
    Ok((host.to_owned(), port))
}

/// Returns the first host of SLURM's node list, such as `node[01-03,7],login`: the first entry, with the
/// first number of each bracket.
///
/// `None` if the list has another form.
fn first_host(list: &str) -> Option<String> {
    let mut host = String::new();
    let mut rest = list.trim();
    loop {
        let end = rest.find(['[', ',', ']']).unwrap_or(rest.len());
        host += &rest[..end];
        match rest[end..].chars().next() {
            None | Some(',') => break,
            Some('[') => {
                let (ranges, after) = rest[end + 1..].split_once(']')?;
                let first = ranges.split([',', '-']).next()?;
                if first.is_empty() || !first.bytes().all(|byte| byte.is_ascii_digit()) {
                    return None;
                }
                host += first;
                rest = after;
            }
            Some(_) => return None,
        }
    }
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    (!host.is_empty() && host.chars().all(is_name)).then_some(host)
}

/// Returns the first host according to `scontrol`.
fn ask_scontrol(list: &str) -> Option<String> {
    let output = Command::new("scontrol").args(["show", "hostnames", list]).output().ok()?;
    let hosts = String::from_utf8(output.stdout).ok()?;
    let first = hosts.lines().next()?.trim();
    (output.status.success() && !first.is_empty()).then(|| first.to_owned())
}

#[cfg(test)]
mod tests;
