#!/usr/bin/env bash
# Puts libtorch into .venv and a link .libtorch to it, unless LIBTORCH names one. Versions and hashes are those of
# requirements/libtorch.txt.
#
# It comes from the wheel that PyTorch publishes. Without an NVIDIA GPU two of its 28 dependencies are
# enough: the CPU part of libtorch needs only CUDA's runtime and CUPTI (0.5 GB instead of 2.7). Headers of NCCL and
# CUDA come too, since the CUDA part is compiled everywhere (feature nccl); of NCCL's wheel nothing else is kept.
set -euo pipefail
cd "$(dirname "$0")/../.."
source jobs/setup/retry.sh

all=jobs/setup/requirements/libtorch.txt
version=$(pinned_version $all torch)
if [ -n "${LIBTORCH:-}" ]; then
  [ -e "$LIBTORCH/lib/libtorch_cpu.so" ] || {
    echo "error: LIBTORCH=$LIBTORCH has no lib/libtorch_cpu.so" >&2
    exit 1
  }
  exit 0
fi
if [ -e /dev/nvidia0 ] || nvidia-smi >/dev/null 2>&1; then
  kind=cuda
  wheels() { cat $all; }
else
  kind=cpu
  wheels() { pinned $all torch nvidia-cuda-runtime nvidia-cuda-cupti; }
fi
fetch() { # fetch install|download OPTION...: what .venv/wanted.txt names
  again .venv/bin/pip --quiet --disable-pip-version-check --no-cache-dir --timeout 60 "$@" \
    --no-deps --require-hashes -r .venv/wanted.txt
}
# The stamp is written last: an interrupted install is done again.
stamp=.venv/libtorch-$version-$kind
if [ ! -e "$stamp" ] || [ ! -e .libtorch/lib/libtorch_cpu.so ]; then
  echo "fetching libtorch $version ($kind) into .venv"
  make_venv .venv
  wheels >.venv/wanted.txt
  fetch install
  torch=$(echo .venv/lib/python3*/site-packages/torch)
  ln -sfn "$torch" .libtorch
  touch "$stamp"
fi

# What is there without its headers gets only them.
nccl=$(pinned_version $all nvidia-nccl-cu13)
cuda=$(pinned_version $all nvidia-cuda-crt)
headers=.venv/nccl-headers-$nccl-$cuda-$(pinned_version $all nvidia-cuda-cccl)
if [ ! -e "$headers" ]; then
  echo "fetching headers of NCCL $nccl and CUDA $cuda into .venv"
  pinned $all nvidia-cuda-crt nvidia-cuda-cccl >.venv/wanted.txt
  fetch install
  packages=$(echo .venv/lib/python3*/site-packages)
  if [ ! -e "$packages/nvidia/nccl/include/nccl.h" ]; then
    aside=$(mktemp -d .venv/nccl.XXXXXX)
    trap 'rm -rf "$aside"' EXIT
    pinned $all nvidia-nccl-cu13 >.venv/wanted.txt
    fetch download --dest "$aside"
    .venv/bin/python - "$aside" "$packages" <<'PYTHON'
import pathlib, sys, zipfile
wheel = zipfile.ZipFile(next(pathlib.Path(sys.argv[1]).glob("*.whl")))
wheel.extractall(sys.argv[2], [name for name in wheel.namelist() if name.startswith("nvidia/nccl/include/")])
PYTHON
  fi
  touch "$headers"
fi
