"""A real SLURM on one machine: munge, slurmctld and two slurmd, with all state in a folder of its own.

`with cluster() as slurm:` starts it; in `slurm.env` all of SLURM's commands work, and `slurm.srun(2, ...)` runs a
command as two tasks, on a node each. What tests several processes of one job belongs to test_slurm.py, at its end.
"""

import contextlib
import os
import re
import shutil
import subprocess
import time

from support import (
    environment, free_port, link_program, note, note_started, running, scratch, spawn, stop, tool, wait_until,
)

NODES = ("n1", "n2")

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={at}/run/munge.socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={at}/ctld
SlurmdSpoolDir={at}/spool.%n
SlurmctldPidFile={at}/run/slurmctld.pid
SlurmdPidFile={at}/run/slurmd.%n.pid
SlurmctldLogFile={at}/log/slurmctld.log
SlurmdLogFile={at}/log/slurmd.%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=2,batch_sched_delay=0
# A node that was taken down stays down until it is resumed.
ReturnToService=1
SlurmdTimeout=30
# Four cores a node, whatever this machine has.
SlurmdParameters=config_overrides
KillWait=30
# A machine that builds beside this answers late.
MessageTimeout=60
MinJobAge=600
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
GresTypes=gpu
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 PreemptMode=REQUEUE GraceTime=20
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
"""


@contextlib.contextmanager
def cluster():
    """A SLURM of two nodes, for as long as the block lasts."""
    slurm = Slurm()
    try:
        yield slurm
    finally:
        slurm.stop()


class Slurm:
    def __init__(self):
        link_program()
        running.append(self)
        # A new folder each time: job ids that come again confuse slurmd.
        self.at, self.processes = scratch(f"slurm-{os.getpid()}"), []
        for folder in ("run", "ctld", "log", "key"):
            (self.at / folder).mkdir()
        # Munge wants to be the only one who can change what it reads.
        (self.at / "key").chmod(0o700)
        key = self.at / "key/munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        host, port = tool("hostname", "-s"), free_port()
        lines = [CONF.format(at=self.at, host=host, port=port)]
        for node in NODES:
            place = f"NodeHostname={host} NodeAddr=127.0.0.1 Port={free_port()}"
            lines.append(f"NodeName={node} {place} CPUs=4 RealMemory=4000 Gres=gpu:1 State=UNKNOWN")
        (self.at / "slurm.conf").write_text("\n".join(lines) + "\n")
        # Control groups are not used, but slurmd begins with them, and with those of version 2 wants systemd.
        (self.at / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        # Any character device stands for a GPU.
        (self.at / "gres.conf").write_text("NodeName=n[1-2] Name=gpu File=/dev/zero\n")
        self.env = environment(SLURM_CONF=str(self.at / "slurm.conf"), MASTER_ADDR="127.0.0.1")
        munged = ["munged", "--foreground", "--force", f"--key-file={key}", "--num-threads=2"]
        munged += [f"--socket={self.at}/run/munge.socket", f"--pid-file={self.at}/run/munged.pid"]
        munged += [f"--log-file={self.at}/log/munged.log", f"--seed-file={self.at}/key/seed"]
        try:
            self.start(munged)
        except Exception as error:
            note(f"SLURM does not start: {error}\n{self.logs()}")
            self.stop()
            raise

    def start(self, munged):
        self.daemon(*munged)
        wait_until("munge listens", (self.at / "run/munge.socket").exists)
        self.daemon("slurmctld", "-D")
        for node in NODES:
            self.daemon("slurmd", "-D", "-N", node)
        states = lambda: self.tell("sinfo", "-h", "-N", "-p", "main", "-o", "%t")
        wait_until("two nodes are idle", lambda: states().count("idle") == 2)
        munge = tool("munged", "--version").split(" (")[0]
        note_started(f"{self.tell('sbatch', '--version')} with {munge}", "slurmctld, slurmd n1 and n2")

    def daemon(self, *command):
        with open(self.at / "log" / f"{command[0]}.out", "a") as log:
            options = {"stdin": subprocess.DEVNULL, "stdout": log, "stderr": log, "start_new_session": True}
            self.processes.append(spawn(command, env=self.env, **options))

    def tell(self, *words, **more):
        return tool(*words, env=self.env | more)

    def submit(self, *words, **more):
        return self.tell("sbatch", "--parsable", *words, **more)

    def srun(self, tasks, *command, **more):
        """Runs a command as so many tasks, spread over the nodes; what they print, with each task's number before."""
        words = ["--ntasks", tasks, "--nodes", min(tasks, len(NODES)), "--mem=500M", "--label", "--kill-on-bad-exit=1"]
        return self.tell("srun", *words, *command, **more)

    def field(self, job, name):
        """A field of a job, such as JobState."""
        found = re.search(rf"\b{name}=(\S*)", self.tell("scontrol", "--oneliner", "show", "job", job))
        return found.group(1) if found else ""

    def state(self, job):
        return self.field(job, "JobState")

    def wait(self, job, *states, seconds=300):
        """Waits until the job is in one of these states."""
        try:
            return wait_until(f"job {job} is {states}", lambda: (now := self.state(job)) in states and now, seconds)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.logs()}") from None

    def logs(self):
        """The last lines of the daemons."""
        files = sorted((self.at / "log").iterdir())
        return "\n".join(f"{file.name}: {file.read_text(errors='replace')[-1500:]}" for file in files)

    def skip_hold(self, job):
        """After a requeue: waits until the job is pending, and skips SLURM's hold of two minutes."""
        self.wait(job, "PENDING")
        # Any sooner, and the job fails with "Job credential revoked".
        time.sleep(4)
        self.tell("scontrol", "update", f"JobId={job}", "StartTime=now")

    def no_job_is_left(self):
        """Cancels all jobs, again in each look: one that requeues itself as it ends is pending afterwards."""
        everything = ["scancel", "-u", tool("id", "-un")]
        subprocess.run(everything, env=self.env, check=False, timeout=30, capture_output=True)
        left = self.tell("squeue", "-h", "-t", "PD,R,CG,CF", "-o", "%i %T %r %N")
        if left:
            raise AssertionError(left)
        return True

    def stop(self):
        running.remove(self)
        # slurmstepd outlives its slurmd, so jobs end first.
        try:
            wait_until("no job is left", self.no_job_is_left, 300, every=3)
        except AssertionError as error:
            note(f"{error}\n{self.logs()}")
            raise
        finally:
            for process in reversed(self.processes):
                stop(process)
            shutil.rmtree(self.at, ignore_errors=True)
