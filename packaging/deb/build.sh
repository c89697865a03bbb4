#!/usr/bin/env bash
# Builds sealane's Debian package with dpkg-deb alone.
#
#   packaging/deb/build.sh [FOLDER]     writes sealane_VERSION_ARCH.deb into FOLDER (default: dist)
#
# VERSION (default: that of CHANGELOG.md, with the commit) and ARCH (amd64 or
# arm64, default: this machine's) may be set. The same commit gives the same
# bytes.
set -euo pipefail
cd "$(dirname "$0")/../.."

out=${1:-dist}
arch=${ARCH:-$(dpkg --print-architecture)}
release=$(sed -n 's/^## \[\([0-9][0-9.]*\)\].*/\1/p' CHANGELOG.md | head -n 1)
commit=$(git rev-parse --short=12 HEAD 2>/dev/null || echo unknown)
version=${VERSION:-$release~git$(git log -1 --format=%cd --date=format:%Y%m%d%H%M%S 2>/dev/null || echo 0).$commit}
SOURCE_DATE_EPOCH=${SOURCE_DATE_EPOCH:-$(git log -1 --format=%ct 2>/dev/null || echo 0)}
export SOURCE_DATE_EPOCH
maintainer=$(sed -n 's/^Maintainer: //p' packaging/deb/control)

root=$(mktemp -d)
tools=$(mktemp -d)
trap 'rm -rf "$root" "$tools"' EXIT
chmod 755 "$root"

build() { CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "-s -w -X main.version=$version" -o "$1" ./cmd/sealane; }
put() { install -D -m "$1" "$2" "$root/$3"; }

build "$tools/sealane" # of this machine, to print the completions
GOARCH=$arch build "$tools/target"

put 755 "$tools/target" usr/bin/sealane
put 644 packaging/systemd/sealane.service usr/lib/systemd/system/sealane.service
put 644 packaging/systemd/sealane@.service usr/lib/systemd/system/sealane@.service
put 644 packaging/systemd/sealane-redirect.service usr/lib/systemd/system/sealane-redirect.service
put 644 packaging/systemd/sealane-redirect-early.service usr/lib/systemd/system/sealane-redirect-early.service
put 644 packaging/systemd/sealane-redirect-watch.service usr/lib/systemd/system/sealane-redirect-watch.service
put 644 packaging/systemd/sysusers.conf usr/lib/sysusers.d/sealane.conf
put 640 packaging/sealane.yaml etc/sealane/sealane.yaml
chmod 750 "$root/etc/sealane"

"$tools/sealane" completion bash >"$tools/bash"
"$tools/sealane" completion zsh >"$tools/zsh"
"$tools/sealane" completion fish >"$tools/fish"
put 644 "$tools/bash" usr/share/bash-completion/completions/sealane
put 644 "$tools/zsh" usr/share/zsh/vendor-completions/_sealane
put 644 "$tools/fish" usr/share/fish/vendor_completions.d/sealane.fish

put 644 packaging/sealane.1 usr/share/man/man1/sealane.1
put 644 packaging/deb/copyright usr/share/doc/sealane/copyright
put 644 packaging/deb/lintian-overrides usr/share/lintian/overrides/sealane
printf 'sealane (%s) unstable; urgency=medium\n\n  * See CHANGELOG.md.\n\n -- %s  %s\n' \
    "$version" "$maintainer" "$(LC_ALL=C date -u -R -d "@$SOURCE_DATE_EPOCH")" >"$tools/changelog"
put 644 "$tools/changelog" usr/share/doc/sealane/changelog
for doc in CHANGELOG.md README.md SPEC.md docs/operations.md docs/hosts.md docs/threat-model.md docs/troubleshooting.md docs/alerts.yml; do
    if [ -f "$doc" ]; then put 644 "$doc" "usr/share/doc/sealane/$(basename "$doc")"; fi
done
gzip -9n "$root/usr/share/man/man1/sealane.1" "$root/usr/share/doc/sealane/changelog"

mkdir "$root/DEBIAN"
for script in postinst prerm postrm; do install -m 755 "packaging/deb/$script" "$root/DEBIAN/$script"; done
echo /etc/sealane/sealane.yaml >"$root/DEBIAN/conffiles"
size=$(du -sk --exclude=DEBIAN "$root" | cut -f 1)
sed -e "s/@VERSION@/$version/" -e "s/@ARCH@/$arch/" -e "s/@SIZE@/$size/" packaging/deb/control >"$root/DEBIAN/control"
(cd "$root" && find . -path ./DEBIAN -prune -o -path ./etc -prune -o -type f -printf '%P\n' | LC_ALL=C sort | xargs md5sum >DEBIAN/md5sums)

mkdir -p "$out"
find "$root" -newermt "@$SOURCE_DATE_EPOCH" -exec touch -h -d "@$SOURCE_DATE_EPOCH" {} +
dpkg-deb --root-owner-group -Zxz --build "$root" "$out/sealane_${version}_$arch.deb"
