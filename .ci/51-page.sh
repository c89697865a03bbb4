#!/usr/bin/env bash
# The status page in a real browser, while traffic flows.
set -euo pipefail
cd "$(dirname "$0")"
./install chromium
cd page
go vet ./...
go test -count=1 ./...
