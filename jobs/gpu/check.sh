#!/usr/bin/env bash
# On a machine with a GPU and Python's torch 2.11.0: compares the GPU with the CPU, measures the step and the
# objective against PyTorch, and trains CIFAR-10. Run it from the unpacked bundle; results go to results/.
# Usage: check.sh [agree|ranks|bench|train]...   (all by default; `train` resumes)
set -euo pipefail
cd "$(dirname "$0")"

python=${PYTHON:-python3}
torch=$($python -c 'import os, torch; assert torch.__version__.startswith("2.11.0"), torch.__version__
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

ranks() {
  # Steps whose gradients go through NCCL: one process, and two where there are two GPUs.
  local data=results/ranks steps
  rm -rf "$data"
  instdisc synth --train-per-class 100 --val-per-class 10 --image-size 64 --dest "$data/images" >/dev/null
  instdisc ingest --source "$data/images" --dest "$data/dataset" >/dev/null
  steps="train --dataset $data/dataset --arch resnet18 --image-size 64 --batch-size 64 --objective nce --negatives 512 --lr 0.00002
    --temperature 1 --epochs 2 --sync-batch-norm --no-monitor --log-every-steps 1"
  instdisc $steps --run "$data/alone" --device cuda:0
  instdisc $steps --run "$data/nccl-1" --device cuda:0 --rank 0 --world-size 1 --master 127.0.0.1:29511
  local runs=("$data/nccl-1")
  if [ "$(nvidia-smi -L | wc -l)" -ge 2 ]; then
    $python -m torch.distributed.run --no-python --nproc-per-node 2 -- ./instdisc $steps --run "$data/nccl-2"
    runs+=("$data/nccl-2")
    instdisc bench scaling --ranks 1,2 --batch-size 256 -- --arch resnet50 --precision bf16 --channels-last |
      save scaling
  fi
  $python - "$data/alone" "${runs[@]}" <<'PY'
import json, sys
def losses(run):
    lines = map(json.loads, open(f"{run}/metrics.jsonl"))
    return [line["loss"] for line in lines if line["scope"] == "interval"]
alone, *others = sys.argv[1:]
expected = losses(alone)
for run in others:
    worst = max(abs(a / b - 1) for a, b in zip(losses(run), expected, strict=True))
    assert worst < 1e-3, (run, worst)
    print(f"agree: {run}, {len(expected)} steps, largest relative difference {worst:.1e}")
PY
}

train() {
  [ -d dataset ] || { echo "there is no dataset/ beside this script (CIFAR-10, ingested)" >&2; exit 1; }
  instdisc train --dataset dataset --run results/cifar10 --config cifar10-resnet18-paper.toml \
    --precision bf16 --channels-last --device cuda:0
}

[ $# -gt 0 ] || set -- agree ranks bench train
for part in "$@"; do "$part"; done
