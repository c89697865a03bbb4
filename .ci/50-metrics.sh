#!/usr/bin/env bash
# What /metrics says is what Prometheus's own checker wants.
set -euo pipefail
cd "$(dirname "$0")/.."
.ci/install curl prometheus
folder=$(mktemp -d)
trap 'kill "$demo" 2>/dev/null || true; rm -rf "$folder"' EXIT
go build -o "$folder/sealane" ./cmd/sealane
"$folder/sealane" demo >"$folder/demo.txt" &
demo=$!
for _ in $(seq 100); do
    page=$(sed -n 's/.*look at \(http:[^ ]*\) .*/\1/p' "$folder/demo.txt")
    [ -z "$page" ] || break
    sleep 0.1
done
curl -sf "${page}metrics" >"$folder/metrics.txt"
grep -c '^sealane_' "$folder/metrics.txt"
promtool check metrics <"$folder/metrics.txt"
