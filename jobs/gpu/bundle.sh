#!/usr/bin/env bash
# Packs what a GPU machine needs that has Python's torch 2.11.0 and no Rust: the program that computes, the checks, the
# peer in PyTorch, the run file of CIFAR-10 and a small drawn dataset. dataset.sh packs CIFAR-10 itself.
# Usage: bundle.sh [WHEEL], by default the one in target/wheels/release; writes target/gpu/gpu-bundle.tar.xz.
set -euo pipefail
cd "$(dirname "$0")/../.."

limit=12000000
file=target/gpu/gpu-bundle.tar.xz
at=$(mktemp -d)
trap 'rm -rf "$at"' EXIT
folder=$at/gpu-bundle
mkdir -p "$folder" target/gpu

python3 -m zipfile -e "${1:-$(echo target/wheels/release/*.whl)}" "$at/wheel"
programs=$(echo "$at"/wheel/*.data/scripts)
chmod +x "$programs"/*
# `instdisc` itself, which draws and ingests, is not needed there: what it makes is.
strip -o "$folder/instdisc" "$programs/instdisc-torch"
export PATH=$programs:$PATH
instdisc synth --dest "$at/images" --train-per-class 40 --val-per-class 10 --image-size 48 >/dev/null
instdisc ingest --source "$at/images" --dest "$folder/drawn" >/dev/null
cp jobs/gpu/check.sh jobs/gpu/agree.py jobs/gpu/pytorch_step.py jobs/runs/cifar10-resnet18-paper.toml "$folder/"

tar -C "$at" --owner=0 --group=0 -c gpu-bundle | xz --x86 --lzma2=preset=9e >"$file"
bytes=$(stat -c %s "$file")
[ "$bytes" -le $limit ] || { echo "error: $file: $bytes bytes, the limit is $limit" >&2; exit 1; }
echo "$file: $bytes bytes"
