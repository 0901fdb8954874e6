#!/usr/bin/env bash
# Packs what a GPU machine needs that has Python's torch 2.11.0 and no Rust: the programs of the wheel, the script
# that checks there, the peer in PyTorch, the CIFAR-10 run file, and, where it fits, a dataset.
# Usage: bundle.sh [DATASET]; writes gpu-bundle.tar.xz (under 60 MB, else it says what is too large).
set -euo pipefail
cd "$(dirname "$0")/../.."

limit=60000000
folder=target/gpu-bundle
rm -rf "$folder"
mkdir -p "$folder"
python3 -m zipfile -e target/wheels/release/*.whl target/gpu-wheel
mv target/gpu-wheel/*.data/scripts/* "$folder/"
rm -r target/gpu-wheel
chmod +x "$folder"/*
cp jobs/gpu/check.sh jobs/gpu/agree.py jobs/gpu/pytorch_step.py jobs/runs/cifar10-resnet18-paper.toml "$folder/"
printf 'gpu-check:\n\t./check.sh\n' >"$folder/Makefile"
pack() {
  tar -C target -c gpu-bundle | xz -T0 >gpu-bundle.tar.xz
  bytes=$(stat -c %s gpu-bundle.tar.xz)
}
pack
if [ $# -gt 0 ] && [ "$(du -sb "$1" | cut -f1)" -ge $((limit * 2)) ]; then
  echo "the dataset $1 does not fit; it must be brought by itself" >&2
elif [ $# -gt 0 ]; then
  cp -r "$1" "$folder/dataset"
  pack
  if [ "$bytes" -ge $limit ]; then
    echo "with the dataset $1 it is $bytes bytes, which do not fit; the dataset must be brought by itself" >&2
    rm -rf "$folder/dataset"
    pack
  fi
fi
if [ "$bytes" -ge $limit ]; then
  echo "error: gpu-bundle.tar.xz has $bytes bytes, the limit is $limit" >&2
  exit 1
fi
echo "gpu-bundle.tar.xz: $bytes bytes"
