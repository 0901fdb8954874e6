//! Flags and coordination of several processes that do one job.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::Args;

use super::exit::failure;
use super::progress::{say, speak_as_rank};
use crate::commands::CommandError;
use crate::distributed::{DistributedError, ProcessGroup, Rendezvous, RendezvousFlags, end_process};

/// Rank of this process. Flags win over the environment of torchrun and srun.
#[derive(Debug, Args)]
#[command(next_help_heading = "Several processes")]
pub(super) struct RankFlags {
    /// Number of this process, from 0 [default: from torchrun or srun]
    #[arg(long, value_name = "N", requires_all = ["world_size", "master"])]
    rank: Option<usize>,
    /// Number of processes
    #[arg(long, value_name = "N", requires = "rank")]
    world_size: Option<usize>,
    /// Address that process 0 listens on
    #[arg(long, value_name = "HOST:PORT", requires = "rank")]
    master: Option<String>,
    /// Count another process as lost after this many seconds without an answer
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..))]
    collective_timeout: u64,
}

/// Reports this process's failure to the others.
pub(super) fn tell<T>(group: &ProcessGroup, done: anyhow::Result<T>) -> anyhow::Result<T> {
    done.inspect_err(|error| {
        let of_another = error.downcast_ref().is_some_and(CommandError::is_of_another_process);
        if !of_another && !error.is::<DistributedError>() {
            group.fail(failure(error));
        }
    })
}

/// Ends the process, which is blocked because others were lost.
pub(super) fn end_as_lost(error: DistributedError) {
    say(&format!("error: {error}"));
    end_process(error.failure().exit_code());
}

impl RankFlags {
    /// Finds the rank of this process. With several processes, prefixes its further lines with the rank.
    pub(super) fn rendezvous(&self) -> Result<Rendezvous, DistributedError> {
        let Self { rank, world_size, master, .. } = self;
        let flags = RendezvousFlags { rank: *rank, world_size: *world_size, master: master.clone() };
        let rendezvous = Rendezvous::find(&flags, &|name| std::env::var(name).ok())?;
        if rendezvous.world() > 1 {
            speak_as_rank(rendezvous.rank());
        }
        Ok(rendezvous)
    }

    /// Reports an error of this process to the others, which wait for it to join.
    pub(super) fn told<T>(
        &self,
        rendezvous: &Rendezvous,
        stop: &AtomicBool,
        done: anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        done.inspect_err(|error| {
            ProcessGroup::fail_before_joining(
                rendezvous,
                self.timeout(),
                stop,
                failure(error),
                &format!("{error:#}"),
            );
        })
    }

    pub(super) fn timeout(&self) -> Duration {
        Duration::from_secs(self.collective_timeout)
    }

    /// Connects the processes for work whose results are on the host.
    pub(super) fn join(&self, rendezvous: &Rendezvous) -> Result<ProcessGroup, DistributedError> {
        ProcessGroup::join_on_host(rendezvous, self.timeout())
    }
}
