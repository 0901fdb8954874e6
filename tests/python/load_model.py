"""Loads model.safetensors into torchvision's resnet18. Usage: load_model.py CHECKPOINT"""

import sys

import torchvision
from safetensors.torch import load_file

weights = load_file(f"{sys.argv[1]}/model.safetensors")
model = torchvision.models.resnet18(num_classes=128)
model.load_state_dict(weights)
print(f"loaded {len(weights)} tensors")
