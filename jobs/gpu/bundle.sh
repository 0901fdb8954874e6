#!/usr/bin/env bash
# Packs what a GPU machine needs that has Python's torch 2.11.0 and no Rust: the stripped binary, the script
# that checks there, the peer in PyTorch, the CIFAR-10 run file, and, where it fits, a dataset.
# Usage: bundle.sh [DATASET]; writes gpu-bundle.tar (under 60 MB, else it says what is too large).
set -euo pipefail
cd "$(dirname "$0")/../.."

limit=60000000
folder=target/gpu-bundle
rm -rf "$folder"
mkdir -p "$folder"
cp target/release/instdisc "$folder/"
strip "$folder/instdisc"
cp jobs/gpu/check.sh jobs/gpu/agree.py jobs/gpu/pytorch_step.py jobs/runs/cifar10-resnet18-paper.toml "$folder/"
printf 'gpu-check:\n\t./check.sh\n' >"$folder/Makefile"
size() { du -sb "$folder" | cut -f1; }
if [ $# -gt 0 ]; then
  bytes=$(du -sb "$1" | cut -f1)
  if [ $(($(size) + bytes)) -lt $limit ]; then
    cp -r "$1" "$folder/dataset"
  else
    echo "the dataset $1 has $bytes bytes and does not fit; it must be brought by itself" >&2
  fi
fi
if [ "$(size)" -ge $limit ]; then
  echo "error: the bundle has $(size) bytes, the limit is $limit" >&2
  exit 1
fi
tar -C target -cf gpu-bundle.tar gpu-bundle
echo "gpu-bundle.tar: $(size) bytes"
