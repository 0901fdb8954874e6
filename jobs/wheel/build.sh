#!/usr/bin/env bash
# Builds the wheel: both programs, stripped, which find libtorch beside themselves in an environment of Python.
# Usage: build.sh [PROFILE], `release` by default; prints the wheel's path, which is below target/wheels.
set -euo pipefail
cd "$(dirname "$0")/../.."
source jobs/setup/again.sh

profile=${1:-release}
out=target/wheels/$profile
# What a program of this release needs; RHEL 9 and its kin have it, and newer ones.
platform=manylinux_2_34
limit=30000000

requirements=jobs/setup/requirements/wheel.txt
stamp=.venv/maturin-$(pinned_version $requirements maturin)
if [ ! -e "$stamp" ]; then
  echo "fetching maturin into .venv" >&2
  again .venv/bin/pip --quiet --disable-pip-version-check --no-cache-dir --timeout 60 install --no-deps --require-hashes -r $requirements
  touch "$stamp"
fi
rm -rf "$out"
# A released program looks for libtorch in its environment alone; one for tests also where it was built.
[ "$profile" != release ] || export INSTDISC_RUN_PATH=""
(cd jobs/wheel && ../../.venv/bin/maturin build --quiet --profile "$profile" --auditwheel skip --compatibility $platform \
  --out "../../$out" >&2)
wheel=$(echo "$out"/*.whl)

unpacked=$(mktemp -d)
trap 'rm -rf "$unpacked"' EXIT
python3 -m zipfile -e "$wheel" "$unpacked"
for program in "$unpacked"/*.data/scripts/*; do
  newest=$(objdump -T "$program" | grep -o 'GLIBC_2\.[0-9]*' | sort -uV | tail -n 1)
  [ "${newest#GLIBC_2.}" -le "${platform##*_}" ] || {
    echo "error: ${program##*/} needs $newest, newer than $platform allows" >&2
    exit 1
  }
done
bytes=$(stat -c %s "$wheel")
echo "$wheel: $bytes bytes, no symbol newer than ${platform/manylinux_/GLIBC_}" >&2
[ "$profile" != release ] || [ "$bytes" -le $limit ] || { echo "error: more than $limit bytes" >&2; exit 1; }
echo "$wheel"
