#!/usr/bin/env bash
# Puts libtorch 2.11.0 into .venv and a link .libtorch to it, unless LIBTORCH names one.
#
# It comes from the wheel that PyTorch publishes. Without an NVIDIA GPU two of its 28 dependencies are
# enough: the CPU part of libtorch needs only CUDA's runtime and CUPTI (0.5 GB instead of 2.7). Headers of NCCL and
# CUDA come too, since the NCCL part is compiled everywhere (feature nccl); of NCCL's wheel nothing else is kept.
set -euo pipefail
cd "$(dirname "$0")/../.."
source jobs/setup/again.sh

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
quiet=(--quiet --disable-pip-version-check --no-cache-dir --timeout 60)
# The stamp is written last: an interrupted install is done again.
stamp=.venv/libtorch-$version-$kind
if [ ! -e "$stamp" ] || [ ! -e .libtorch/lib/libtorch_cpu.so ]; then
  echo "fetching libtorch $version ($kind) into .venv"
  python3 -m venv --clear .venv
  again .venv/bin/pip "${quiet[@]}" install "${wheels[@]}"
  torch=$(echo .venv/lib/python3*/site-packages/torch)
  ln -sfn "$torch" .libtorch
  touch "$stamp"
fi

# What is there without its headers gets only them.
headers=.venv/nccl-headers-2.28.9-13.0.88-13.0.85
if [ ! -e "$headers" ]; then
  echo "fetching headers of NCCL 2.28.9 and CUDA 13.0 into .venv"
  pip=(again .venv/bin/pip "${quiet[@]}")
  "${pip[@]}" install --no-deps nvidia-cuda-crt==13.0.88 nvidia-cuda-cccl==13.0.85
  packages=$(echo .venv/lib/python3*/site-packages)
  if [ ! -e "$packages/nvidia/nccl/include/nccl.h" ]; then
    aside=$(mktemp -d .venv/nccl.XXXXXX)
    trap 'rm -rf "$aside"' EXIT
    "${pip[@]}" download --no-deps --dest "$aside" nvidia-nccl-cu13==2.28.9
    .venv/bin/python - "$aside" "$packages" <<'PYTHON'
import pathlib, sys, zipfile
wheel = zipfile.ZipFile(next(pathlib.Path(sys.argv[1]).glob("*.whl")))
wheel.extractall(sys.argv[2], [name for name in wheel.namelist() if name.startswith("nvidia/nccl/include/")])
PYTHON
  fi
  touch "$headers"
fi
