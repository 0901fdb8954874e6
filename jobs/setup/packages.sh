#!/usr/bin/env bash
# Gets the tools that a build needs and that are missing: as root from the system's packages; without root from PyPI and,
# on Debian and its kin, from its packages, unpacked into .tools. What neither gives is named, with the command that
# installs it, before anything is fetched.
# Usage: packages.sh get|list   (list: a line of what `get` would do, or nothing)
set -euo pipefail
cd "$(dirname "$0")/../.."
source jobs/setup/retry.sh

probe=$(mktemp)
trap 'rm -f "$probe"' EXIT
has() {
  case $1 in
    # Rust links with `cc`, which has to find the C++ library too.
    g++)
      printf '#include <string>\nint main() { return std::string("").size(); }\n' | c++ -x c++ -c -o "$probe" - &&
        cc -o /dev/null "$probe" -lstdc++
      ;;
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
    g++) gcc --version >/dev/null 2>&1 && echo "Debian 60" ;;
  esac
}
is_debian() { command -v apt-get >/dev/null && command -v dpkg >/dev/null; }

root=$PWD
export PATH=$root/.tools/usr/bin:$PATH
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
  if is_root && is_debian; then
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

if is_root && is_debian; then
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
  local aside file
  aside=$(mktemp -d .tools/packages.XXXXXX)
  (cd "$aside" && again lists apt-get -qq download "$@") || exit 1
  for file in "$aside"/*.deb; do dpkg -x "$file" .tools; done
  rm -rf "$aside"
}
mkdir -p .tools/usr/bin
if [ "${missing[*]}" != cmake ]; then
  mkdir -p .tools/apt/lists/partial .tools/apt/cache/archives/partial
  # A source that is not needed here may fail; whether all was found is seen next.
  again lists apt-get -qq update || true
fi
trap 'rm -rf "$probe" "$root/.tools/apt" "$root"/.tools/packages.*' EXIT
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
      version=$(gcc -dumpversion | cut -d. -f1)
      unpack "libstdc++-$version-dev" "libgcc-$version-dev" libstdc++6
      # Newer releases have the compilers themselves in packages of another name.
      for part in g++ gcc cpp; do
        for name in "$part-$version" "$part-$version-$(uname -m | tr _ -)-linux-gnu"; do
          [ -z "$(lists apt-cache search --names-only "^${name//+/\\+}\$")" ] || unpack "$name"
        done
      done
      for name in c++ g++; do ln -sf "g++-$version" .tools/usr/bin/$name; done
      # Rust links with `cc`, which has to find this C++ library.
      ln -sf "gcc-$version" .tools/usr/bin/cc
      ;;
  esac
done
for package in "${missing[@]}"; do
  has "$package" || { echo "error: $package is in .tools and does not run" >&2; exit 1; }
done
echo "for cargo without make: export PATH=$root/.tools/usr/bin:\$PATH"
