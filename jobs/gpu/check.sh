#!/usr/bin/env bash
# On a machine with a GPU and Python's torch 2.11.0: compares the GPU with the CPU, measures the step and the
# objective against PyTorch, and trains CIFAR-10. Run it from the unpacked bundle; results go to results/.
# Usage: check.sh [agree|bench|train]...   (all three by default; `train` goes on where it was)
set -euo pipefail
cd "$(dirname "$0")"

python=${PYTHON:-python3}
torch=$($python -c 'import os, torch; assert torch.__version__.startswith("2.11."), torch.__version__
print(os.path.dirname(torch.__file__))')
export LD_LIBRARY_PATH="$torch/lib${LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}"
mkdir -p results
instdisc() { ./instdisc "$@"; }
save() { tee "results/$1.json"; }

agree() {
  # Losses, gradients and banks of both devices on given tensors, and the first losses of two small runs.
  $python agree.py ./instdisc
  # The same losses from both devices: the same draws, the same sums up to rounding.
  for objective in nce infonce softmax; do
    for device in cpu cuda:0; do
      instdisc bench objective --objective $objective --instances 100000 --repeats 1 --device $device |
        save "agree-$objective-${device%%:*}"
    done
    $python - "results/agree-$objective-cpu.json" "results/agree-$objective-cuda.json" <<'PY'
import json, sys
cpu, cuda = (json.load(open(path))["loss"] for path in sys.argv[1:])
assert abs(cpu - cuda) <= 1e-5 * abs(cpu), (cpu, cuda)
print(f"agree: {cpu} {cuda}")
PY
  done
}

bench() {
  for arch in resnet18 resnet50; do
    instdisc bench step --arch $arch --precision bf16 --channels-last --device cuda:0 | save "step-$arch"
    $python pytorch_step.py --arch $arch --precision bf16 --channels-last | save "step-$arch-pytorch"
  done
  for instances in 1281167 14000000; do
    instdisc bench objective --objective nce --instances $instances --device cuda:0 | save "nce-$instances"
    instdisc bench objective --objective infonce --negatives 65536 --instances $instances --device cuda:0 |
      save "infonce-$instances"
    instdisc bench objective --objective infonce --negatives 65536 --negative-sampling shared \
      --instances $instances --device cuda:0 | save "infonce-shared-$instances"
    instdisc bench objective --objective softmax --tf32 --instances $instances --device cuda:0 |
      save "softmax-$instances"
  done
}

train() {
  [ -d dataset ] || { echo "there is no dataset/ beside this script (CIFAR-10, ingested)" >&2; exit 1; }
  instdisc train --dataset dataset --run results/cifar10 --config cifar10-resnet18.toml \
    --precision bf16 --channels-last --device cuda:0
}

[ $# -gt 0 ] || set -- agree bench train
for part in "$@"; do "$part"; done
