#!/usr/bin/env bash
# Packs a dataset, such as CIFAR-10, for `check.sh train`: in a file apart from the bundle's, for a command of its own.
# Usage: dataset.sh DATASET, as ingest wrote it; writes target/gpu/gpu-dataset.tar.xz.
set -euo pipefail
dataset=$(realpath "${1:?expected a dataset; with make, DATA=/path/to/dataset}")
cd "$(dirname "$0")/../.."

# A command carries 64 MiB, and something else besides.
limit=60000000
file=target/gpu/gpu-dataset.tar.xz
[ -e "$dataset/manifest.json" ] || { echo "error: $dataset is not a dataset" >&2; exit 1; }
mkdir -p target/gpu
tar -C "$dataset" --owner=0 --group=0 --transform 's,^\.,gpu-bundle/dataset,' -c . | xz -T0 -6 >"$file"
bytes=$(stat -c %s "$file")
[ "$bytes" -le $limit ] || { echo "error: $file: $bytes bytes, the limit is $limit" >&2; exit 1; }
echo "$file: $bytes bytes"
