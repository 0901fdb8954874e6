"""The training step of instdisc written in PyTorch eager, on drawn pixels: the peer of `instdisc bench step`.

With `--arch none` loss and gradient of drawn features alone: the peer of `instdisc bench objective`. Prints JSON with the
same names. The network is torchvision's ResNet, written out so that PyTorch alone is needed; the objective is written as
the papers' codes write it (nce and infonce gather `[batch, K, dim]` rows, softmax holds `[batch, instances]` logits).
Run: python jobs/gpu/pytorch_step.py --arch resnet50 --objective nce
"""

import argparse
import json
import time

import torch
from torch import nn
from torch.nn.functional import cross_entropy, normalize, softplus

BLOCKS = {"resnet18": [2, 2, 2, 2], "resnet34": [3, 4, 6, 3], "resnet50": [3, 4, 6, 3]}


def convolution(inputs, outputs, side, stride=1):
    conv = nn.Conv2d(inputs, outputs, side, stride, side // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


class Block(nn.Module):
    def __init__(self, inputs, width, stride, bottleneck):
        super().__init__()
        outputs = width * 4 if bottleneck else width
        sides = [(1, 1), (3, stride), (1, 1)] if bottleneck else [(3, stride), (3, 1)]
        widths = [inputs, width, width, outputs] if bottleneck else [inputs, width, outputs]
        layers = []
        for number, (side, step) in enumerate(sides):
            layers += [convolution(widths[number], widths[number + 1], side, step), nn.ReLU(inplace=True)]
        self.residual = nn.Sequential(*layers[:-1])
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Identity() if same else convolution(inputs, outputs, 1, stride)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x):
        return self.relu(self.residual(x) + self.shortcut(x))


def resnet(arch, dim):
    bottleneck, inputs, layers = arch == "resnet50", 64, []
    for stage, count in enumerate(BLOCKS[arch]):
        width = 64 << stage
        for number in range(count):
            layers.append(Block(inputs, width, 2 if stage and not number else 1, bottleneck))
            inputs = width * 4 if bottleneck else width
    stem = [convolution(3, 64, 7, 2), nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, dim))


def loss_of(args, features, bank, own):
    if args.objective == "softmax":
        return cross_entropy(features @ bank.T / args.temperature, own)
    drawn = torch.randint(len(bank), (len(own), args.negatives), device=own.device)
    rows = bank[torch.cat([own[:, None], drawn], dim=1)]
    logits = torch.einsum("bd,bkd->bk", features, rows) / args.temperature
    if args.objective == "infonce":
        return cross_entropy(logits, torch.zeros_like(own))
    u = logits - args.ln_z - torch.tensor(args.negatives / len(bank)).log()
    return (softplus(-u[:, 0]) + softplus(u[:, 1:]).sum(dim=1)).mean()


def measure_objective(args, device, bank, wait):
    features = normalize(torch.rand(args.batch_size, args.dim, device=device) - 0.5).requires_grad_()
    own = torch.randperm(args.instances, device=device)[: args.batch_size]
    seconds = []
    for _ in range(1 + args.steps):
        wait()
        began = time.perf_counter()
        loss = loss_of(args, features, bank, own)
        torch.autograd.grad(loss, features)
        wait()
        seconds.append(time.perf_counter() - began)
    seconds = sorted(seconds[1:])
    return {"loss": loss.item(), "seconds": {"minimum": seconds[0], "median": seconds[len(seconds) // 2], "all": seconds}}


def measure_step(args, device, bank, wait):
    format = torch.channels_last if args.channels_last else torch.contiguous_format
    model = resnet(args.arch, args.dim).to(device, memory_format=format)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-4)
    shape = (args.batch_size, 3, args.image_size, args.image_size)
    batches = [torch.randint(256, shape, dtype=torch.uint8) for _ in range(4)]
    # Each batch has its own instances, as the loader's batches have; drawing them is not part of the step.
    owns = [torch.randint(args.instances, (args.batch_size,), device=device) for _ in range(4)]
    mean = torch.tensor([0.485, 0.456, 0.406], device=device).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225], device=device).view(1, 3, 1, 1)
    momentum = 0.5

    def step(number):
        own = owns[number % 4]
        pixels = (batches[number % 4].to(device).float() / 255 - mean) / std
        pixels = pixels.contiguous(memory_format=format)
        with torch.autocast(device.type, torch.bfloat16, enabled=args.precision == "bf16"):
            projected = model(pixels)
        features = normalize(projected.float())
        loss = loss_of(args, features, bank, own)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            bank[own] = normalize(momentum * bank[own] + (1 - momentum) * features)
        return loss

    for number in range(args.warmup_steps):
        step(number)
    wait()
    began = time.perf_counter()
    for number in range(args.steps):
        step(number).item()
    wait()
    seconds = (time.perf_counter() - began) / args.steps
    report = {key: getattr(args, key) for key in ("image_size", "channels_last")}
    return report | {"step_seconds": seconds, "images_per_second": args.batch_size / seconds}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", choices=[*BLOCKS, "none"], default="resnet50")
    parser.add_argument("--objective", choices=["nce", "infonce", "softmax"], default="nce")
    parser.add_argument("--negatives", type=int, default=4096)
    parser.add_argument("--instances", type=int, default=1_281_167)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--precision", choices=["f32", "tf32", "bf16"], default="bf16")
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup-steps", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    args.temperature, args.ln_z = 0.07, 14.86

    # As instdisc does: with bf16 the objective, which stays f32, takes TF32.
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.precision != "f32"
    device = torch.device(args.device)
    bank = normalize(torch.rand(args.instances, args.dim, device=device) - 0.5)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    report = {"program": f"PyTorch {torch.__version__} eager", "device": name}
    report |= {key: getattr(args, key) for key in ("arch", "batch_size", "precision", "objective", "negatives", "instances")}
    measure = measure_objective if args.arch == "none" else measure_step
    print(json.dumps(report | measure(args, device, bank, wait), indent=2))


main()
