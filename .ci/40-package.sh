#!/usr/bin/env bash
# Builds the Debian package, installs it, uses what is in it, and purges it.
set -euo pipefail
cd "$(dirname "$0")/.."
.ci/install bash-completion dpkg-dev fish lintian man-db prometheus systemd zsh

fail() { printf 'package: %s\n' "$*" >&2; exit 1; }
is() { [ "$2" = "$3" ] || fail "$1 is '$2', want '$3'"; }

work=$(mktemp -d)
cleanup() {
    # Only what this script put there.
    if [ -e "$work/installed" ]; then
        dpkg --purge sealane >/dev/null 2>&1 || true
        rm -rf /etc/sealane
    fi
    rm -rf "$work"
}
trap cleanup EXIT
if dpkg-query -W sealane >/dev/null 2>&1 || [ -e /etc/sealane ]; then
    fail 'sealane is installed on this machine; this test would replace it'
fi

echo '- build, twice: the same bytes'
packaging/deb/build.sh "$work/one" >/dev/null
packaging/deb/build.sh "$work/two" >/dev/null
cmp "$work"/one/*.deb "$work"/two/*.deb
ARCH=arm64 packaging/deb/build.sh "$work/arm64" >/dev/null
is 'the other architecture' "$(dpkg-deb -f "$work"/arm64/*.deb Architecture)" arm64
deb=$(echo "$work"/one/*.deb)
lintian --allow-root --fail-on error,warning "$deb"

echo '- install'
touch "$work/installed"
dpkg -i "$deb" >/dev/null
is 'the version' "$(sealane version | cut -d ' ' -f 2)" "$(dpkg-deb -f "$deb" Version)"
is 'the config folder' "$(stat -c '%U:%G %a' /etc/sealane)" 'root:sealane 750'
is 'the shell of the user' "$(getent passwd sealane | cut -d : -f 7)" /usr/sbin/nologin

echo '- the example config, as it is and with all its examples'
sealane keygen -o /etc/sealane/node.key >/dev/null
chown sealane: /etc/sealane/node.key
as_sealane() { setpriv --reuid=sealane --regid=sealane --init-groups sealane "$@"; }
as_sealane check -c /etc/sealane/sealane.yaml >/dev/null
sealane pubkey /etc/sealane/node.key 2>/dev/null && fail "root takes a key that another user can change"
sed 's/^#://' /etc/sealane/sealane.yaml >/etc/sealane/full.yaml
as_sealane check -c /etc/sealane/full.yaml | grep -q '1 peer, 2 listeners, 1 route, 1 service, 1 egress rule' || fail 'the examples do not check'
rm /etc/sealane/full.yaml

echo '- the manual page and the completions'
dpkg-deb --fsys-tarfile "$deb" | tar -x -C "$work" ./usr/share # a minimal system leaves out what is in /usr/share/man
warnings=$(MANROFFSEQ='' MANWIDTH=80 man --warnings -l "$work/usr/share/man/man1/sealane.1.gz" 2>&1 >"$work/page")
is 'what man warns of' "$warnings" ''
grep -q 'check a config file\|Check a config file' "$work/page" || fail 'the manual page lacks the commands'
is 'bash' "$(bash -c '
    source /usr/share/bash-completion/bash_completion
    _completion_loader sealane
    COMP_WORDS=(sealane keyg) COMP_CWORD=1
    _sealane
    echo "${COMPREPLY[@]}"')" keygen
is 'zsh' "$(zsh -f -c 'autoload -U compinit; compinit -u -D; echo $_comps[sealane]')" _sealane
is 'fish' "$(HOME=$work fish -c 'complete -C "sealane keyg"' | cut -f 1)" keygen

echo '- the units'
for unit in sealane.service sealane@example.service sealane-redirect.service sealane-redirect-early.service sealane-redirect-watch.service; do
    # systemd 252 does not know notify-reload, and goes on with notify.
    problems=$(systemd-analyze verify "$unit" 2>&1 | grep -i sealane | grep -v 'Failed to parse service type, ignoring: notify-reload' | grep -v "Command 'man " || true)
    is "what systemd says of $unit" "$problems" ''
done
systemd-analyze security --offline=true --threshold=20 sealane.service >/dev/null || fail 'the service is more exposed than 2.0'

echo '- the alerts'
promtool check rules docs/alerts.yml
promtool test rules docs/alerts.test.yml

echo '- upgrade, then remove and purge'
echo '# changed by hand' >>/etc/sealane/sealane.yaml
dpkg -i "$deb" >/dev/null
grep -q 'changed by hand' /etc/sealane/sealane.yaml || fail 'an upgrade lost a change to the config'
is 'the config folder after an upgrade' "$(stat -c '%U:%G %a' /etc/sealane)" 'root:sealane 750'
dpkg --remove sealane >/dev/null
[ ! -e /usr/bin/sealane ] || fail 'the binary is there after the removal'
[ -e /etc/sealane/sealane.yaml ] || fail 'the removal took the config'
dpkg --purge sealane >/dev/null 2>&1
[ -e /etc/sealane/node.key ] || fail 'the purge took a key'
rm /etc/sealane/node.key
dpkg -i "$deb" >/dev/null
dpkg --purge sealane >/dev/null
left=$(dpkg-deb --fsys-tarfile "$deb" | tar -t | grep -i sealane | sed 's|^\.||' | while read -r f; do [ ! -e "$f" ] || echo "$f"; done)
is 'what the purge left' "$left" ''
rm "$work/installed"
