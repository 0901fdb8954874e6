#!/usr/bin/env bash
# Names or installs the system packages that a build needs. Usage: packages.sh check|install
set -euo pipefail
source "$(dirname "$0")/again.sh"

missing=()
need() { # need PACKAGE COMMAND...: the package is missing if the command fails
  local package=$1
  shift
  "$@" >/dev/null 2>&1 || missing+=("$package")
}
need g++ c++ --version
need cmake cmake --version
need nasm nasm --version
need make make --version
need python3-venv python3 -c 'import venv, ensurepip'

if ! cargo --version >/dev/null 2>&1; then
  echo "error: cargo is missing. Install Rust $(rust_version) or newer: https://rustup.rs" >&2
  exit 1
fi
[ ${#missing[@]} -gt 0 ] || exit 0

as_root=""
[ "$(id -u)" = 0 ] || as_root="sudo "
command="${as_root}apt-get update && ${as_root}apt-get install -y --no-install-recommends ${missing[*]}"
if [ "${1:-check}" = install ] && [ "$(id -u)" = 0 ]; then
  echo "installing ${missing[*]}"
  install_packages "${missing[@]}"
else
  echo "error: missing: ${missing[*]}. Install with: $command" >&2
  [ "$(id -u)" != 0 ] || echo "or: make deps" >&2
  exit 1
fi
