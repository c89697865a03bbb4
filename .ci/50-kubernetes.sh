#!/usr/bin/env bash
# The manifests, the injector and the examples on a real one-node cluster, which
# is built, started and taken down again: see k8s/e2e. Needs root and Docker.
set -euo pipefail
cd "$(dirname "$0")"

./install containerd runc iproute2 nftables util-linux postgresql-15 postgresql-client-15
apt-get update -q # etcd and the CNI plugins are downloaded, and not installed
cd ../k8s/e2e
go vet . ./cluster ./app ./pause
go test -timeout 30m -v .
