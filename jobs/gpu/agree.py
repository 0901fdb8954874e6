"""Compares the GPU with the CPU: `instdisc replay` on given tensors, and the first steps of two small runs.

Needs PyTorch alone. Run: python agree.py ./instdisc [DEVICE]   (cuda:0 by default)
"""

import json
import struct
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch.nn.functional import normalize

PROGRAM, DEVICE = sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "cuda:0"
ROWS, DIM, BATCH, NEGATIVES, STEPS = 5000, 128, 64, 512, 4
OBJECTIVES = ["nce", "nce --partition ema", "infonce --exclude-positive", "softmax --proximal-weight 0.5"]


def write(path, tensors):
    """A safetensors file: the header's length, the header, the bytes."""
    header, parts, offset = {}, [], 0
    for name, tensor in tensors.items():
        kind = {torch.float32: "F32", torch.int64: "I64"}[tensor.dtype]
        part = tensor.contiguous().numpy().tobytes()
        places = [offset, offset + len(part)]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": places}
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


def instdisc(*words):
    subprocess.run([PROGRAM, *words], check=True, stdout=subprocess.DEVNULL)


def replay(folder):
    torch.manual_seed(1)
    tensors = {"bank": normalize(torch.randn(ROWS, DIM))}
    for step in range(STEPS):
        tensors[f"features_{step}"] = normalize(torch.randn(BATCH, DIM))
        tensors[f"ids_{step}"] = torch.randperm(ROWS)[:BATCH]
        tensors[f"negatives_{step}"] = torch.randint(ROWS, (BATCH, NEGATIVES))
    given = folder / "given.safetensors"
    write(given, tensors)
    for objective in OBJECTIVES:
        results = []
        for device in ["cpu", DEVICE]:
            output = folder / f"{device.partition(':')[0]}.safetensors"
            words = ["--input", given, "--output", output, "--device", device, "--blocks", "3", "--objective"]
            instdisc("replay", *words, *objective.split())
            results.append(read(output))
        on_cpu, on_gpu = results
        assert on_cpu.keys() == on_gpu.keys() and len(on_cpu) >= 3 * STEPS
        for name, expected in on_cpu.items():
            torch.testing.assert_close(on_gpu[name], expected, rtol=1e-4, atol=1e-6, msg=f"{objective}: {name}")
        print(f"replay {objective}: {len(on_cpu)} tensors agree")


def train(folder):
    instdisc("synth", "--dest", folder / "images", "--train-per-class", "16", "--val-per-class", "2")
    instdisc("ingest", "--source", folder / "images", "--dest", folder / "dataset")
    losses = []
    for device in ["cpu", DEVICE]:
        run = folder / f"run-{device.partition(':')[0]}"
        options = "--arch resnet20-cifar --image-size 32 --dim 32 --batch-size 32 --objective nce --negatives 64 --epochs 1"
        more = "--no-monitor --log-every-steps 1"
        words = ["--dataset", folder / "dataset", "--run", run, "--device", device]
        instdisc("train", *words, *options.split(), *more.split())
        lines = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
        losses.append([line["loss"] for line in lines if line["scope"] == "interval"])
    first = [tuple(pair) for pair in zip(*losses)][:4]
    assert len(first) >= 2, losses
    assert all(abs(a - b) <= 1e-3 * abs(a) for a, b in first), first
    print(f"train: the first losses agree: {first}")


with tempfile.TemporaryDirectory() as folder:
    replay(Path(folder))
    train(Path(folder))
