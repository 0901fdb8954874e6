#!/usr/bin/env bash
# Makes .venv-python: the packages with which the tests compare. About 4.5 GB on disk.
set -euo pipefail
cd "$(dirname "$0")/../.."
source jobs/setup/retry.sh

stamp=.venv-python/complete-7
if [ ! -e "$stamp" ]; then
  echo "making .venv-python with torch, torchvision, pyarrow, datasets, duckdb, scikit-learn, playwright, blake3, timm, transformers, onnxruntime"
  make_venv .venv-python
  # The file names all that is needed, so nothing has to be worked out.
  again .venv-python/bin/pip --quiet --disable-pip-version-check --no-cache-dir --timeout 60 install \
    --no-deps --require-hashes -r jobs/setup/requirements/python.txt
  touch "$stamp"
fi
