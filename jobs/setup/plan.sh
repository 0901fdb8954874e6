#!/usr/bin/env bash
# Says what `make demo` or `make test` is about to do, how much it fetches, and about how long it takes.
# Usage: plan.sh demo|test
set -euo pipefail
cd "$(dirname "$0")/../.."
source jobs/setup/retry.sh

what=$1
cores=$(nproc)
# Minutes of one core, measured on 2 (docs/performance.md, "From nothing").
dependencies=30
program=4
minutes() { # minutes CORE_MINUTES
  local minutes=$((($1 + cores - 1) / cores))
  echo "about $minutes min on $cores cores"
}

packages=$(jobs/setup/packages.sh list)
[ -z "$packages" ] || echo "$what: $packages"
if [ -z "${LIBTORCH:-}" ] && [ ! -e .libtorch/lib/libtorch_cpu.so ]; then
  echo "$what: fetches libtorch $(pinned_version jobs/setup/requirements/libtorch.txt torch) into .venv (0.6 GB; with a GPU 2.7 GB)"
fi
crates=$(find target/debug/deps -name '*.rlib' 2>/dev/null | wc -l || true)
all=$(grep -c '^name = ' Cargo.lock)
if [ "$crates" -lt $((all * 2 / 3)) ]; then
  echo "$what: compiles $all crates and this one ($(minutes $((dependencies + program))); interrupted, it goes on where it was)"
else
  echo "$what: compiles what has changed ($(minutes $program) at most)"
fi
case $what in
  demo) echo "demo: draws or takes images, trains, and evaluates (about 6 min on 2 cores), into demo/" ;;
  test) echo "test: runs all tests (about 14 min on 2 cores)" ;;
esac
