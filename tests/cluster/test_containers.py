"""The images of jobs/container and the pods of jobs/kubernetes, run by podman: non-root, read-only, SIGTERM."""

import base64
import copy
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import time
import unittest
import urllib.request
from pathlib import Path

from s3 import BUCKET, Ceph
from support import (
    INGEST, INSTDISC, LIBTORCH, ROOT, STOPPED, TRAIN, WORK, dataset, dataset_digest, free_port, note, note_started,
    images, run, scratch, tool, wait_until,
)
from test_manifests import built

# What is not there on some machines: systemd, hybrid control groups under crun, a high limit of open files.
CONF = """
[containers]
default_ulimits = ["nofile={files}:{files}", "nproc=4096:4096"]
log_driver = "k8s-file"
[engine]
cgroup_manager = "cgroupfs"
events_logger = "file"
runtime = "runc"
[network]
network_backend = "netavark"
"""
BASE = "docker.io/library/debian:12.11-slim"
RUST = "docker.io/library/rust:1.90.0-slim-bookworm"
# Debian with this machine's Rust and the crates that it has fetched already. It need not be fast.
RUST_FILE = f"""
FROM {BASE}
ENV PATH=/opt/rust/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \\
    CARGO_HOME=/opt/cargo CARGO_NET_OFFLINE=true CARGO_PROFILE_RELEASE_OPT_LEVEL=0 CARGO_PROFILE_RELEASE_DEBUG=false \\
    PIP_CERT=/opt/certificates.crt
"""
USER = 10001
# Open files of a process: what this machine allows, where that is little.
FILES = min(20000, resource.getrlimit(resource.RLIMIT_NOFILE)[1])
# How the names of the pods begin.
PODS = "instdisc-test-"
# Where this machine keeps those that it trusts, for pip.
CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")


def podman(*words, check=True, timeout=300):
    env = os.environ | {"CONTAINERS_CONF": str(WORK / "containers.conf")}
    done = subprocess.run(["podman", *map(str, words)], capture_output=True, text=True, env=env, timeout=timeout)
    assert not check or done.returncode == 0, f"podman {words}: {done.returncode}\n{done.stderr[-3000:]}"
    return done.stdout.strip()


def make_base():
    """Debian's minimal system as the base that the Dockerfile names, which no registry is asked for."""
    archive = WORK / "debian.tar"
    if podman("images", "-q", BASE):
        return
    if not archive.exists():
        # The mirror that this machine uses for Debian, where it does; else mmdebstrap knows one.
        fields = "$(ORIGIN) $(CODENAME) $(REPO_URI)"
        targets = tool("apt-get", "indextargets", "--format", fields, "Created-By: Packages")
        mirrors = [line.split()[2] for line in targets.splitlines() if line.startswith("Debian bookworm ")]
        unfinished = WORK / "debian-unfinished.tar"
        retries = '--aptopt=Acquire::Retries "10"'
        tool("mmdebstrap", "--variant=minbase", retries, "bookworm", unfinished, *mirrors[:1], timeout=1800)
        unfinished.rename(archive)
    podman("import", archive, BASE)


def own_stages():
    """Options with which a build compiles the wheel and fetches libtorch itself, on a stand-in for Rust's image."""
    rust = scratch("image-rust")
    (rust / "Containerfile").write_text(RUST_FILE)
    podman("build", "--pull=never", "-t", RUST, rust)
    sysroot = tool("rustc", "--print", "sysroot", cwd=ROOT)
    crates = Path(os.environ.get("CARGO_HOME") or Path.home() / ".cargo") / "registry"
    # What was compiled is kept for the next time; it is no part of the image.
    compiled = WORK / "image-target"
    compiled.mkdir(exist_ok=True)
    volumes = [f"{sysroot}:/opt/rust:ro", f"{crates}:/opt/cargo/registry", f"{compiled}:/build/target"]
    if CERTIFICATES.exists():
        volumes.append(f"{CERTIFICATES}:/opt/certificates.crt:ro")
    return [word for volume in volumes for word in ("-v", volume)]


def stand_ins():
    """Options with which a build takes the wheel that was built here, and the CPU's part of libtorch."""
    (wheel,) = ROOT.glob("target/wheels/dev/*.whl")
    assert wheel.stat().st_mtime >= INSTDISC.stat().st_mtime, f"{wheel} is older than {INSTDISC}: make test-wheel"
    wheels, libtorch = scratch("image-wheel"), scratch("image-libtorch")
    shutil.copy(wheel, wheels)
    copy_libtorch(libtorch)
    return ["--build-context", f"wheel={wheels}", "--build-context", f"libtorch={libtorch}"]


def copy_libtorch(context):
    """What stage `libtorch` of the Dockerfile holds, but for what needs a GPU."""
    lib = context / "torch/lib"
    lib.mkdir(parents=True)
    shutil.copy(LIBTORCH / "version.py", lib.parent)
    for name in ("libtorch.so", "libtorch_cpu.so", "libc10.so", "libgomp.so.1"):
        shutil.copy(LIBTORCH / "lib" / name, lib)
    nvidia = LIBTORCH.resolve().parent / "nvidia"
    for file in [*nvidia.rglob("libcudart.so*"), *nvidia.rglob("libcupti.so*")]:
        target = context / file.relative_to(nvidia.parent)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file, target)


def build(target, options):
    """Builds a target of the Dockerfile."""
    began = time.monotonic()
    image = f"localhost/instdisc-{target}:dev"
    words = ["--pull=never", "--network=host", "--ulimit", f"nofile={FILES}:{FILES}", "--target", target, "-t", image]
    podman("build", *words, *options, "-f", ROOT / "jobs/container/Dockerfile", ROOT, timeout=7200)
    megabytes = int(podman("image", "inspect", "--format", "{{.Size}}", image)) / 1e6
    stages = "the wheel of this checkout" if "--build-context" in options else tool("rustc", "--version", cwd=ROOT)
    note(f"built: {image}, {megabytes:.0f} MB, with {stages}, in {time.monotonic() - began:.0f} s")
    return image


class Containers(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        (WORK / "containers.conf").write_text(CONF.format(files=FILES))
        hello = podman("info", "--format", "{{.Host.OCIRuntime.Name}}", check=False)
        if not hello:
            raise unittest.SkipTest("not run: podman does not work here")
        names = podman("pod", "ls", "--format", "{{.Name}}").split()
        # Their last part is the process that made them.
        left = [name for name in names if name.startswith(PODS) and not Path("/proc", name.split("-")[-1]).exists()]
        if left:
            podman("pod", "rm", "--force", "--time", 1, *left)
        make_base()
        # Half an hour of compiling, and 10 GB of CUDA's libraries: on demand.
        options = own_stages() if os.environ.get("CLUSTER_BUILD_IMAGES") else stand_ins()
        cls.train = build("train", options)
        cls.tools = build("cpu-tools", options)
        buildah = tool("buildah", "--version").split(" (")[0]
        note_started(f"{podman('--version')} with {hello}, {buildah}", "pods and images")
        cls.store = Ceph("ceph-containers")

    @classmethod
    def tearDownClass(cls):
        cls.store.stop()
        for name in ("train", "cpu-tools"):
            podman("rmi", "--force", f"localhost/instdisc-{name}:dev", check=False)

    def play(self, name, image, more, locations, mounts=()):
        """Runs the pod template of a job as the manifests have it, with more options; its container."""
        import yaml

        (spec,) = [item["spec"] for item in built("overlays/local") if item["metadata"]["name"] == f"instdisc-{name}"
                   and item["kind"] == "Job"]
        pod = copy.deepcopy(spec["template"]["spec"])
        container = pod["containers"][0]
        # podman 4.3 plays pods, not jobs; it has no service accounts, and no names of other pods.
        for key in ("serviceAccountName", "automountServiceAccountToken", "subdomain"):
            pod.pop(key, None)
        pod["hostNetwork"] = True
        # Without a network of its own a pod forwards no ports.
        container.pop("ports", None)
        # Control groups for limits are not everywhere; their values are checked in test_manifests.
        container.pop("resources", None)
        (config_map,) = [copy.deepcopy(item) for item in built("overlays/local") if item["kind"] == "ConfigMap"]
        config_map["data"] |= {"AWS_ENDPOINT": f"http://127.0.0.1:{self.store.port}"} | locations
        more = [str(word) for word in more]
        given = {word.split("=")[0] for word in more}
        args = [arg for arg in container["args"] if arg.split("=")[0] not in given]
        # What the kubelet does and podman 4.3 does not.
        args = [re.sub(r"\$\((\w+)\)", lambda name: config_map["data"][name.group(1)], arg) for arg in args]
        container.update(image=image, imagePullPolicy="Never", args=args + more)
        # The index is given by the control plane.
        container.setdefault("env", []).append({"name": "JOB_COMPLETION_INDEX", "value": "0"})
        container["env"].append({"name": "OMP_NUM_THREADS", "value": "1"})
        for number, (path, at) in enumerate(mounts):
            volume = {"name": f"host{number}", "hostPath": {"path": str(path), "type": "Directory"}}
            pod["volumes"].append(volume)
            container["volumeMounts"].append({"name": f"host{number}", "mountPath": at})
        pod_name = f"{PODS}{name}-{os.getpid()}"
        manifest = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": pod_name}, "spec": pod}
        file, config = WORK / f"{pod_name}.yaml", WORK / f"{pod_name}-locations.yaml"
        file.write_text(yaml.safe_dump(manifest))
        config.write_text(yaml.safe_dump(config_map))
        self.addCleanup(podman, "pod", "rm", "-f", "-t", 1, pod_name, check=False)
        podman("kube", "play", "--configmap", config, file)
        return f"{pod_name}-{container['name']}"

    def secret(self):
        """The Secret that the manifests name, with the server's keys, in the form in which podman 4.3 reads one."""
        data = {"AWS_ACCESS_KEY_ID": self.store.key, "AWS_SECRET_ACCESS_KEY": self.store.secret}
        file = WORK / "secret.json"
        file.write_text(json.dumps({name: base64.b64encode(value.encode()).decode() for name, value in data.items()}))
        podman("secret", "rm", "instdisc-credentials", check=False)
        podman("secret", "create", "instdisc-credentials", file)
        file.unlink()
        self.addCleanup(podman, "secret", "rm", "instdisc-credentials", check=False)

    def end(self, container, code=0, seconds=180):
        ended = lambda: podman("inspect", "--format", "{{.State.Status}}", container) == "exited"
        self.wait_for(f"{container} ends", ended, container, seconds)
        log = self.log(container)
        found = int(podman("inspect", "--format", "{{.State.ExitCode}}", container))
        self.assertEqual(found, code, log[-3000:])
        return log

    def wait_for(self, what, condition, container, seconds):
        """Waits for something that a container does."""
        try:
            return wait_until(what, condition, seconds, every=0.5)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log(container)[-3000:]}") from None

    def log(self, container):
        env = os.environ | {"CONTAINERS_CONF": str(WORK / "containers.conf")}
        words = ["podman", "logs", container]
        return subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=env).stdout

    def test_the_pods_ingest_train_and_evaluate_and_a_sigterm_in_training_saves_a_checkpoint(self):
        self.secret()
        at = f"s3://{BUCKET}/pods"
        where = {"SOURCE": "/images", "DATASET": f"{at}/dataset", "RUN": f"{at}/run"}
        self.end(self.play("ingest", self.tools, INGEST, where, [(images(), "/images")]))
        self.assertEqual(dataset_digest(f"{at}/dataset", env=self.store.env()), dataset_digest(dataset()))
        # The pod has no network of its own here, and its port may be taken.
        listen = f"--metrics-listen=127.0.0.1:{free_port()}"
        container = self.play("train", self.train, [listen, *TRAIN, "--epochs", 3000], where)

        def step():
            # No proxy is asked for what is on this machine.
            opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
            with opener.open(f"http://{listen.split('=')[1]}/metrics", timeout=10) as answer:
                found = re.search(r"^instdisc_step (\S+)", answer.read().decode(), re.MULTILINE)
            # Nothing before the first step.
            return float(found.group(1)) if found else 0

        self.wait_for("it trains", lambda: step() > 0, container, 180)
        began = time.monotonic()
        podman("kill", "--signal", "TERM", container)
        log = self.end(container, code=STOPPED, seconds=60)
        note(f"SIGTERM to process 1: exit code 75 after {time.monotonic() - began:.1f} s")
        self.assertNotIn("Permission denied", log)
        steps = sorted(key.split("/")[3] for key in self.store.keys("pods/run/") if key.endswith("checkpoint.json"))
        self.assertGreater(int(steps[-1].removeprefix("step-")), 0)
        run("inspect", "--verify", f"{at}/run/checkpoints/{steps[-1]}", env=self.store.env())
        watcher = self.play("knn", self.train, [], where)
        reports = lambda: [key for key in self.store.keys("pods/run/eval/") if key.endswith(".json")]
        self.wait_for(f"each of {steps} has its report", lambda: len(reports()) == len(steps), watcher, 180)
        # The run is not finished, so it watches on. It has nothing to save, and must not wait to be killed.
        began = time.monotonic()
        podman("kill", "--signal", "TERM", watcher)
        self.end(watcher, code=128 + signal.SIGTERM, seconds=20)
        note(f"SIGTERM to a watcher as process 1: exit code 143 after {time.monotonic() - began:.1f} s")

    def test_the_program_is_process_1_runs_as_nobody_special_and_cannot_change_its_image(self):
        image = self.tools
        words = ["run", "--rm", "--network=none", "--read-only", "--entrypoint", "/bin/sh", image, "-c"]
        shown = podman(*words, "id -u; touch /usr/x 2>&1 || true")
        self.assertIn(str(USER), shown)
        self.assertIn("Read-only file system", shown)
        entry = podman("image", "inspect", "--format", "{{json .Config.Entrypoint}}", image)
        self.assertEqual(entry, '["/opt/instdisc/bin/instdisc"]')

    def test_the_small_image_has_no_libtorch_and_ingests(self):
        at = scratch("image-ingest")
        at.chmod(0o777)
        mounts = ["-v", f"{images()}:/images:ro", "-v", f"{at}:/out"]
        words = ["run", "--rm", "--network=none", "--read-only", *mounts, self.tools, "ingest", "--source", "/images"]
        podman(*words, "--dest", "/out/dataset", *INGEST)
        self.assertEqual(dataset_digest(at / "dataset"), dataset_digest(dataset()))
        files = podman("run", "--rm", "--network=none", "--entrypoint", "/bin/ls", self.tools, "-R", "/opt")
        self.assertEqual(files.split(), ["/opt:", "instdisc", "/opt/instdisc:", "bin", "/opt/instdisc/bin:", "instdisc"])


if __name__ == "__main__":
    unittest.main()
