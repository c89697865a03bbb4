//go:build linux

package netlab_test

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"text/template"
	"time"

	"github.com/sealane/sealane/k8s/netlab"
)

// Two pods, an app's and a database's, and a router between them.
const (
	app4, app6 = "10.1.0.2", "fd01::2"
	db4, db6   = "10.2.0.2", "fd02::2"

	sidecarUID = "7423"
	serverUID  = "65534" // nobody
)

type lab struct {
	t               *testing.T
	app, router, db *netlab.Host
	dir             string // may be entered by every user
	mark            string // the app's sidecar sets it, and may; "" for none
}

// newLab makes the pods. Whoever has a lab shares nothing with the others, so its test runs beside theirs.
func newLab(t *testing.T) *lab {
	t.Helper()
	t.Parallel()
	netlab.Need(t, "ip", "nft", "setpriv", "curl")
	l := &lab{t: t, app: netlab.NewHost(t), router: netlab.NewHost(t), db: netlab.NewHost(t)}
	netlab.Join(l.app, "eth0", []string{app4 + "/24", app6 + "/64"}, l.router, "app", []string{"10.1.0.1/24", "fd01::1/64"})
	netlab.Join(l.db, "eth0", []string{db4 + "/24", db6 + "/64"}, l.router, "db", []string{"10.2.0.1/24", "fd02::1/64"})
	l.router.Run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
	for host, gateways := range map[*netlab.Host][2]string{l.app: {"10.1.0.1", "fd01::1"}, l.db: {"10.2.0.1", "fd02::1"}} {
		host.Run("ip", "route", "add", "default", "via", gateways[0])
		host.Run("ip", "-6", "route", "add", "default", "via", gateways[1])
	}
	dir, err := os.MkdirTemp("", "netlab-files-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	l.dir = dir
	return l
}

// configs are the two sidecars' files. What the database's lets the app's reach is wide on purpose: what it refuses
// all the same is under test.
var configs = template.Must(template.New("app").Parse(`
identity: app.key
admin: 127.0.0.1:7424
{{with .Mark}}mark: {{.}}{{end}}
peers:
  - name: db
    keys: [{{.DBKey}}]
    address: "{{.DBAddress}}"
listeners:
  - transparent: 127.0.0.1:15006
routes:
  - match: "10.2.0.0/24:*"
    to: {peer: db}
  - match: "[fd02::/64]:*"
    to: {peer: db}
{{define "db"}}
identity: db.key
listen: "[::]:7423"
admin: 127.0.0.1:7424
peers:
  - name: app
    keys: [{{.AppKey}}]
egress:
  - allow: [app]
    match: ["10.2.0.0/24:*", "[fd02::/64]:*"]
{{end}}`))

// startSidecars starts both and waits until the link is up. The link runs over the family of dbAddress.
func (l *lab) startSidecars(t *testing.T, dbAddress string) (app, db *netlab.Process) {
	t.Helper()
	values := map[string]string{"AppKey": l.keygen(t, "app"), "DBKey": l.keygen(t, "db"), "DBAddress": dbAddress, "Mark": l.mark}
	for _, name := range []string{"app", "db"} {
		var text strings.Builder
		if err := configs.ExecuteTemplate(&text, name, values); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(l.dir, name+".yaml"), []byte(text.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	db, app = l.startSidecar("db"), l.startSidecar("app")
	l.awaitLink(t)
	return app, db
}

func (l *lab) awaitLink(t *testing.T) {
	t.Helper()
	netlab.Eventually(t, 30*time.Second, "the link", func() bool {
		_, err := l.app.Try(filepath.Join(bin, "sealane"), "status", "--ready")
		return err == nil
	})
}

// startSidecar starts a sidecar as it runs in a pod: no root, no capability, but for one that is to set a mark.
func (l *lab) startSidecar(name string) *netlab.Process {
	l.t.Helper()
	host := map[string]*netlab.Host{"app": l.app, "db": l.db}[name]
	capabilities := []string{"--bounding-set=-all"}
	if name == "app" && l.mark != "" {
		capabilities = []string{"--inh-caps=+net_admin", "--ambient-caps=+net_admin"}
	}
	args := append([]string{"setpriv", "--reuid", sidecarUID, "--regid", sidecarUID, "--clear-groups", "--no-new-privs"}, capabilities...)
	return host.Start(append(args, filepath.Join(bin, "sealane"), "run", "-c", filepath.Join(l.dir, name+".yaml"))...)
}

func (l *lab) keygen(t *testing.T, name string) (public string) {
	t.Helper()
	file := filepath.Join(l.dir, name+".key")
	if err := os.RemoveAll(file); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(filepath.Join(bin, "sealane"), "keygen", "-o", file).Output()
	if err != nil {
		t.Fatalf("keygen: %v", err)
	}
	if err := exec.Command("chown", sidecarUID, file).Run(); err != nil {
		t.Fatalf("chown: %v", err)
	}
	return strings.TrimSpace(string(out))
}

func asUser(uid string, args ...string) []string {
	return append([]string{"setpriv", "--reuid", uid, "--regid", uid, "--clear-groups"}, args...)
}

func redirect(args ...string) []string {
	return append([]string{filepath.Join(bin, "sealane"), "redirect"}, args...)
}

// userDir makes a folder that belongs to the servers' user.
func (l *lab) userDir(name string) string {
	l.t.Helper()
	dir := filepath.Join(l.dir, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		l.t.Fatal(err)
	}
	if err := exec.Command("chown", serverUID, dir).Run(); err != nil {
		l.t.Fatalf("chown: %v", err)
	}
	return dir
}

func (l *lab) startPostgres() {
	l.t.Helper()
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin")
	if len(found) == 0 {
		netlab.Skip(l.t, "not installed: postgresql")
	}
	programs, data := found[len(found)-1], l.userDir("postgres")
	l.db.Run(asUser(serverUID, filepath.Join(programs, "initdb"), "-D", data, "-U", "postgres", "--auth=trust", "--no-sync")...)
	hba := "host all all 0.0.0.0/0 trust\nhost all all ::/0 trust\n"
	if err := os.WriteFile(filepath.Join(data, "pg_hba.conf"), []byte(hba), 0o644); err != nil {
		l.t.Fatal(err)
	}
	p := l.db.Start(asUser(serverUID, filepath.Join(programs, "postgres"), "-D", data, "-k", data,
		"-c", "listen_addresses=*", "-c", "fsync=off", "-c", "ssl=off")...)
	p.Expect("ready to accept connections", time.Minute)
}

func (l *lab) startMariaDB() {
	l.t.Helper()
	data := l.userDir("mariadb")
	l.db.Run(asUser(serverUID, "mariadb-install-db", "--no-defaults", "--datadir="+data, "--auth-root-authentication-method=normal",
		"--skip-test-db", "--skip-name-resolve", "--debug-no-sync")...)
	p := l.db.Start(asUser(serverUID, "mariadbd", "--no-defaults", "--datadir="+data, "--socket="+data+"/socket",
		"--pid-file="+data+"/pid", "--bind-address=*", "--skip-grant-tables", "--skip-networking=0", "--skip-name-resolve", "--debug-no-sync", "--port=3306")...)
	p.Expect("ready for connections", time.Minute)
}

func (l *lab) startRedis() {
	l.t.Helper()
	p := l.db.Start(asUser(serverUID, "redis-server", "--port", "6379", "--bind", "0.0.0.0", "::", "--protected-mode", "no",
		"--save", "", "--dir", l.userDir("redis"))...)
	p.Expect("Ready to accept connections", time.Minute)
}

func (l *lab) startHTTP() {
	l.t.Helper()
	l.db.Start(helper("http", ":8080", marker("curl"))...).Expect("listening", 10*time.Second)
}

// marker is what a client and its server say to each other and nobody else may read.
func marker(client string) string { return "top-secret-of-" + client }

// brackets writes an address as it stands in a URL.
func brackets(addr string) string {
	if strings.Contains(addr, ":") {
		return "[" + addr + "]"
	}
	return addr
}

// clients are unmodified programs that reach a server by its plain address and get a marker from it.
var clients = []struct {
	name string
	args func(addr string) []string
}{
	{"curl", func(addr string) []string { // the client speaks first
		return []string{"curl", "-sS", "--max-time", "20", "http://" + brackets(addr) + ":8080/"}
	}},
	{"redis-cli", func(addr string) []string {
		return []string{"timeout", "20", "redis-cli", "-h", addr, "ECHO", marker("redis-cli")}
	}},
	{"psql", func(addr string) []string {
		return []string{"timeout", "20", "psql", "-h", addr, "-U", "postgres", "-tAc", fmt.Sprintf("SELECT '%s'", marker("psql"))}
	}},
	{"mariadb", func(addr string) []string { // the server speaks first
		return []string{"timeout", "20", "mariadb", "--no-defaults", "-h", addr, "-u", "root", "--skip-ssl", "-e",
			fmt.Sprintf("SELECT '%s'", marker("mariadb"))}
	}},
}

// stop ends a process in good order.
func stop(t *testing.T, p *netlab.Process) {
	t.Helper()
	p.Signal(syscall.SIGTERM)
	if err := p.Wait(30 * time.Second); err != nil {
		t.Errorf("ended with %v", err)
	}
}
