//! Several processes that do one job.

use std::sync::atomic::AtomicBool;
use std::time::Duration;

use clap::Args;

use super::exit::failure;
use super::progress::{say, speak_as_rank};
use crate::commands::CommandError;
use crate::distributed::{DistributedError, ProcessGroup, Rendezvous, RendezvousFlags, end_process};

/// Which process of a job this is. torchrun and srun say it in the environment; flags win.
#[derive(Debug, Args)]
#[command(next_help_heading = "Several processes")]
pub(super) struct RankFlags {
    /// The number of this process, from 0 [default: what torchrun or srun says]
    #[arg(long, value_name = "N", requires_all = ["world_size", "master"])]
    rank: Option<usize>,
    /// How many processes there are
    #[arg(long, value_name = "N", requires = "rank")]
    world_size: Option<usize>,
    /// Where process 0 listens
    #[arg(long, value_name = "HOST:PORT", requires = "rank")]
    master: Option<String>,
    /// Count another process as lost after this many seconds without an answer
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u64).range(1..))]
    collective_timeout: u64,
}

/// Tells the other processes how this one fails.
pub(super) fn tell<T>(group: &ProcessGroup, done: anyhow::Result<T>) -> anyhow::Result<T> {
    done.inspect_err(|error| {
        let of_another = error.downcast_ref().is_some_and(CommandError::is_of_another_process);
        if !of_another && !error.is::<DistributedError>() {
            group.fail(failure(error));
        }
    })
}

/// Ends the process: others were lost, and it is blocked.
pub(super) fn end_as_lost(error: DistributedError) {
    say(&format!("error: {error}"));
    end_process(error.failure().exit_code());
}

impl RankFlags {
    /// Which process this is; from now on its lines begin with its rank, where there are several.
    pub(super) fn rendezvous(&self) -> Result<Rendezvous, DistributedError> {
        let Self { rank, world_size, master, .. } = self;
        let flags = RendezvousFlags { rank: *rank, world_size: *world_size, master: master.clone() };
        let rendezvous = Rendezvous::find(&flags, &|name| std::env::var(name).ok())?;
        if rendezvous.world() > 1 {
            speak_as_rank(rendezvous.rank());
        }
        Ok(rendezvous)
    }

    /// Of an error before this process joins the others, which wait for it, they are told.
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

    /// Brings the processes together for work whose results are on the host.
    pub(super) fn join(&self, rendezvous: &Rendezvous) -> Result<ProcessGroup, DistributedError> {
        ProcessGroup::join_on_host(rendezvous, self.timeout())
    }
}
