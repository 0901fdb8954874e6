#!/usr/bin/env bash
# Writes each requirements/NAME.txt from its NAME.in: all packages with versions and the hashes of their files. pip
# installs nothing else. Needs uv (pip install uv). To change a version, edit NAME.in and run this.
set -euo pipefail
cd "$(dirname "$0")/../.."

for source in jobs/setup/requirements/*.in tests/cluster/requirements/*.in; do
  options=()
  # A JavaScript library that only carries kubectl; what it depends on is not installed.
  [ "$(basename "$source")" != kubectl.in ] || options=(--no-deps)
  # 640 MB for kernels of GPUs that no test compiles.
  [ "$(basename "$source")" != python.in ] || options=(--no-emit-package triton)
  uv pip compile --quiet --generate-hashes --universal --python-version 3.11 --no-annotate --no-emit-index-url \
    --custom-compile-command jobs/setup/requirements.sh "${options[@]}" --output-file "${source%.in}.txt" "$source"
done
