"""Compares a device with the CPU, and processes that train together with one alone. Prints the differences as JSON.

Needs PyTorch alone, and `instdisc` on the PATH. Run: DEVICE=cuda:0 python agree.py replay|objectives|train|graphs|ranks
Ends with 1 if a difference is larger than its bound.
"""

import json
import os
import signal
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch.nn.functional import normalize

DEVICE = os.environ.get("DEVICE", "cuda:0")
SMALL = DEVICE == "cpu"
ROWS, DIM, BATCH, NEGATIVES, STEPS = 5000, 128, 64, 512, 4
# With this temperature and rate a rounding error stays one; with those of a real run it grows from step to step.
TRAINING = "--objective nce --negatives 512 --temperature 1 --lr 0.00002 --batch-size 64 --no-monitor --log-every-steps 1"


def write(path, tensors):
    """A safetensors file: the header's length, the header, the bytes."""
    header, parts, offset = {}, [], 0
    for name, tensor in tensors.items():
        kind = {torch.float32: "F32", torch.int64: "I64"}[tensor.dtype]
        part = bytes(tensor.contiguous().view(-1).view(torch.uint8).tolist())
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [offset, offset + len(part)]}
        parts.append(part)
        offset += len(part)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(parts))


def read(path):
    data = path.read_bytes()
    length = struct.unpack("<Q", data[:8])[0]
    kinds = {"F32": torch.float32, "F64": torch.float64, "I64": torch.int64}
    tensors = {}
    for name, entry in json.loads(data[8 : 8 + length]).items():
        start, end = entry["data_offsets"]
        part = bytearray(data[8 + length + start : 8 + length + end])
        tensors[name] = torch.frombuffer(part, dtype=kinds[entry["dtype"]]).view(entry["shape"])
    return tensors


def instdisc(*words, before=()):
    return subprocess.run([*before, "instdisc", *map(str, words)], check=True, stdout=subprocess.PIPE).stdout


def losses(folder, name, words, before=()):
    """The loss of each step of a training on the bundle's drawn images."""
    run = folder / name
    instdisc("train", "--dataset", "drawn", "--run", run, *TRAINING.split(), *words, before=before)
    lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return torch.tensor([line["loss"] for line in lines if line["scope"] == "interval"])


def difference(values, expected, floor=0.0):
    """The largest relative one; `floor` is added to what it is relative to."""
    assert values.shape == expected.shape and values.numel() > 0, (values.shape, expected.shape)
    return ((values - expected).abs() / (expected.abs() + floor)).max().item()


def replay(folder):
    """Losses, gradients and banks on given tensors."""
    torch.manual_seed(1)
    tensors = {"bank": normalize(torch.randn(ROWS, DIM))}
    for step in range(STEPS):
        tensors[f"features_{step}"] = normalize(torch.randn(BATCH, DIM))
        tensors[f"ids_{step}"] = torch.randperm(ROWS)[:BATCH]
        tensors[f"negatives_{step}"] = torch.randint(ROWS, (BATCH, NEGATIVES))
    given, output = folder / "given.safetensors", folder / "output.safetensors"
    write(given, tensors)
    for objective in ["nce", "nce --partition ema", "infonce --exclude-positive", "softmax --proximal-weight 0.5"]:
        results = []
        for device in ["cpu", DEVICE]:
            words = ["--input", given, "--output", output, "--device", device, "--blocks", 3]
            instdisc("replay", *words, "--objective", *objective.split())
            results.append(read(output))
        expected, found = results
        assert found.keys() == expected.keys() and len(expected) >= 3 * STEPS, found.keys()
        yield objective, max(difference(found[name], expected[name], 0.01) for name in expected), 1e-4


def objectives(_folder):
    """Losses over many rows: the same draws, the same sums up to rounding."""
    rows = 2000 if SMALL else 100_000
    for objective in ["nce", "infonce", "softmax"]:
        words = ["--objective", objective, "--instances", rows, "--repeats", 1, "--device"]
        on_cpu, on_device = (
            json.loads(instdisc("bench", "objective", *words, device))["loss"] for device in ["cpu", DEVICE]
        )
        yield objective, abs(on_device - on_cpu) / abs(on_cpu), 1e-5


def train(folder):
    """The first losses of a small run, also with batch norm by the kernels for several processes."""
    words = f"--arch resnet20-cifar --image-size 32 --limit {128 if SMALL else 320} --epochs 1".split()
    kernels, bf16 = ["--sync-batch-norm"], ["--precision", "bf16", "--channels-last"]

    def of(name, *more, device=DEVICE):
        return losses(folder, f"run-{name}", [*words, *more, "--device", device])

    plain, rounded = of("plain"), of("bf16", *bf16)
    yield f"{len(plain)} steps", difference(plain, of("cpu", device="cpu")), 1e-3
    yield "batch norm over processes, f32", difference(of("kernels", *kernels), plain), 1e-3
    yield "batch norm over processes, bf16", difference(of("bf16-kernels", *bf16, *kernels), rounded), 1e-2


def graphs(folder):
    """A training whose passes are recorded as CUDA graphs, with a short batch in each epoch, beside one without."""
    words = "--arch resnet20-cifar --image-size 32 --limit 300 --epochs 4".split()
    for name, more in [("f32", []), ("bf16", ["--precision", "bf16", "--channels-last"])]:
        plain, recorded = (
            losses(folder, f"{name}{len(flag)}", [*words, *more, *flag, "--device", DEVICE])
            for flag in ([], ["--cuda-graphs"])
        )
        yield f"{name}, {len(plain)} steps", difference(recorded, plain), 1e-3 if name == "f32" else 1e-2


def ranks(folder):
    """Steps whose gradients go through NCCL (gloo on a CPU): of one process, and of two where there are two GPUs."""
    words = ["--sync-batch-norm", "--arch", "resnet18", "--image-size", 64, "--epochs", 2]
    if SMALL:
        words = ["--sync-batch-norm", "--arch", "resnet20-cifar", "--image-size", 32, "--limit", 320, "--epochs", 1]
    alone = losses(folder, "alone", [*words, "--device", DEVICE])
    world = ["--rank", 0, "--world-size", 1, "--master", "127.0.0.1:29511", "--device", DEVICE]
    yield f"one process, {len(alone)} steps", difference(losses(folder, "one", [*words, *world]), alone), 1e-3
    if not SMALL and torch.cuda.device_count() > 1:
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--no-python", "--nproc-per-node", "2", "--"]
        yield "two processes", difference(losses(folder, "two", words, before=torchrun), alone), 1e-3


def main():
    # So that what is under way is ended too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    what = {"replay": replay, "objectives": objectives, "train": train, "graphs": graphs, "ranks": ranks}[sys.argv[1]]
    found, wrong = {}, []
    with tempfile.TemporaryDirectory() as folder:
        try:
            for name, value, bound in what(Path(folder)):
                found[f"difference, {name}"] = value
                if not value <= bound:
                    wrong.append(f"{name}: {value:.1e}, expected at most {bound:.0e}")
        except subprocess.CalledProcessError as error:
            wrong.append(f"exit code {error.returncode}: {' '.join(error.cmd)}")
    print(json.dumps({"device": DEVICE} | found, indent=2))
    sys.exit("error: " + "; ".join(wrong) if wrong else 0)


main()
