"""Prints the largest difference between given features and those of torchvision's network.

Usage: check_encoder.py MODEL.safetensors SAMPLE.safetensors ARCH
"""

import sys

import torch
import torchvision
from safetensors.torch import load_file

weights, sample, arch = sys.argv[1:]
model = getattr(torchvision.models, arch.removesuffix("-cifar").replace("-", "_"))(num_classes=128)
if arch.endswith("-cifar"):
    model.conv1 = torch.nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
    model.maxpool = torch.nn.Identity()
model.load_state_dict(load_file(weights))
model.eval()
given = load_file(sample)
mean = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
std = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
with torch.no_grad():
    features = torch.nn.functional.normalize(model((given["pixels"] / 255 - mean) / std))
assert features.shape == given["features"].shape
print((features - given["features"]).abs().max().item())
