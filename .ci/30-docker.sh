#!/usr/bin/env bash
# The images from the real Dockerfile, for both architectures, and the pods made of Docker containers.
set -euo pipefail
cd "$(dirname "$0")/.."
.ci/install postgresql-15 tcpdump util-linux iproute2
k8s/images/build arm64
docker image inspect --format '{{.Architecture}}' "$(docker images -q --filter reference='sealane:*-arm64' | head -1)" | grep -qx arm64
timeout 1200 k8s/docker/pods
docker run --rm --read-only --cap-drop ALL sealane:latest version | grep -F "$(git describe --tags --always)"
