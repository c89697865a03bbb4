# Two images with one static binary each and nothing else: no shell, no libc, no users file.
#
#   docker build --target sealane .             the sidecar (also the redirect init container)
#   docker build --target sealane-injector .    the admission webhook
#   --build-arg GOARCH=arm64                    for another kind of machine, cross-compiled (default: amd64)
#   --build-arg VERSION=v1.2.3                  shown by sealane version; default: git describe, if .git is here
#
# It needs neither BuildKit nor a registry: k8s/images/build makes the base image from the machine's own Go, and marks
# the image with its architecture where the builder does not.
ARG GO_IMAGE=golang:1.26-bookworm
ARG GOARCH=amd64

FROM ${GO_IMAGE} AS build
LABEL dev.sealane.stage=build
WORKDIR /src
COPY . .
ARG GOARCH
ARG VERSION
# A vendor folder, if the context has one, is used without being told.
RUN version=${VERSION:-$(git describe --tags --always 2>/dev/null || echo unknown)} && \
    CGO_ENABLED=0 GOOS=linux GOARCH=$GOARCH GOFLAGS= go build -trimpath -buildvcs=false \
        -ldflags "-s -w -X main.version=$version" -o /out/ ./cmd/sealane ./cmd/sealane-injector

FROM --platform=linux/${GOARCH} scratch AS sealane-injector
COPY --from=build /out/sealane-injector /sealane-injector
USER 7423:7423
ENTRYPOINT ["/sealane-injector"]

# The user has no name: the redirect rules exempt its number, see docs/hosts.md.
FROM --platform=linux/${GOARCH} scratch AS sealane
COPY --from=build /out/sealane /sealane
USER 7423:7423
ENTRYPOINT ["/sealane"]
CMD ["run", "-c", "/etc/sealane/sealane.yaml"]
