#!/usr/bin/env bash
# Finds or installs the Chromium in which a test opens the report page.
set -euo pipefail
cd "$(dirname "$0")/../.."
source jobs/setup/retry.sh

for name in chromium chromium-browser google-chrome; do
  if command -v "$name" >/dev/null; then exit 0; fi
done
if [ "$(id -u)" = 0 ] && apt-get install -y -qq --no-install-recommends --dry-run chromium >/dev/null 2>&1; then
  echo "installing chromium"
  install_packages chromium fonts-dejavu-core
else
  echo "no Chromium here: the test of the report page will be skipped (Debian: apt-get install chromium)"
fi
