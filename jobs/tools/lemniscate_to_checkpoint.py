"""Turns a checkpoint of lemniscate.pytorch (.pth.tar) into one of instdisc's.

    python jobs/tools/lemniscate_to_checkpoint.py lemniscate_resnet18.pth.tar \\
        --dataset /data/in1k --arch resnet18 --output /runs/lemniscate/checkpoints/step-01001000

What is taken: the network's weights (`state_dict`, with DataParallel's `module.` before each name), and, where
the file has it, the memory bank. lemniscate pickles a whole module as `lemniscate`; its class is not needed
here, a stand-in takes its place, and of its state only `memory` and `params` (K, tau, Z, momentum) are read.
Row i of that bank is image i of a sorted ImageFolder, which is the instance id of a dataset that `instdisc
ingest` made with no image refused. The result can be embedded, inspected and evaluated; a run cannot go on from
it, as the file has no optimiser state in our form.

Pickles can run code: open only files that you trust. Needs torch, numpy, safetensors, pyarrow, blake3.
"""

import argparse
import json
import pickle
import re
import warnings
from pathlib import Path

import blake3
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import save_file

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class StandIn(torch.nn.Module):
    """Takes the place of lemniscate's own classes, which are not importable here."""


class Unpickler(pickle.Unpickler):
    def find_class(self, module, name):
        if module.split(".")[0] in ("lib", "models", "datasets"):
            return StandIn
        return super().find_class(module, name)


class PickleModule:
    """What torch.load asks of a pickle module."""

    Unpickler = Unpickler
    load = staticmethod(pickle.load)


def read(path):
    # Old files carry the source of pickled classes, and it is not the stand-in's.
    warnings.simplefilter("ignore", torch.serialization.SourceChangeWarning)
    return torch.load(path, map_location="cpu", pickle_module=PickleModule, weights_only=False)


def weights(checkpoint):
    state = checkpoint["state_dict"]
    named = {re.sub(r"^module\.", "", name): tensor.float().contiguous() for name, tensor in state.items()}
    return {name: tensor for name, tensor in named.items() if not name.endswith("num_batches_tracked")}


def memory(checkpoint):
    """Bank and (K, tau, Z, momentum), or None for each that the file lacks."""
    lemniscate = checkpoint.get("lemniscate")
    if lemniscate is None:
        return None, None
    buffers = getattr(lemniscate, "_buffers", {})
    params = buffers.get("params")
    return buffers.get("memory"), None if params is None else params.tolist()


def labels_by_id(dataset, split):
    labels = np.full(split["instances"], -1, dtype=np.int64)
    for shard in split["shards"]:
        table = pq.read_table(dataset / shard["path"], columns=["instance_id", "label"])
        labels[table["instance_id"].to_numpy()] = table["label"].to_numpy()
    return labels


def bank_table(rows, labels, about):
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = (rows / np.maximum(lengths, 1e-12)).astype(np.float32)
    fields = [
        pa.field("instance_id", pa.int64(), nullable=False),
        pa.field("feature", pa.list_(pa.field("item", pa.float32(), nullable=False), rows.shape[1]), nullable=False),
        pa.field("label", pa.int64()),
        pa.field("updated_step", pa.int64()),
    ]
    metadata = {f"instdisc.{key}": value if isinstance(value, str) else json.dumps(value) for key, value in about.items()}
    schema = pa.schema(fields, metadata=metadata)
    values = pa.FixedSizeListArray.from_arrays(pa.array(rows.reshape(-1)), type=fields[1].type)
    columns = [
        pa.array(np.arange(len(rows), dtype=np.int64)),
        values,
        pa.array(labels, mask=labels < 0),
        pa.nulls(len(rows), pa.int64()),
    ]
    return pa.Table.from_arrays(columns, schema=schema)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("--dataset", type=Path, required=True, help="the dataset that instdisc ingest made")
    parser.add_argument("--split", default="train")
    parser.add_argument("--arch", required=True, help="resnet18, resnet50, ...")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--output", type=Path, required=True, help="<run>/checkpoints/step-<number>")
    args = parser.parse_args()

    number = re.fullmatch(r"step-(\d+)", args.output.name)
    if number is None:
        parser.error(f"--output: its last part is step-<number>, not {args.output.name}")
    if (args.output / "checkpoint.json").exists():
        parser.error(f"--output: {args.output} is a checkpoint already")
    manifest = json.loads((args.dataset / "manifest.json").read_text())
    if args.split not in manifest["splits"]:
        parser.error(f"--split: the dataset has {', '.join(manifest['splits'])}, not {args.split}")
    split = manifest["splits"][args.split]
    checkpoint = read(args.checkpoint)
    tensors = weights(checkpoint)
    if "fc.weight" not in tensors:
        raise SystemExit(f"error: the network in {args.checkpoint} has no fc.weight: it is no ResNet of lemniscate's")
    rows, params = memory(checkpoint)
    if rows is not None and len(rows) != split["instances"]:
        images = f"split {args.split} of {args.dataset} has {split['instances']} images"
        raise SystemExit(f"error: the bank in {args.checkpoint} has {len(rows)} rows, {images}")
    step = int(number.group(1))
    dim = tensors["fc.weight"].shape[0]
    args.output.mkdir(parents=True, exist_ok=True)
    save_file(tensors, args.output / "model.safetensors")
    names = ["model.safetensors", "state.json"]
    state = {
        "cursor": {"step": step, "epoch": int(checkpoint.get("epoch", 0)), "step_in_epoch": 0},
        "ln_partition": float(np.log(params[2])) if params and params[2] > 0 else None,
        "instances": split["instances"],
        "encoder": {
            "arch": args.arch,
            "dim": dim,
            "normalisation": {"mean": MEAN, "std": STD},
            "image_size": args.image_size,
            "evaluation_resize": args.image_size * 256 // 224,
        },
        "config": {"imported_from": args.checkpoint.name},
    }
    (args.output / "state.json").write_text(json.dumps(state, indent=2) + "\n")
    if rows is not None:
        about = {
            "format_version": "1",
            "kind": "bank",
            "layer": "projection",
            "dim": dim,
            "dataset_digest": manifest["dataset_digest"],
            "split": args.split,
            "step": step,
            "unit_length": True,
            "classes": manifest["classes"],
        }
        table = bank_table(rows.numpy(), labels_by_id(args.dataset, split), about)
        with pa.OSFile(str(args.output / "bank.arrow"), "wb") as sink:
            with pa.ipc.new_file(sink, table.schema) as writer:
                writer.write_table(table, max_chunksize=1 << 16)
        names.append("bank.arrow")
    files = []
    for name in names:
        contents = (args.output / name).read_bytes()
        files.append({"name": name, "bytes": len(contents), "digest": blake3.blake3(contents).hexdigest()})
    published = {
        "format_version": 1,
        "step": step,
        "epoch": state["cursor"]["epoch"],
        "dataset_digest": manifest["dataset_digest"],
        "split": args.split,
        "split_digest": split["digest"],
        "files": files,
    }
    # Last: a folder without it is not a checkpoint.
    (args.output / "checkpoint.json").write_text(json.dumps(published, indent=2) + "\n")
    print(json.dumps({"checkpoint": str(args.output), "bank_rows": None if rows is None else len(rows)}))


if __name__ == "__main__":
    main()
