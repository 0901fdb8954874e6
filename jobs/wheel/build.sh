#!/usr/bin/env bash
# Builds the wheel: both programs, stripped, which find libtorch beside themselves in an environment of Python.
# Usage: build.sh [PROFILE], `release` by default; prints the wheel's path, which is below target/wheels.
set -euo pipefail
cd "$(dirname "$0")/../.."
source jobs/setup/retry.sh

profile=${1:-release}
out=target/wheels/$profile
# What a released program needs; RHEL 9 and its kin have it, and newer ones.
platform=manylinux_2_34
newest_standard=29
limit=30000000

requirements=jobs/setup/requirements/wheel.txt
stamp=.tools/maturin/complete-$(pinned_version $requirements maturin)
if [ ! -e "$stamp" ]; then
  echo "fetching maturin into .tools" >&2
  make_venv .tools/maturin
  again .tools/maturin/bin/pip --quiet --disable-pip-version-check --no-cache-dir --timeout 60 install --no-deps --require-hashes -r $requirements
  touch "$stamp"
fi
rm -rf "$out"
(cd jobs/wheel && ../../.tools/maturin/bin/maturin build --quiet --profile "$profile" --auditwheel skip \
  --compatibility $platform --out "../../$out" >&2)
wheel=$(echo "$out"/*.whl)
bytes=$(stat -c %s "$wheel")
echo "$wheel: $bytes bytes" >&2
if [ "$profile" = release ]; then
  unpacked=$(mktemp -d)
  trap 'rm -rf "$unpacked"' EXIT
  python3 -m zipfile -e "$wheel" "$unpacked"
  wrong=0
  for program in "$unpacked"/*.data/scripts/*; do
    # The last number of the newest version that begins so, or 0.
    newest() { { objdump -T "$program" | grep -oE "$1[0-9]+" || echo 0; } | sed 's/.*[._]//' | sort -n | tail -n 1; }
    library=$(newest 'GLIBC_2\.') standard=$(newest 'GLIBCXX_3\.4\.')
    echo "${program##*/}: GLIBC_2.$library, GLIBCXX_3.4.$standard" >&2
    [ "$library" -le "${platform##*_}" ] || wrong=1
    [ "$standard" -le $newest_standard ] || wrong=1
    if readelf -d "$program" | grep -qE 'R(UN)?PATH.*(\[|:)/'; then
      echo "error: ${program##*/} has a run path of this machine; unset LIBTORCH and INSTDISC_RUN_PATH" >&2
      wrong=1
    fi
  done
  [ $wrong = 0 ] || { echo "error: not a wheel for $platform" >&2; exit 1; }
  [ "$bytes" -le $limit ] || { echo "error: more than $limit bytes" >&2; exit 1; }
fi
echo "$wheel"
