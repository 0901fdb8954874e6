"""Writes the encoder of a checkpoint as ONNX.

    python jobs/tools/to_onnx.py run/checkpoints/step-00001000 --output encoder.onnx

Input `pixels`: `[images, 3, side, side]` f32 in 0..1, RGB, resized and cropped as in an evaluation; side and resize are
printed. The network normalises them itself. Output `embedding`: `[images, dim]` f32 of unit length, `instdisc embed`'s.

Takes the networks that torchvision or cifar_resnet.py has. A checkpoint in a store is copied to a local folder first.
Needs torch, torchvision, safetensors, onnx, onnxscript.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
import torchvision
from safetensors.torch import load_file

import cifar_resnet


class Encoder(torch.nn.Module):
    """Normalisation, network, unit length."""

    def __init__(self, network, normalisation):
        super().__init__()
        self.network = network
        for name in ("mean", "std"):
            self.register_buffer(name, torch.tensor(normalisation[name]).view(1, 3, 1, 1))

    def forward(self, pixels):
        return torch.nn.functional.normalize(self.network((pixels - self.mean) / self.std))


def encoder_of(checkpoint: Path) -> tuple[Encoder, dict]:
    """The encoder of a checkpoint's folder, and its configuration."""
    config = json.loads((checkpoint / "state.json").read_text())["encoder"]
    arch = config["arch"].replace("-", "_")
    make = getattr(cifar_resnet, arch, None) or getattr(torchvision.models, arch, None)
    if make is None:
        sys.exit(f"{checkpoint}: neither torchvision nor cifar_resnet.py has the network {config['arch']}")
    network = make(num_classes=config["dim"])
    network.load_state_dict(load_file(checkpoint / "model.safetensors"))
    return Encoder(network, config["normalisation"]).eval(), config


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="folder with model.safetensors and state.json")
    parser.add_argument("--output", type=Path, required=True, help="file to write (.onnx)")
    args = parser.parse_args()
    encoder, config = encoder_of(args.checkpoint)
    side = config["image_size"]
    torch.onnx.export(
        encoder,
        (torch.rand(2, 3, side, side),),
        args.output,
        input_names=["pixels"],
        output_names=["embedding"],
        dynamic_shapes=({0: torch.export.Dim("images")},),
        external_data=False,
    )
    print(
        f"{args.output}: {config['arch']}, pixels [images, 3, {side}, {side}] (shorter side resized to "
        f"{config['evaluation_resize']}, centre cropped), embedding [images, {config['dim']}]"
    )


if __name__ == "__main__":
    main()
