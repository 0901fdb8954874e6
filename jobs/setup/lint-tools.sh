#!/usr/bin/env bash
# What `make lint` needs beside a Rust of today: the oldest Rust that Cargo.toml promises, cargo-deny, typos.
# Usage: lint-tools.sh install|oldest-rust|licences|spelling
set -euo pipefail
cd "$(dirname "$0")/../.."
source jobs/setup/retry.sh

rust=$(rust_version)
deny=cargo-deny@0.20.2
requirements=jobs/setup/requirements/lint.txt
typos=.tools/typos/bin/typos

missing() { # missing WHAT COMMAND
  printf 'error: %s is missing. Install it with: %s\nor all tools of the lints with: make lint-tools\n' "$1" "$2" >&2
  exit 1
}

# Its toolchain by the name under which it is installed: 1.90-x86_64-… or 1.90.0-x86_64-….
installed_rust() {
  rustup toolchain list | grep -oE "^${rust//./\\.}[-.][^ ]*" | head -n 1
}
has_rust() {
  [ -n "$(installed_rust)" ]
}

has_deny() {
  cargo deny --version >/dev/null 2>&1
}

# Another version has another dictionary.
has_typos() {
  [ "$($typos --version 2>/dev/null)" = "typos-cli $(pinned_version $requirements typos)" ]
}

install() {
  if command -v rustup >/dev/null && ! has_rust; then
    echo "installing Rust $rust"
    again rustup toolchain install "$rust" --profile minimal --no-self-update
  fi
  if ! has_deny; then
    # Unoptimised: it compiles in half the time, and a check still takes only seconds.
    echo "installing $deny"
    CARGO_PROFILE_DEV_DEBUG=0 again cargo install --quiet --debug --locked "$deny"
  fi
  if ! has_typos; then
    echo "installing typos into .tools"
    make_venv .tools/typos
    again .tools/typos/bin/pip --quiet --disable-pip-version-check --no-cache-dir --timeout 60 install --no-deps --require-hashes -r $requirements
  fi
}

oldest_rust() {
  if ! command -v rustup >/dev/null; then
    echo "no rustup here: compiled with $(rustc --version), not with Rust $rust, which Cargo.toml promises"
    cargo check --no-default-features
    return
  fi
  has_rust || missing "Rust $rust" "rustup toolchain install $rust --profile minimal"
  rustup run "$(installed_rust)" cargo check --no-default-features
}

licences() {
  has_deny || missing cargo-deny "cargo install --locked $deny"
  cargo deny check bans licenses sources
  if timeout 120 cargo deny fetch db >/dev/null 2>&1; then
    cargo deny check advisories
  else
    echo "known vulnerabilities are not checked: their database cannot be reached (cargo deny fetch db)"
  fi
}

spelling() {
  has_typos || missing "typos $(pinned_version $requirements typos)" "jobs/setup/lint-tools.sh install"
  $typos
}

case "${1:-}" in
  install) install ;;
  oldest-rust) oldest_rust ;;
  licences) licences ;;
  spelling) spelling ;;
  *) echo "usage: lint-tools.sh install|oldest-rust|licences|spelling" >&2; exit 2 ;;
esac
