#!/usr/bin/env bash
# Makes what a release publishes, from a clean checkout, in target/instdisc-VERSION: the wheel, the context of the
# container images with that wheel, this version's entry of CHANGELOG.md, and SHA256SUMS over all three.
# Usage: release.sh WHEEL
set -euo pipefail
cd "$(dirname "$0")/.."

wheel=$(realpath "$1")
version=$(sed -n 's/^version = "\(.*\)"/\1/p' Cargo.toml | head -n 1)
name=instdisc-$version
out=target/$name
fail() { echo "error: $*" >&2; exit 1; }

case ${wheel##*/} in
  "$name"-*) ;;
  *) fail "${wheel##*/} is not of version $version, which Cargo.toml names" ;;
esac
[ -z "$(git status --porcelain)" ] || fail "the checkout has changes that are not committed; git status names them"
entry=$(awk -v heading="## $version" '/^## / { inside = index($0 " ", heading " ") == 1 } inside' CHANGELOG.md)
[ -n "$entry" ] || fail "CHANGELOG.md has no entry \"## $version\""

rm -rf "$out"
mkdir -p "$out/image/$name-image/wheel"
context=$out/image/$name-image
cp "$wheel" "$out/"
cp "$wheel" "$context/wheel/"
git archive HEAD jobs/container jobs/runs jobs/setup/requirements | tar -x -C "$context"
cat >"$context/README" <<README
Images of instdisc $version with the wheel beside this file; nothing is compiled:

    docker build -f jobs/container/Dockerfile --build-context wheel=wheel --target cpu-tools -t instdisc-cpu-tools:$version .
    docker build -f jobs/container/Dockerfile --build-context wheel=wheel --target train -t instdisc-train:$version .
README
# The same commit gives the same bytes, but for the wheel's.
tar -C "$out/image" --sort=name --owner=0 --group=0 --numeric-owner --mtime="@$(git log -1 --format=%ct)" -c "$name-image" |
  gzip -n >"$out/$name-image.tar.gz"
rm -r "$out/image"
printf '%s\n' "$entry" >"$out/CHANGELOG-$version.md"
(cd "$out" && sha256sum -- * >SHA256SUMS)
echo "$out, of commit $(git log -1 --format=%h):"
(cd "$out" && stat -c '  %11s  %n' -- *)
