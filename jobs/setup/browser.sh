#!/usr/bin/env bash
# Finds or installs the Chromium in which a test opens the report page.
set -euo pipefail
cd "$(dirname "$0")/../.."

for name in chromium chromium-browser google-chrome; do
  if command -v "$name" >/dev/null; then exit 0; fi
done
if [ "$(id -u)" = 0 ] && apt-get install -y -qq --no-install-recommends --dry-run chromium >/dev/null 2>&1; then
  echo "installing chromium"
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends -o Acquire::Retries=5 \
    -o DPkg::Lock::Timeout=300 chromium fonts-dejavu-core
else
  echo "no Chromium here: the test of the report page will be skipped (Debian: apt-get install chromium)"
fi
