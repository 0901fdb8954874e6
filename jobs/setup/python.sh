#!/usr/bin/env bash
# Makes .venv-python: the packages with which the tests compare. About 5 GB on disk.
set -euo pipefail
cd "$(dirname "$0")/../.."

stamp=.venv-python/complete-2
if [ ! -e "$stamp" ]; then
  echo "making .venv-python with torch, torchvision, pyarrow, datasets, duckdb, scikit-learn, playwright"
  python3 -m venv --clear .venv-python
  .venv-python/bin/pip install --quiet --disable-pip-version-check --no-cache-dir \
    torch==2.11.0 torchvision==0.26.0 numpy pyarrow datasets duckdb safetensors pillow \
    scikit-learn playwright
  touch "$stamp"
fi
