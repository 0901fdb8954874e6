"""The networks for images of 32 pixels, whose weights `instdisc export torchvision` and checkpoints hold.

    from safetensors.torch import load_file
    from cifar_resnet import resnet18_cifar

    model = resnet18_cifar(num_classes=128)  # the length of the embedding, `--dim`
    model.load_state_dict(load_file("model.safetensors"))
    model.eval()

Names and shapes are torchvision's, so its classes serve, with a 3x3 stem without pooling (resnet18-cifar) and three
stages of 16, 32 and 64 channels (resnet20-cifar). Of a file without projection, replace `model.fc` by
`torch.nn.Identity()`. Pixels are in 0..1, less the recipe's mean, by its deviation:
(0.4914, 0.4822, 0.4465) and (0.2023, 0.1994, 0.2010) for `recipe = "cifar"`.
"""

import torch
from torchvision.models.resnet import BasicBlock, ResNet


def resnet18_cifar(num_classes: int = 128) -> ResNet:
    """ResNet-18 whose stem keeps the size of the image."""
    model = ResNet(BasicBlock, [2, 2, 2, 2], num_classes=num_classes)
    model.conv1 = torch.nn.Conv2d(3, 64, 3, padding=1, bias=False)
    model.maxpool = torch.nn.Identity()
    return model


def resnet20_cifar(num_classes: int = 128) -> ResNet:
    """ResNet-20 (He et al. 2016, section 4.2), with projections as shortcuts between stages."""
    model = ResNet(BasicBlock, [1, 1, 1, 1], num_classes=num_classes)
    model.conv1 = torch.nn.Conv2d(3, 16, 3, padding=1, bias=False)
    model.bn1 = torch.nn.BatchNorm2d(16)
    model.maxpool = torch.nn.Identity()
    model.inplanes = 16
    for stage, width in enumerate([16, 32, 64], start=1):
        setattr(model, f"layer{stage}", model._make_layer(BasicBlock, width, 3, stride=1 if stage == 1 else 2))
    model.layer4 = torch.nn.Identity()
    model.fc = torch.nn.Linear(64, num_classes)
    return model
