#!/usr/bin/env bash
# Gets the tools that a build needs and that are missing: as root from the system's packages; without root from PyPI and,
# on Debian and its kin, from its packages, unpacked into .tools. What neither gives is named, with the command that
# installs it, before anything is fetched.
# Usage: packages.sh get|list   (list: a line of what `get` would do, or nothing)
set -euo pipefail
cd "$(dirname "$0")/../.."
source jobs/setup/again.sh

has() {
  case $1 in
    g++) c++ --version ;;
    cmake) cmake --version ;;
    nasm) nasm --version ;;
    make) make --version ;;
    python3) python3 --version ;;
    # In .tools there is a pip for an environment without one.
    python3-venv) python3 -c 'import venv, ensurepip' || compgen -G ".tools/usr/share/python-wheels/pip-*.whl" ;;
  esac >/dev/null 2>&1
}

# What can be had without root: its source, and its size in MB.
without_root() {
  case $1 in
    cmake) echo "PyPI 30" ;;
    nasm) echo "Debian 1" ;;
    python3) echo "Debian 5" ;;
    python3-venv) echo "Debian 2" ;;
    # Its C compiler, headers and linker have to be there.
    g++) cc --version >/dev/null 2>&1 && echo "Debian 30" ;;
  esac
}
is_debian() { command -v apt-get dpkg >/dev/null; }

root=$PWD
missing=()
for package in make g++ nasm python3 python3-venv cmake; do has $package || missing+=("$package"); done

if ! cargo --version >/dev/null 2>&1; then
  echo "error: cargo is missing. Install Rust $(rust_version) or newer: https://rustup.rs" >&2
  exit 1
fi
[ ${#missing[@]} -gt 0 ] || exit 0
is_root() { [ "$(id -u)" = 0 ]; }

# Refuses before anything is fetched.
unobtainable=()
for package in "${missing[@]}"; do
  source=$(without_root "$package" || true)
  if is_root && is_debian; then continue; fi
  case $source in
    PyPI*) if has python3 || is_debian; then continue; fi ;;
    Debian*) is_debian && continue ;;
  esac
  unobtainable+=("$package")
done
for package in "${unobtainable[@]}"; do
  if is_debian; then
    echo "error: $package is missing: sudo apt-get install -y $package" >&2
  else
    echo "error: $package is missing: install it by this system's package manager" >&2
  fi
done
[ ${#unobtainable[@]} = 0 ] || exit 1

if [ "${1:-get}" = list ]; then
  if is_root; then
    echo "installs ${missing[*]} with apt (about 100 MB)"
  else
    megabytes=0
    for package in "${missing[@]}"; do
      read -r _ size <<<"$(without_root "$package")"
      megabytes=$((megabytes + size))
    done
    echo "puts ${missing[*]} into .tools (about $megabytes MB; no root)"
  fi
  exit 0
fi

if is_root; then
  echo "installing ${missing[*]}"
  install_packages "${missing[@]}"
  exit 0
fi

# Debian's packages, unpacked; their lists are kept in .tools, since the system's are root's.
lists() { # lists COMMAND...: a command of apt with them
  local command=$1
  shift
  "$command" -o Acquire::Retries=5 -o "Dir::State::lists=$root/.tools/apt/lists" -o "Dir::Cache=$root/.tools/apt/cache" \
    -o Debug::NoLocking=true "$@"
}
unpack() { # unpack PACKAGE...
  local aside
  aside=$(mktemp -d .tools/packages.XXXXXX)
  (cd "$aside" && again lists apt-get -qq download "$@")
  for file in "$aside"/*.deb; do dpkg -x "$file" .tools; done
  rm -rf "$aside"
}
mkdir -p .tools/usr/bin .tools/apt/lists/partial .tools/apt/cache/archives/partial
export PATH=$PWD/.tools/usr/bin:$PATH
[ -e .tools/apt/updated ] || { again lists apt-get -qq update && touch .tools/apt/updated; }
for package in "${missing[@]}"; do
  echo "getting $package into .tools"
  case $package in
    python3)
      version=$(lists apt-cache depends python3 | grep -o 'python3\.[0-9]*$' | head -n 1)
      unpack "$version-minimal" "lib$version-minimal" "lib$version-stdlib"
      ln -sf "$version" .tools/usr/bin/python3
      ;;
    nasm) unpack nasm ;;
    python3-venv) unpack python3-pip-whl ;;
    cmake)
      make_venv .tools/python
      again .tools/python/bin/pip --quiet --disable-pip-version-check --no-cache-dir --timeout 60 install --no-deps \
        --require-hashes -r jobs/setup/requirements/tools.txt
      ln -sf ../../python/bin/cmake .tools/usr/bin/cmake
      ;;
    g++)
      version=$(cc -dumpversion | cut -d. -f1)
      unpack "g++-$version" "libstdc++-$version-dev" libstdc++6
      ln -sf "g++-$version" .tools/usr/bin/c++
      ln -sf "g++-$version" .tools/usr/bin/g++
      ;;
  esac
done
for package in "${missing[@]}"; do
  has "$package" || { echo "error: $package is in .tools and does not run" >&2; exit 1; }
done
rm -rf .tools/apt
