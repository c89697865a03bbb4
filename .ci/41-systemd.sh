#!/usr/bin/env bash
# Runs the packaged service under a real systemd, which is booted in namespaces
# of its own over a copy-on-write view of this system: nothing here changes.
set -euo pipefail
cd "$(dirname "$0")/.."
.ci/install curl dpkg-dev iproute2 nftables systemd

work=$(mktemp -d)
packaging/deb/build.sh "$work" >/dev/null
mkdir "$work/layers"

# The manager's own script: its mounts, its network, then systemd as process 1.
cat >"$work/boot" <<'BOOT'
set -euo pipefail
cd "$1/layers"
mount --make-rprivate /
mount -t tmpfs tmpfs .
mkdir up tmp root
mount -t overlay overlay -o lowerdir=/,upperdir=up,workdir=tmp root
cp "$1"/*.deb root/sealane.deb
cd root
mount -t proc proc proc
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
mount --rbind /dev dev
ip link set lo up
rm -rf etc/systemd/system/*.wants
printf '[Unit]\nDescription=the test\n' >etc/systemd/system/test.target
: >etc/machine-id
chroot . dpkg -i sealane.deb >/dev/null
exec chroot . /usr/bin/env -i container=other PATH=/usr/sbin:/usr/bin:/sbin:/bin \
    /lib/systemd/systemd --unit=test.target --log-target=console --show-status=no
BOOT
unshare --mount --net --pid --fork --cgroup --ipc --uts --kill-child bash "$work/boot" "$work" >"$work/console" 2>&1 &
namespaces=$!
trap 'kill -9 "$namespaces" 2>/dev/null; wait "$namespaces" 2>/dev/null || true; rm -rf "$work"' EXIT

inside() { nsenter --target "$(cat "/proc/$namespaces/task/$namespaces/children" | tr -d ' ')" --all --root --wd "$@"; }
fail() {
    printf 'systemd: %s\n' "$*" >&2
    cat "$work/console" >&2
    inside tail -n 20 /run/sealane.log >&2 || true
    exit 1
}
# until_ WHAT COMMAND...: tries the command for a minute.
until_() {
    local what=$1
    shift
    for _ in $(seq 600); do
        if "$@" >/dev/null 2>&1; then return; fi
        sleep 0.1
    done
    fail "$what: never happened"
}
is() { [ "$2" = "$3" ] || fail "$1 is '$2', want '$3'"; }
running() { inside systemctl is-system-running | grep -q running; }
until_ 'systemd is up' running

property() { inside systemctl show -P "$1" "$2"; }
write() { inside tee "$1" >/dev/null; }
# key NAME: the key of sealane.service, or of an instance with its user and folder.
key() {
    local name=sealane${1:+-$1}
    if [ -n "$1" ]; then
        inside useradd --system --user-group --home-dir /nonexistent --no-create-home --shell /usr/sbin/nologin "$name"
        inside install -d -o root -g "$name" -m 750 "/etc/$name"
    fi
    inside sealane keygen -o "/etc/$name/node.key"
    inside chown "$name:" "/etc/$name/node.key"
}

main=$(key '') a=$(key a) b=$(key b)
[ -n "$main" ] || fail 'no key'
inside mkdir /etc/systemd/system/sealane.service.d /etc/systemd/system/sealane@.service.d
for unit in sealane sealane@; do
    write "/etc/systemd/system/$unit.service.d/test.conf" <<'E2'
[Service]
StandardError=append:/run/sealane.log
WatchdogSec=4
E2
done

echo '- two instances, a link between them, a socket below 1024 that systemd opens'
write /etc/sealane-a/sealane.yaml <<E2
identity: node.key
admin: unix:/run/sealane-a/admin.sock
peers: [{name: b, keys: ["$b"], address: "127.0.0.1:7423"}]
listeners:
  - forward: systemd:web
    to: {peer: b, service: web}
E2
write /etc/sealane-b/sealane.yaml <<E2
identity: node.key
listen: 127.0.0.1:7423
peers: [{name: a, keys: ["$a"]}]
services: [{name: web, address: "127.0.0.1:7424", allow: [a]}]
E2
write /etc/systemd/system/sealane-a.socket <<'E2'
[Socket]
ListenStream=127.0.0.1:80
FileDescriptorName=web
Service=sealane@a.service
E2
# The target is the admin endpoint of a third instance.
write /etc/sealane/sealane.yaml <<'E2'
identity: node.key
admin: 127.0.0.1:7424
E2
inside systemctl daemon-reload
inside systemctl start sealane.service sealane@b.service sealane-a.socket
is 'the instance behind the socket' "$(property ActiveState sealane@a.service)" inactive
is 'the page through the link' "$(inside curl -sS --max-time 60 http://127.0.0.1:80/live)" live
until_ 'the instance behind the socket is active' inside systemctl is-active sealane@a.service # it serves before it says so
until_ 'the status by the socket' inside sealane status --ready --admin unix:/run/sealane-a/admin.sock

echo '- no instance reads what another has'
for who in sealane sealane-a sealane-b; do
    for of in sealane sealane-a sealane-b; do
        may=no
        inside setpriv --reuid="$who" --regid="$who" --init-groups cat "/etc/$of/node.key" >/dev/null 2>&1 && may=yes
        is "whether $who reads the key of $of" "$may" "$([ "$who" = "$of" ] && echo yes || echo no)"
    done
done
for of in a b; do
    is "the user of sealane@$of" "$(inside stat -c %U "/proc/$(property MainPID "sealane@$of.service")")" "sealane-$of"
    is "the sockets' folder of sealane@$of" "$(inside stat -c '%U %a' "/run/sealane-$of")" "sealane-$of 755"
done

echo '- what systemd knows, and the sandbox beneath its filters'
property StatusText sealane@a.service | grep -q '^1 peer, 1 listener, config revision ' || fail "status $(property StatusText sealane@a.service)"
is 'the type' "$(property Type sealane.service)" "$([ "$(systemctl --version | sed -n 's/^systemd \([0-9]*\).*/\1/p')" -ge 253 ] && echo notify-reload || echo notify)"
inside grep -q '"applied":"Landlock ABI [4-9].*listens on TCP ports' /run/sealane.log || fail 'the sandbox is not in the log'
status=/proc/$(property MainPID sealane.service)/status
is 'capabilities and privileges' "$(inside grep -E '^(CapEff|CapBnd|NoNewPrivs|Seccomp):' "$status" | tr -s '\t' ' ' | tr '\n' ' ')" \
    'CapEff: 0000000000000000 CapBnd: 0000000000000000 NoNewPrivs: 1 Seccomp: 2 '

echo '- reload, a bad reload'
before=$(property StatusText sealane.service)
echo 'log: {level: debug}' | inside tee -a /etc/sealane/sealane.yaml >/dev/null
inside systemctl reload sealane.service
changed() { [ "$(property StatusText sealane.service)" != "$before" ]; }
until_ 'the reload' changed
echo 'bad: config' | inside tee -a /etc/sealane/sealane.yaml >/dev/null
inside systemctl reload sealane.service
until_ 'the refusal' inside grep -q 'reload refused' /run/sealane.log
is 'the state after a bad reload' "$(property ActiveState sealane.service)" active

echo '- a start with a bad config is not tried again'
inside systemctl restart sealane.service >/dev/null 2>&1 && fail 'it started with a bad config'
is 'the exit code' "$(property ExecMainStatus sealane.service)" 78
is 'the state' "$(property ActiveState sealane.service)" failed

echo '- a hung process is killed and started anew'
pid=$(property MainPID sealane@b.service)
inside kill -STOP "$pid"
restarted() { [ "$(property NRestarts sealane@b.service)" = 1 ] && [ "$(property ActiveState sealane@b.service)" = active ]; }
until_ 'the restart by the watchdog' restarted
inside sed -i '/^bad:/d' /etc/sealane/sealane.yaml
inside systemctl start sealane.service || fail 'it did not start with a good config'
is 'the page with its server' "$(inside curl -sS --max-time 60 --retry 5 --retry-all-errors http://127.0.0.1:80/live)" live

echo '- a clean stop'
inside systemctl stop sealane-a.socket sealane@a.service sealane@b.service sealane.service
is 'the result' "$(property Result sealane@a.service) $(property ExecMainStatus sealane@a.service)" 'success 0'

echo '- the redirect rules: there before the network, proved before the program that requires them, renewed'
inside ip link add eth0 type veth peer name far
inside ip addr add 192.0.2.10/24 dev eth0
inside ip link set eth0 up
inside ip link set far up
write /etc/sealane/redirect <<<'OPTIONS=--ports 5432 --cidrs 192.0.2.0/24'
write /etc/systemd/system/app.service <<'E2'
[Unit]
Requires=sealane-redirect.service
After=sealane-redirect.service
StartLimitIntervalSec=0
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/bin/sh -c 'exec /usr/sbin/nft list table inet sealane >/run/rules'
ExecStop=/usr/bin/sh -c 'exec /usr/sbin/nft list table inet sealane >/run/rules-at-the-end'
E2
for unit in sealane-redirect sealane-redirect-early sealane-redirect-watch; do
    inside mkdir "/etc/systemd/system/$unit.service.d"
    write "/etc/systemd/system/$unit.service.d/test.conf" <<'E2'
[Service]
StandardOutput=append:/run/sealane.log
StandardError=append:/run/sealane.log
E2
done
inside systemctl daemon-reload
inside systemctl start app.service || fail 'the program did not start'
inside grep -q "meta skuid $(inside id -u sealane) return" /run/rules || fail 'the user sealane is not exempt'
inside grep -q 'IPv4: verified: a connection to 192.0.2.[0-9]*:5432 arrived' /run/sealane.log || fail 'the rules were not proved'
[[ " $(property Before sealane-redirect-early.service) " == *' network-pre.target '* ]] || fail 'the rules are not there before the network'
for unit in sealane sealane-redirect sealane-redirect-early sealane-redirect-watch; do
    is "the time in which starts of $unit are limited" "$(property StartLimitIntervalUSec "$unit.service")" 0
done
is 'what takes rules away' "$(property ExecStop sealane-redirect.service)$(property ExecStop sealane-redirect-early.service)" ''
catches() { [[ $(inside nft list table inet sealane) == *"elements = { $1 }"* ]]; }
write /etc/sealane/redirect <<<'OPTIONS=--ports 5433'
inside systemctl reload sealane-redirect.service || fail 'the rules could not be renewed'
catches 5433 || fail 'a reload did not renew the rules'

echo '- neither a stop, a restart nor a failure leaves a moment without rules'
# A packet of every connection attempt that gets out is counted on the way.
inside nft 'add table inet watch; add chain inet watch out { type filter hook output priority 300; };
    add rule inet watch out oifname eth0 tcp dport 5433 counter'
inside sh -c 'while :; do timeout 0.2 bash -c ": </dev/tcp/192.0.2.20/5433"; done 2>/dev/null & echo $! >/run/dialer'
write /etc/sealane/redirect <<<'OPTIONS=--ports 5433-5434'
for _ in 1 2 3; do inside systemctl restart sealane-redirect.service sealane-redirect-early.service; done
catches 5433-5434 || fail 'a restart did not renew the rules'
write /etc/sealane/redirect <<<'OPTIONS=--ports 5433 --guard-inbound none'
inside systemctl reload sealane-redirect.service 2>/dev/null && fail 'a reload with bad options succeeded'
catches 5433-5434 || fail 'a reload with bad options took the rules away'
inside nft 'add table inet broken; add chain inet broken in { type filter hook input priority 0; };
    add rule inet broken in tcp dport 15006 drop'
write /etc/sealane/redirect <<<'OPTIONS=--ports 5433'
inside systemctl restart sealane-redirect.service 2>/dev/null && fail 'rules that do not work were proved'
inside grep -q 'the rules that were there are in force again' /run/sealane.log || fail 'the failure was another one'
catches 5433-5434 || fail 'a failed restart took the rules away'
inside nft delete table inet broken
inside systemctl stop sealane-redirect.service sealane-redirect-early.service
catches 5433-5434 || fail 'a stop took the rules away'
inside sh -c 'kill $(cat /run/dialer)'
is 'the packets that got out' "$(inside nft list table inet watch | sed -n 's/.*counter packets \([0-9]*\) .*/\1/p')" 0
inside nft delete table inet watch

echo '- a restart of nftables.service, which flushes every table: the program is stopped before, and started after'
inside nft add table inet other
inside sh -c 'printf "flush ruleset\n" >/etc/nftables.conf'
inside systemctl start nftables.service app.service || fail 'the program did not start after nftables.service'
inside rm /run/rules /run/rules-at-the-end 2>/dev/null || true
inside systemctl restart nftables.service
until_ 'the program is started again' inside test -s /run/rules
inside test -s /run/rules-at-the-end || fail 'the rules went before the program did'
is 'the tables after a restart' "$(inside nft list tables)" 'table inet sealane'
inside systemctl reload nftables.service
until_ 'the rules after a reload' catches 5433
# More often than systemd lets a unit start by default.
for _ in 1 2 3 4 5 6 7; do inside systemctl restart sealane-redirect.service || fail 'a restart too many'; done
until_ 'the program is up after many restarts' inside systemctl is-active app.service

echo '- a flush of all tables by hand: the rules are put back'
inside nft flush ruleset
until_ 'the rules after a flush' catches 5433
until_ 'the warning' inside grep -q 'another program has removed the rules; they are back' /run/sealane.log

echo '- no rules, no program'
inside systemctl stop app.service sealane-redirect.service sealane-redirect-early.service
inside sealane redirect down >/dev/null
is 'what is left of the rules' "$(inside nft list ruleset)" ''
write /etc/sealane/redirect <<<'OPTIONS=--ports none'
inside systemctl start app.service 2>/dev/null && fail 'the program started without rules'
is 'the exit code' "$(property ExecMainStatus sealane-redirect-early.service)" 64
inside mv /etc/sealane/redirect /etc/sealane/elsewhere
inside sed -i 's,^ExecSt.*,ExecStart=/usr/bin/true,' /etc/systemd/system/app.service
inside systemctl daemon-reload
inside systemctl start app.service 2>/dev/null && fail 'the program started without the file that says what is caught'
inside mv /etc/sealane/elsewhere /etc/sealane/redirect

echo '- a user who sits on the port of the sidecar keeps it down no longer than he sits there'
write /etc/sealane/sealane.yaml <<'E2'
identity: node.key
listeners: [{transparent: "127.0.0.1:15006"}]
E2
inside sh -c 'setpriv --reuid=65534 --clear-groups perl -MIO::Socket::INET -e "
    \$s = IO::Socket::INET->new(LocalAddr => q(127.0.0.1:15006), Listen => 1) or die; sleep 600" >/dev/null & echo $! >/run/sitter'
until_ 'the user listens' inside sh -c 'ss -ltn | grep -q 127.0.0.1:15006'
inside systemctl start sealane.service 2>/dev/null && fail 'the sidecar started beside him'
until_ 'the sidecar tries again' inside sh -c '[ "$(systemctl show -P NRestarts sealane.service)" -ge 6 ]'
inside sh -c 'kill $(cat /run/sitter)'
until_ 'the sidecar is up once he has gone' inside systemctl is-active sealane.service
