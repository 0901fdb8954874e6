"""Writes a checkpoint as lemniscate.pytorch does. Usage: make_lemniscate.py IMAGEFOLDER FILE WEIGHTS

A ResNet-18 with a 128-d projection behind DataParallel's prefix, an optimiser, and the module NCEAverage, pickled
whole with the class that draws its negatives, in the form of files of that time. Row i of the bank points where
image i of the sorted ImageFolder's class does, so that a leave-one-out vote is right for all only where rows and
images have stayed together. Its rows are not quite of unit length, as sums in f32 leave them.
WEIGHTS gets the network alone, as safetensors.
"""

import importlib
import sys
import tempfile
from pathlib import Path

import torch
import torchvision
from safetensors.torch import save_file

CLASSES = {
    "alias_multinomial": "class AliasMethod(object):\n    pass\n",
    "NCEAverage": "from torch import nn\n\n\nclass NCEAverage(nn.Module):\n    pass\n",
}

torch.manual_seed(1)
targets = torchvision.datasets.ImageFolder(sys.argv[1]).targets
network = torchvision.models.resnet18(num_classes=128)
optimizer = torch.optim.SGD(network.parameters(), 0.03, momentum=0.9, weight_decay=1e-4)
network(torch.rand(4, 3, 32, 32)).sum().backward()
optimizer.step()
tensors = network.state_dict().items()
save_file({name: value for name, value in tensors if not name.endswith("num_batches_tracked")}, sys.argv[3])

with tempfile.TemporaryDirectory() as folder:
    (Path(folder) / "lib").mkdir()
    (Path(folder) / "lib/__init__.py").touch()
    for name, source in CLASSES.items():
        (Path(folder) / f"lib/{name}.py").write_text(source)
    sys.path.insert(0, folder)
    lemniscate = importlib.import_module("lib.NCEAverage").NCEAverage()
    lemniscate.multinomial = importlib.import_module("lib.alias_multinomial").AliasMethod()
    lemniscate.multinomial.prob = torch.ones(len(targets))
    lemniscate.nLem = len(targets)
    rows = 0.01 * torch.randn(len(targets), 128)
    rows[torch.arange(len(targets)), torch.tensor(targets)] += 1.0
    lemniscate.register_buffer("params", torch.tensor([4096, 0.07, 2876.8, 0.5]))
    lemniscate.register_buffer("memory", rows / rows.norm(dim=1, keepdim=True) * 1.00001)
    checkpoint = {
        "epoch": 200,
        "arch": "resnet18",
        "state_dict": {f"module.{name}": value for name, value in network.state_dict().items()},
        "lemniscate": lemniscate,
        "best_prec1": 41.0,
        "optimizer": optimizer.state_dict(),
    }
    torch.save(checkpoint, sys.argv[2], _use_new_zipfile_serialization=False)
