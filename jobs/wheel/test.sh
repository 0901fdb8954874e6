#!/usr/bin/env bash
# Installs a wheel into fresh environments, outside the checkout: without torch the commands that need none work and the
# others say what to install; beside torch 2.11.0 everything works, from drawn images to a vote.
# Usage: test.sh WHEEL
set -euo pipefail
cd "$(dirname "$0")/../.."

wheel=$(realpath "$1")
packages=$(realpath "${LIBTORCH:-.libtorch}/..")
source jobs/setup/retry.sh
checkout=$PWD
at=$(mktemp -d)
trap 'rm -rf "$at"' EXIT
cd "$at"
unset LIBTORCH LD_LIBRARY_PATH
fail() { echo "error: $*" >&2; exit 1; }

(cd "$checkout" && make_venv "$at/env")
env/bin/pip --quiet --disable-pip-version-check install --no-index --no-deps "$wheel"
export PATH=$at/env/bin:$PATH
[ "$(command -v instdisc)" = "$at/env/bin/instdisc" ] || fail "instdisc is not on the PATH"
ldd env/bin/instdisc | grep -E 'torch|c10' && fail "instdisc is linked to libtorch"

instdisc synth --dest images --train-per-class 12 --val-per-class 4 --image-size 32 >/dev/null
instdisc ingest --source images --dest dataset >/dev/null
training=(train --dataset dataset --run run --arch resnet20-cifar --image-size 16 --recipe cifar --epochs 1 --device cpu)

refuses() { # refuses TEXT: training ends with 78 and says this
  local code=0
  instdisc "${training[@]}" 2>said || code=$?
  if [ $code != 78 ] || ! grep -q "$1" said; then
    cat said >&2
    fail "expected: $1; exit code $code"
  fi
}
refuses 'libtorch_cpu.so. is not found: install it .*torch==2.11.0'

# Another version than the one that it was compiled for is refused by name, not by a symbol that is missing.
site=$(echo env/lib/python3*/site-packages)
mkdir -p "$site/torch/lib"
ln -s "$packages"/torch/lib/* "$site/torch/lib/"
ln -s "$packages/nvidia" "$site/nvidia"
echo "__version__ = '2.10.0+cpu'" >"$site/torch/version.py"
refuses 'libtorch 2.10.0 at .*, expected 2.11.0: .*torch==2.11.0'

rm -r "$site/torch"
ln -s "$packages/torch" "$site/torch"
ldd env/bin/instdisc-torch | grep -F "libtorch_cpu.so => $at/env/" >/dev/null || fail "libtorch is not found beside the program"
instdisc "${training[@]}" >/dev/null
instdisc knn --run run --dataset dataset --print lines
compgen -G "run/eval/*.html" >/dev/null || fail "there is no page"
echo "the wheel works"
