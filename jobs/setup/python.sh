#!/usr/bin/env bash
# Makes .venv-python: the packages with which the tests compare. About 5 GB on disk.
set -euo pipefail
cd "$(dirname "$0")/../.."
source jobs/setup/again.sh

stamp=.venv-python/complete-3
if [ ! -e "$stamp" ]; then
  echo "making .venv-python with torch, torchvision, pyarrow, datasets, duckdb, scikit-learn, playwright, blake3"
  python3 -m venv --clear .venv-python
  again .venv-python/bin/pip --quiet --disable-pip-version-check --no-cache-dir --timeout 60 install \
    torch==2.11.0 torchvision==0.26.0 numpy==2.4.6 pyarrow==26.0.1 datasets==5.2.0 duckdb==2.0.1 safetensors==0.8.0 \
    pillow==13.0.0 scikit-learn==1.9.1 playwright==1.65.2 blake3==1.0.11
  touch "$stamp"
fi
