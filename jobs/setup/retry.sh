# shellcheck shell=bash
# Read by the scripts beside it: what fetches something is tried three times, and pip installs only what has a hash.

again() { # again COMMAND...
  local pause
  for pause in 10 30; do
    "$@" && return
    echo "failed, once more in $pause s: $1" >&2
    sleep "$pause"
  done
  "$@"
}

install_packages() { # install_packages PACKAGE...: as root, on Debian and its kin
  local apt=(apt-get -qq -o Acquire::Retries=5 -o DPkg::Lock::Timeout=300)
  # A source that is not needed here may fail; whether all was found is seen next.
  again "${apt[@]}" update || true
  DEBIAN_FRONTEND=noninteractive again "${apt[@]}" install -y --no-install-recommends "$@"
}

make_venv() { # make_venv FOLDER: an environment with pip; where Python has none to give, that which packages.sh unpacked
  if python3 -c 'import ensurepip' 2>/dev/null; then
    python3 -m venv --clear "$1"
  else
    python3 -m venv --clear --without-pip "$1"
    "$1/bin/python" "$(echo .tools/usr/share/python-wheels/pip-*.whl)/pip" --quiet install --no-index \
      .tools/usr/share/python-wheels/pip-*.whl
  fi
}

rust_version() { # the oldest Rust with which the program compiles
  sed -n 's/^rust-version = "\(.*\)"/\1/p' "$(dirname "${BASH_SOURCE[0]}")/../../Cargo.toml"
}

pinned() { # pinned FILE PACKAGE...: their lines in a file of requirements, with the hashes
  local file=$1 package found
  shift
  for package; do
    found=$(awk -v "name=$package" '/^[^ ]/ { keep = index($0, name "==") == 1 } keep' "$file")
    [ -n "$found" ] || { echo "error: $file has no $package" >&2; return 1; }
    printf '%s\n' "$found"
  done
}

pinned_version() { # pinned_version FILE PACKAGE
  pinned "$1" "$2" | sed -n '1s/^[^=]*==\([^ ;]*\).*/\1/p'
}
