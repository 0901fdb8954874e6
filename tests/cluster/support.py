"""What the tests of this folder share: the program, images, a reference run, processes that end by their id."""

import atexit
import contextlib
import functools
import hashlib
import http.client
import io
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORK = Path(os.environ.get("CLUSTER_WORK") or ROOT / "target/test-cluster").resolve()
INSTDISC = Path(os.environ.get("INSTDISC") or ROOT / "target/debug/instdisc").resolve()
# What is installed for the tests, once for all that run at the same time.
TOOLS = Path(os.environ.get("CLUSTER_TOOLS") or WORK).resolve()
AZURITE = TOOLS / "azurite"
KUBECTL = TOOLS / "kubectl/kubectl"
LIBTORCH = Path(os.environ.get("LIBTORCH") or ROOT / ".libtorch").resolve()

# A network that a CPU trains in a moment; the same everywhere, so that banks can be compared bit for bit.
TRAIN = (
    "--arch resnet20-cifar --image-size 16 --dim 16 --batch-size 16 --negatives 32 --device cpu --no-monitor "
    "--loader-threads 1"
).split()
EPOCHS = 12
DATA, UNAVAILABLE, IO, STOPPED, CONFIG = 65, 69, 74, 75, 78


def note(text):
    """Says something beside the tests' own lines."""
    print(f"   .. {text}", file=sys.stderr, flush=True)


# Every server that was started, by name and version, without repetitions.
started_servers = []


def note_started(server, place):
    """Says which server was started, and remembers it for the summary."""
    if server not in started_servers:
        started_servers.append(server)
    note(f"started: {server}, {place}")


def environment(**more):
    """The environment of the program: no credentials of the caller's, one thread for tensors."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("AWS_", "AZURE_", "INSTDISC_", "SLURM_"))}
    paths = f"{WORK / 'bin'}:{kept['PATH']}"
    # A proxy is for the world outside.
    kept |= {"NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost"}
    return kept | {"OMP_NUM_THREADS": "1", "LD_LIBRARY_PATH": f"{LIBTORCH}/lib", "PATH": paths} | more


def scratch(name):
    """An empty folder."""
    folder = WORK / name
    if folder.is_mount():
        # Left by a run that was killed.
        tool("umount", folder)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


class Result:
    def __init__(self, command, code, out, err, seconds):
        self.command, self.code, self.out, self.err, self.seconds = command, code, out, err, seconds

    @property
    def json(self):
        return json.loads(self.out)

    @property
    def traffic(self):
        """What the program says that it asked of its store."""
        line = [line for line in self.err.splitlines() if line.startswith("object store: ")]
        return line[-1] if line else ""

    @property
    def requests(self):
        return int(self.traffic.split()[2]) if self.traffic else 0

    @property
    def faults(self):
        """How many faults the program says that its retries met."""
        return int(self.traffic.split("; ")[1].split()[0]) if "; " in self.traffic else 0


def spawn(command, **options):
    """Starts a process that is killed where this one ends without having stopped it, whatever ended this one."""
    command = [str(word) for word in command]
    process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *command], **options)
    process.args = command
    return process


# What has to be stopped yet; it is at the end, the last first, where a test did not come to it.
running = []


@atexit.register
def stop_all():
    for server in reversed(list(running)):
        note(f"stopping {type(server).__name__}, which is still there")
        server.stop()


def start(*words, env=None, **options):
    """Starts the program."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True} | options
    return spawn([INSTDISC, *words], env=env or environment(), **options)


def finish(process, code=0, timeout=300):
    """Waits for the program, which must end with this code (or one of these)."""
    began = time.monotonic()
    try:
        out, err = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"{process.args} did not end in {timeout} s\n{err[-3000:]}") from None
    codes = code if isinstance(code, (set, tuple)) else {code}
    assert process.returncode in codes, f"{process.args}: {process.returncode}, not {codes}\n{err[-3000:]}"
    return Result(process.args, process.returncode, out, err, time.monotonic() - began)


def run(*words, code=0, env=None, timeout=300):
    """Runs the program, which must end with this code."""
    return finish(start(*words, env=env), code, timeout)


def train(dataset, run_at, *more, epochs=EPOCHS, **options):
    """Trains the small network."""
    return run("train", "--dataset", dataset, "--run", run_at, *TRAIN, "--epochs", epochs, *more, **options)


@functools.cache
def images():
    """160 images of 10 classes, in two splits."""
    folder = WORK / "images"
    shutil.rmtree(folder, ignore_errors=True)
    run("synth", "--dest", folder, "--train-per-class", 12, "--val-per-class", 4, "--image-size", 32)
    return folder


@functools.cache
def dataset():
    """Their dataset on this machine."""
    folder = WORK / "dataset"
    shutil.rmtree(folder, ignore_errors=True)
    run("ingest", "--source", images(), "--dest", folder, *INGEST)
    return folder


INGEST = ["--row-group", "16", "--shard-size", "64KiB", "--threads", "2"]


@functools.cache
def reference(*more, epochs=EPOCHS):
    """The digest of the bank of a run on this machine that nothing disturbed."""
    folder = WORK / "-".join(["reference", str(epochs), *map(str, more)]).replace("---", "-")
    shutil.rmtree(folder, ignore_errors=True)
    train(dataset(), folder, *more, epochs=epochs)
    return digest(newest(folder) / "bank.arrow")


def packed():
    """The images as a tar of an ImageFolder."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as tar:
        for path in sorted(Path(images()).rglob("*")):
            if path.is_file():
                tar.add(path, path.relative_to(images()))
    return data.getvalue()


def whole_path(env, at, shuffle=("--shuffle", "exact")):
    """Ingest, train and watch, all below a URL; what each said."""
    data, run_at = f"{at}/dataset", f"{at}/run"
    said = [run("ingest", "--source", f"{at}/images.tar", "--dest", data, *INGEST, env=env)]
    said.append(train(data, run_at, *shuffle, "--checkpoint-every-epochs", EPOCHS // 2, env=env))
    watch = ["--watch", "--poll-interval", 1, "--k", 20]
    said.append(run("knn", "--run", run_at, "--dataset", data, *watch, env=env))
    return said


@functools.cache
def has_train():
    """Whether the program was built with libtorch."""
    done = subprocess.run([INSTDISC, "train", "--help"], env=environment(), capture_output=True)
    return done.returncode == 0


def skip_without_train(test):
    """Skips a test that needs `train`, and says so."""
    if not has_train():
        test.skipTest("the program was built without libtorch, so it has no train")


def newest(run_at):
    """The newest checkpoint of a run on this machine."""
    return max(path.parent for path in Path(run_at).glob("checkpoints/step-*/checkpoint.json"))


class Store:
    """A server on loopback, by its `port`, with `get` and `keys`."""

    def ask(self, method, target, body, headers):
        """The answer's body; an answer that is an error fails."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        connection.request(method, target, body, headers)
        answer = connection.getresponse()
        data = answer.read()
        connection.close()
        assert answer.status < 300, f"{method} {target}: {answer.status} {data[:300]}"
        return data

    def newest_bank(self, run):
        """The bank of the newest whole checkpoint of a run."""
        done = [key for key in self.keys(f"{run}/checkpoints/") if key.endswith("/checkpoint.json")]
        return self.get(f"{max(done).rsplit('/', 1)[0]}/bank.arrow")


def dataset_digest(location, **options):
    return run("inspect", location, **options).json["dataset_digest"]


def digest(path_or_bytes):
    data = path_or_bytes if isinstance(path_or_bytes, bytes) else Path(path_or_bytes).read_bytes()
    return hashlib.sha256(data).hexdigest()


def wait_until(what, condition, seconds=120, every=0.1):
    """Waits for a condition; its value. Who is asked may fail to answer for a while."""
    deadline, last = time.monotonic() + seconds, ""
    while time.monotonic() < deadline:
        try:
            if value := condition():
                return value
            last = ""
        except (AssertionError, OSError, subprocess.TimeoutExpired) as error:
            last = f"; last it failed: {error}"
        time.sleep(every)
    raise AssertionError(f"after {seconds} s still not: {what}{last}")


def is_open(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
        return True
    return False


given_ports = set()


def free_port():
    """A port on which nobody listens, below those that the system gives to outgoing connections."""
    while True:
        port = random.randrange(15000, 32000)
        with contextlib.suppress(OSError), socket.socket() as listener:
            listener.bind(("127.0.0.1", port))
            if port not in given_ports:
                given_ports.add(port)
                return port


def stop(process, grace=5):
    """Ends a process that we started, by its id."""
    if process.poll() is not None:
        return
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(grace)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def tool(*words, **options):
    """Runs a tool, which must succeed; its output."""
    options = {"timeout": 300} | options
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, **options)
    assert done.returncode == 0, f"{words}: {done.returncode}\n{done.stdout[-2000:]}\n{done.stderr[-2000:]}"
    return done.stdout.strip()


def link_program():
    """Puts the program on the PATH of jobs."""
    folder = WORK / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "instdisc").unlink(missing_ok=True)
    (folder / "instdisc").symlink_to(INSTDISC)
