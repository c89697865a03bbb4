package servers

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/sealane/sealane/lab"
)

func TestMain(m *testing.M) { lab.Main(m) }

// A pair is two sidecars: near listens for apps, far reaches the targets.
type pair struct {
	near, far      *lab.Process
	forward, socks string // near's listeners
}

// startPair starts two sidecars whose far side offers service at target, and
// egress to each of egress.
func startPair(t *testing.T, service, target string, egress ...string) *pair {
	t.Helper()
	dir := lab.TempDir(t, "")
	nearKey, farKey := lab.Key(t, dir+"/near.key"), lab.Key(t, dir+"/far.key")
	address := func() string { return fmt.Sprintf("127.0.0.1:%d", lab.FreePort(t)) }
	link, nearAdmin, farAdmin := address(), address(), address()
	p := &pair{forward: address(), socks: address()}
	p.far = lab.Sidecar(t, dir, "far", fmt.Sprintf(`
identity: far.key
listen: %s
admin: %s
peers: [{name: near, keys: [%q]}]
services: [{name: %s, address: "%s", allow: [near]}]
egress: [{allow: [near], match: ["%s"]}]
`, link, farAdmin, nearKey, service, target, strings.Join(egress, `", "`)))
	lab.Ready(t, farAdmin)
	p.near = lab.Sidecar(t, dir, "near", fmt.Sprintf(`
identity: near.key
admin: %s
peers: [{name: far, keys: [%q], address: "%s"}]
listeners:
  - {forward: "%s", to: {peer: far, service: %s}}
  - socks5: %s
routes: [{match: "*:*", to: {peer: far}}]
`, nearAdmin, farKey, link, p.forward, service, p.socks))
	lab.Ready(t, nearAdmin)
	return p
}

// startPostgres runs a fresh cluster on loopback and returns its port.
func startPostgres(t *testing.T) int {
	t.Helper()
	dir := lab.TempDir(t, "postgres")
	initdb := lab.Start(t, "postgres", "initdb", "-D", dir+"/data", "-A", "trust", "-U", "app", "--no-sync")
	if err := initdb.Wait(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, initdb.Out)
	}
	port := lab.FreePort(t)
	lab.Start(t, "postgres", "postgres", "-D", dir+"/data", "-c", "listen_addresses=127.0.0.1", "-c", "fsync=off",
		"-c", "port="+strconv.Itoa(port), "-c", "unix_socket_directories="+dir)
	lab.Eventually(t, "postgres accepts", func() bool {
		_, err := lab.Try(t, nil, "pg_isready", "-q", "-h", "127.0.0.1", "-p", strconv.Itoa(port))
		return err == nil
	})
	return port
}

// database is how libpq clients find a server.
func database(port string) []string {
	return []string{"PGHOST=127.0.0.1", "PGPORT=" + port, "PGUSER=app", "PGDATABASE=postgres", "PGCONNECT_TIMEOUT=20"}
}

func portOf(t *testing.T, address string) string {
	t.Helper()
	_, port, err := net.SplitHostPort(address)
	if err != nil {
		t.Fatal(err)
	}
	return port
}

func TestPostgres(t *testing.T) {
	lab.Need(t, "initdb", "postgres", "pg_isready", "psql", "pgbench", "pg_dump", "proxychains4")
	port := strconv.Itoa(startPostgres(t))
	target := "127.0.0.1:" + port
	p := startPair(t, "postgres", target, target)
	direct, through := database(port), database(portOf(t, p.forward))
	if info, err := os.Stat(lab.Build(t)); err == nil {
		t.Logf("binary %.1f MiB; resident idle: near %d KiB, far %d KiB",
			float64(info.Size())/(1<<20), lab.Resident(t, p.near), lab.Resident(t, p.far))
	}

	seconds := "3"
	switch {
	case lab.Long():
		seconds = "20"
	case lab.Quick():
		seconds = "1"
	}
	lab.Run(t, through, "pgbench", "-i", "-s", "5", "-q")
	out := lab.Run(t, through, "pgbench", "-c", "8", "-j", "2", "-T", seconds)
	if !strings.Contains(out, "number of failed transactions: 0 (0.000%)") {
		t.Errorf("pgbench:\n%s", out)
	}
	t.Logf("pgbench: %s", line(out, "tps"))
	t.Logf("resident after pgbench: near %d KiB, far %d KiB", lab.Resident(t, p.near), lab.Resident(t, p.far))

	one, two := lab.Run(t, direct, "pg_dump"), lab.Run(t, through, "pg_dump")
	if dump(one) != dump(two) || len(one) < 1<<20 {
		t.Errorf("pg_dump: %d bytes directly, %d through the forward, and they differ", len(one), len(two))
	}

	chains := filepath.Join(lab.TempDir(t, ""), "chains.conf")
	socks := fmt.Sprintf("strict_chain\nproxy_dns\nquiet_mode\n[ProxyList]\nsocks5 127.0.0.1 %s\n", portOf(t, p.socks))
	if err := os.WriteFile(chains, []byte(socks), 0o600); err != nil {
		t.Fatal(err)
	}
	out = lab.Run(t, direct, "proxychains4", "-q", "-f", chains, "psql", "-Atc", "select count(*) from pgbench_accounts")
	if strings.TrimSpace(out) != "500000" {
		t.Errorf("psql under proxychains4: %q", out)
	}
	lab.Eventually(t, "the far side logs a connection that came through SOCKS5", func() bool {
		return strings.Contains(p.far.Out.String(), `"opened_via":"socks5"`)
	})
}

// dump leaves out pg_dump's random key, which newer versions write twice.
func dump(text string) string {
	var kept strings.Builder
	for l := range strings.Lines(text) {
		if !strings.HasPrefix(l, `\restrict `) && !strings.HasPrefix(l, `\unrestrict `) {
			kept.WriteString(l)
		}
	}
	return kept.String()
}

// line is the first line of text that contains word.
func line(text, word string) string {
	for l := range strings.Lines(text) {
		if strings.Contains(l, word) {
			return strings.TrimSpace(l)
		}
	}
	return ""
}

func TestRedis(t *testing.T) {
	lab.Need(t, "redis-server", "redis-cli", "redis-benchmark")
	port := strconv.Itoa(lab.FreePort(t))
	lab.Start(t, "", "redis-server", "--bind", "127.0.0.1", "--port", port, "--save", "", "--dir", lab.TempDir(t, ""))
	lab.Eventually(t, "redis accepts", func() bool { return lab.Accepts("127.0.0.1:" + port) })
	target := "127.0.0.1:" + port
	p := startPair(t, "redis", target, target)
	through := []string{"-h", "127.0.0.1", "-p", portOf(t, p.forward)}

	lab.Run(t, nil, "redis-cli", append(through, "set", "greeting", "hello")...)
	if out := lab.Run(t, nil, "redis-cli", append(through, "get", "greeting")...); strings.TrimSpace(out) != "hello" {
		t.Errorf("get: %q", out)
	}
	out := lab.Run(t, nil, "redis-benchmark", append(through, "-n", "100000", "-c", "50", "-P", "16", "-t", "set,get", "-q")...)
	for _, command := range []string{"SET", "GET"} {
		if line(strings.ReplaceAll(out, "\r", "\n"), command+": ") == "" || strings.Contains(out, "rror") {
			t.Errorf("redis-benchmark:\n%s", out)
		}
	}
	last := strings.Split(strings.TrimSpace(strings.ReplaceAll(out, "\r", "\n")), "\n")
	t.Logf("redis-benchmark: %s", last[len(last)-1])
	info := lab.Run(t, nil, "redis-cli", append(through, "info", "commandstats")...)
	if !strings.Contains(info, "cmdstat_set:calls=100001,") {
		t.Errorf("the server counted otherwise:\n%s", info)
	}
}

// startNginx serves dir, and takes uploads into it.
func startNginx(t *testing.T, dir string) int {
	t.Helper()
	port := lab.FreePort(t)
	conf := filepath.Join(dir, "nginx.conf")
	text := fmt.Sprintf(`daemon off; error_log stderr; pid %[1]s/pid; worker_processes 1;
events {}
http {
  access_log off; client_max_body_size 0; sendfile on;
  client_body_temp_path %[1]s/tmp; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
  server { listen 127.0.0.1:%[2]d; root %[1]s/www; dav_methods PUT; }
}
`, dir, port)
	if os.Getuid() == 0 {
		text = "user root;\n" + text
	}
	if err := os.MkdirAll(dir+"/www", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(conf, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	lab.Start(t, "", "nginx", "-p", dir, "-c", conf)
	lab.Eventually(t, "nginx accepts", func() bool { return lab.Accepts(fmt.Sprintf("127.0.0.1:%d", port)) })
	return port
}

// randomFile writes size random bytes and returns their hash.
func randomFile(t *testing.T, name string, size int64) string {
	t.Helper()
	f, err := os.Create(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.CopyN(io.MultiWriter(f, sum), rand.Reader, size); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(sum.Sum(nil))
}

func hashFile(t *testing.T, name string) string {
	t.Helper()
	f, err := os.Open(name)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(sum.Sum(nil))
}

func TestLargeFileThroughNginx(t *testing.T) {
	lab.Need(t, "nginx", "curl")
	dir := lab.TempDir(t, "")
	port := startNginx(t, dir)
	target := fmt.Sprintf("127.0.0.1:%d", port)
	p := startPair(t, "web", target, target)
	size := int64(32 << 20)
	if lab.Long() {
		size = 1 << 30
	}
	want := randomFile(t, dir+"/www/file", size)

	// The name travels unresolved: the far side resolves it.
	lab.Run(t, nil, "curl", "-sS", "--fail", "--noproxy", "", "--socks5-hostname", p.socks, "-o", dir+"/socks", fmt.Sprintf("http://localhost:%d/file", port))
	if got := hashFile(t, dir+"/socks"); got != want {
		t.Errorf("through SOCKS5: %s, want %s", got, want)
	}
	lab.Eventually(t, "the far side sees the name localhost", func() bool {
		return strings.Contains(p.far.Out.String(), fmt.Sprintf(`localhost:%d`, port))
	})
	lab.Run(t, nil, "curl", "-sS", "--fail", "-o", dir+"/down", "http://"+p.forward+"/file")
	if got := hashFile(t, dir+"/down"); got != want {
		t.Errorf("down through the forward: %s, want %s", got, want)
	}
	lab.Run(t, nil, "curl", "-sS", "--fail", "-T", dir+"/down", "http://"+p.forward+"/up")
	if got := hashFile(t, dir+"/www/up"); got != want {
		t.Errorf("up through the forward: %s, want %s", got, want)
	}
	t.Logf("%d MiB each way, SHA-256 %s", size>>20, want)
}

// TestRefusals: what no rule allows is refused with SOCKS5's words and one line
// on each side.
func TestRefusals(t *testing.T) {
	lab.Need(t, "curl")
	open := fmt.Sprintf("127.0.0.1:%d", lab.FreePort(t)) // nothing listens there
	p := startPair(t, "dead", open, open, "*:1")
	for name, c := range map[string]struct {
		url, reply, log string
	}{
		"no rule":             {"http://127.0.0.1:2/", "(2)", "127.0.0.1:2"},
		"a name for loopback": {"http://localhost:1/", "(2)", "localhost:1"},
		"dead target":         {"http://" + open + "/", "(5)", open},
	} {
		out, err := lab.Try(t, nil, "curl", "-sS", "--noproxy", "", "--socks5-hostname", p.socks, c.url)
		if err == nil || !strings.Contains(out, c.reply) {
			t.Errorf("%s: curl said %q, want reply %s", name, out, c.reply)
		}
		for side, log := range map[string]*lab.Output{"near": p.near.Out, "far": p.far.Out} {
			lab.Eventually(t, name+": the "+side+" side's log names "+c.log, func() bool { return strings.Contains(log.String(), c.log) })
		}
	}
	// A forward to a dead service resets, and nothing else breaks.
	if out, err := lab.Try(t, nil, "curl", "-sS", "http://"+p.forward+"/"); err == nil || !strings.Contains(out, "reset") && !strings.Contains(out, "connect") {
		t.Errorf("forward to a dead target: curl said %q", out)
	}
}
