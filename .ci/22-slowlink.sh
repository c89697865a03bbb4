#!/usr/bin/env bash
# What bulk on a slow link leaves for others, beside plain TCP in the same run: ratios with a margin of 2, in two network
# namespaces.
set -euo pipefail
cd "$(dirname "$0")/.."
.ci/install iproute2
CI=true go test -count=1 -timeout 10m -v ./lab/slowlink -args -check
