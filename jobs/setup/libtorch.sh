#!/usr/bin/env bash
# Puts libtorch 2.11.0 into .venv and a link .libtorch to it, unless LIBTORCH names one.
#
# It comes from the wheel that PyTorch publishes. Without an NVIDIA GPU two of its 28 dependencies are
# enough: the CPU part of libtorch needs only CUDA's runtime and CUPTI (0.5 GB instead of 2.7).
set -euo pipefail
cd "$(dirname "$0")/../.."

version=2.11.0
if [ -n "${LIBTORCH:-}" ]; then
  [ -e "$LIBTORCH/lib/libtorch_cpu.so" ] || {
    echo "error: LIBTORCH=$LIBTORCH has no lib/libtorch_cpu.so" >&2
    exit 1
  }
  exit 0
fi
if [ -e /dev/nvidia0 ] || nvidia-smi >/dev/null 2>&1; then
  kind=cuda
  wheels=("torch==$version")
else
  kind=cpu
  wheels=(--no-deps "torch==$version" nvidia-cuda-runtime==13.0.96 nvidia-cuda-cupti==13.0.85)
fi
# The stamp is written last: an interrupted install is done again.
stamp=.venv/libtorch-$version-$kind
if [ ! -e "$stamp" ] || [ ! -e .libtorch/lib/libtorch_cpu.so ]; then
  echo "fetching libtorch $version ($kind) into .venv"
  python3 -m venv --clear .venv
  .venv/bin/pip install --quiet --disable-pip-version-check --no-cache-dir "${wheels[@]}"
  torch=$(echo .venv/lib/python3*/site-packages/torch)
  ln -sfn "$torch" .libtorch
  touch "$stamp"
fi
