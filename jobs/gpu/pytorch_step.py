"""The training step of instdisc written in PyTorch eager, on drawn pixels: the peer of `instdisc bench step`.

Prints JSON with the same names. Network, optimiser and objective are PyTorch's and torchvision's own; the
objective is written as the papers' codes write it (nce and infonce gather `[batch, K, dim]` rows, softmax
holds `[batch, instances]` logits). Run: python jobs/gpu/pytorch_step.py --arch resnet50 --objective nce
"""

import argparse
import json
import time

import torch
import torchvision
from torch.nn.functional import cross_entropy, normalize, softplus


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


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", default="resnet50")
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
    args.temperature, args.ln_z, momentum = 0.07, 14.86, 0.5

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = args.precision == "tf32"
    device = torch.device(args.device)
    format = torch.channels_last if args.channels_last else torch.contiguous_format
    model = getattr(torchvision.models, args.arch)(num_classes=args.dim).to(device, memory_format=format)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.03, momentum=0.9, weight_decay=1e-4)
    bank = normalize(torch.rand(args.instances, args.dim, device=device) - 0.5)
    shape = (args.batch_size, 3, args.image_size, args.image_size)
    batches = [torch.randint(256, shape, dtype=torch.uint8) for _ in range(4)]
    mean = torch.tensor([0.485, 0.456, 0.406], device=device).view(1, 3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225], device=device).view(1, 3, 1, 1)

    def wait():
        if device.type == "cuda":
            torch.cuda.synchronize()

    def step(number):
        own = torch.randperm(args.instances, device=device)[: args.batch_size]
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
    name = torch.cuda.get_device_name() if device.type == "cuda" else "cpu"
    report = {key: getattr(args, key) for key in ("arch", "image_size", "batch_size", "precision", "channels_last")}
    report |= {"program": f"PyTorch {torch.__version__} eager", "device": name, "objective": args.objective}
    report |= {"negatives": args.negatives, "instances": args.instances, "step_seconds": seconds}
    print(json.dumps(report | {"images_per_second": args.batch_size / seconds}, indent=2))


main()
