#!/usr/bin/env bash
# Real clients and servers through two sidecars, at full sizes.
set -euo pipefail
cd "$(dirname "$0")/.."
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
  postgresql postgresql-contrib redis-server redis-tools nginx-light proxychains4 curl >/dev/null
SEALANE_LAB=long go test -count=1 -timeout 15m -v ./lab/servers
