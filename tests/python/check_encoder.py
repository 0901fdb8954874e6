"""Prints the largest difference between given features and those of torchvision's network.

Usage: check_encoder.py MODEL.safetensors SAMPLE.safetensors ARCH
"""

import sys
from pathlib import Path

import torch
import torchvision
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parents[2] / "jobs/tools"))
import cifar_resnet

weights, sample, arch = sys.argv[1:]
networks = cifar_resnet if arch.endswith("-cifar") else torchvision.models
model = getattr(networks, arch.replace("-", "_"))(num_classes=128)
model.load_state_dict(load_file(weights))
model.eval()
given = load_file(sample)
mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
with torch.no_grad():
    features = torch.nn.functional.normalize(model((given["pixels"] / 255 - mean) / std))
assert features.shape == given["features"].shape
print((features - given["features"]).abs().max().item())
