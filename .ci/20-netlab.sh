#!/usr/bin/env bash
# The part of the namespace lab that takes minutes: half-closed connections that are silent for longer than the kernel
# remembers a redirected one, an upload so slow that pings wait for longer than timeouts.link, and outages. The rest of the lab is
# among go test's packages.
set -euo pipefail
cd "$(dirname "$0")/.."
CI=true go test -count=1 -run '^(TestHalfClosedAndIdle|TestSlowUpload|TestOutages)$' -timeout 10m ./k8s/netlab \
  -args -idle 130s -upload 100s -link 15s
