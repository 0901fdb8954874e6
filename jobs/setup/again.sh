# Read by the scripts beside it: what fetches something is tried three times.

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
