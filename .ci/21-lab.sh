#!/usr/bin/env bash
# Real sidecars operated under load, and links killed while data flows, at full
# sizes but for the runs of hours (SEALANE_CHURN, SEALANE_KILLS). The tests and
# the sidecars overwrite what they lent the moment its loan ends.
set -euo pipefail
cd "$(dirname "$0")/.."
.ci/install util-linux
# One package at a time: their loads are meant to be alone.
lab() { SEALANE_LAB=long go test -p 1 -count=1 -timeout 25m -v "$@"; }
resident='^(TestHostilePeer|TestSlowReaders)$' # overwriting would touch memory that nothing else does
GOFLAGS=-tags=poison lab -skip "$resident" ./lab/ops ./lab/faults
lab -run "$resident" ./lab/ops
