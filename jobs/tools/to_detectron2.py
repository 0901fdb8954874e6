"""Turns the output of `instdisc export torchvision` into weights that detectron2 loads as `MODEL.WEIGHTS`.

    instdisc export torchvision --checkpoint run --without-projection --output r50.safetensors
    python jobs/tools/to_detectron2.py r50.safetensors --output r50.pkl

For ResNets with the ImageNet stem. Names follow detectron2's `tools/convert-torchvision-to-d2.py`: `layer1` is `res2`,
`bn1` is `conv1.norm`, `downsample` is `shortcut`. Set in detectron2's configuration, as MoCo's detection does:

    MODEL.PIXEL_MEAN: [123.675, 116.280, 103.530]
    MODEL.PIXEL_STD: [58.395, 57.120, 57.375]
    MODEL.RESNETS.STRIDE_IN_1X1: False
    MODEL.RESNETS.NORM: SyncBN
    INPUT.FORMAT: RGB

Needs safetensors and numpy.
"""

import argparse
import pickle
import re
import sys
from pathlib import Path

from safetensors import safe_open


def name_in_detectron2(name: str) -> str | None:
    """A tensor's name, or None for the projection, which detectron2 has not."""
    if name.startswith("fc."):
        return None
    stage = re.match(r"layer(\d)\.(.*)", name)
    name = f"res{int(stage[1]) + 1}.{stage[2]}" if stage else f"stem.{name}"
    name = re.sub(r"bn(\d)", r"conv\1.norm", name)
    return name.replace("downsample.0", "shortcut").replace("downsample.1", "shortcut.norm")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("weights", type=Path, help="safetensors file of `instdisc export torchvision`")
    parser.add_argument("--output", type=Path, required=True, help="file to write (.pkl)")
    args = parser.parse_args()
    with safe_open(args.weights, "np") as file:
        arch = (file.metadata() or {}).get("arch", "")
        if not re.fullmatch(r"resnet\d+", arch):
            sys.exit(f"{args.weights}: the network is {arch or 'not named'}; detectron2 has ResNets with the ImageNet stem")
        tensors = {name_in_detectron2(name): file.get_tensor(name) for name in file.keys()}
    tensors.pop(None, None)
    model = {"model": tensors, "__author__": "instdisc", "matching_heuristics": True}
    args.output.write_bytes(pickle.dumps(model))
    print(f"{args.output}: {len(tensors)} tensors of {arch}")


if __name__ == "__main__":
    main()
