//go:build linux

package netlab_test

import (
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sealane/sealane/k8s/netlab"
)

var (
	uploading   = flag.Duration("upload", 16*time.Second, "how long a slow upload goes on")
	linkTimeout = flag.Duration("link", 4*time.Second, "timeouts.link of the nodes that upload slowly, or have an outage")
)

const slowDB = `
identity: db.key
listen: 0.0.0.0:7423
timeouts: {link: %v}
peers: [{name: app, keys: [%s]}]
services: [{name: sink, address: "127.0.0.1:9000", allow: [app]}]
`

const slowApp = `
identity: app.key
admin: 127.0.0.1:7424
timeouts: {link: %v}
peers: [{name: db, keys: [%s], address: "` + db4 + `:7423"}]
listeners: [{forward: "127.0.0.1:9000", to: {peer: db, service: sink}}]
`

// unhurried is for tests that wait for longer than go test ./... has.
func unhurried(t *testing.T) {
	t.Helper()
	if os.Getenv("CI") == "" {
		t.Skip("waits for a quarter of a minute: with CI set")
	}
}

// An upload that moves at 12 kB/s, with much more queued ahead of each ping than goes through in timeouts.link, does not
// end its link. .ci/run does this for longer, with the default.
func TestSlowUpload(t *testing.T) {
	unhurried(t)
	netlab.Need(t, "tc")
	l := newLab(t)
	sink, app := l.startSlow(t, "sink")
	l.app.Run("tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "96kbit", "burst", "4kb", "limit", "24kb")
	begun := time.Now()
	upload := l.app.Start(helper("upload", "127.0.0.1:9000", uploading.String())...)
	if err := upload.Wait(*uploading + 30*time.Second); err != nil {
		t.Errorf("the upload ended after %v: %v: %s", time.Since(begun), err, upload.Output())
	}
	if down := strings.Count(app.Output(), `"link down"`); down > 0 {
		t.Errorf("%d links ended", down)
	}
	if !strings.Contains(sink.Output(), "times 64 KiB") {
		t.Error("nothing has arrived")
	}
}

// A link survives an outage of three fifths of timeouts.link, and none that is 5 s longer than that: with the default, 9 s
// and 20 s.
func TestOutages(t *testing.T) {
	unhurried(t)
	for what, c := range map[string]struct {
		lasts    time.Duration
		survives bool
	}{"short": {*linkTimeout * 3 / 5, true}, "long": {*linkTimeout + 5*time.Second, false}} {
		t.Run(what, func(t *testing.T) {
			l := newLab(t)
			_, app := l.startSlow(t, "echo")
			in, lines := io.Pipe()
			defer lines.Close()
			cmd := l.app.Command(helper("converse", "127.0.0.1:9000")...)
			cmd.Stdin = in
			client := l.app.StartCommand(cmd)
			fmt.Fprintln(lines, "before")
			client.Expect("before", 10*time.Second)
			l.router.Run("nft", "add table inet outage; add chain inet outage crossing { type filter hook forward priority 0; policy drop; }")
			fmt.Fprintln(lines, "in the midst of it")
			time.Sleep(c.lasts) // which is what it is about
			l.router.Run("nft", "delete table inet outage")
			if c.survives {
				client.Expect("in the midst of it", 30*time.Second)
			} else {
				app.Expect("no sign of life from the peer", 30*time.Second)
			}
			if down := strings.Count(app.Output(), `"link down"`); c.survives && down > 0 {
				t.Errorf("%d links ended", down)
			}
		})
	}
}

// startSlow starts two sidecars, and behind the database's a server that this binary has.
func (l *lab) startSlow(t *testing.T, part string) (server, app *netlab.Process) {
	t.Helper()
	server = l.db.Start(helper(part, "127.0.0.1:9000")...)
	server.Expect("listening", 10*time.Second)
	appKey, dbKey := l.keygen(t, "app"), l.keygen(t, "db")
	for name, text := range map[string]string{"app": fmt.Sprintf(slowApp, *linkTimeout, dbKey), "db": fmt.Sprintf(slowDB, *linkTimeout, appKey)} {
		if err := os.WriteFile(filepath.Join(l.dir, name+".yaml"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	l.startSidecar("db")
	app = l.startSidecar("app")
	l.awaitLink(t)
	return server, app
}

// upload sends as much as is taken, for a while.
func upload(addr, lasts string) error {
	d, err := time.ParseDuration(lasts)
	if err != nil {
		return err
	}
	c, err := dialTCP(addr)
	if err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, c)
		ended <- fmt.Errorf("the other end: %w", err)
	}()
	end := time.Now().Add(d)
	for piece := make([]byte, 16<<10); ; {
		c.SetWriteDeadline(end)
		_, err := c.Write(piece)
		select {
		case err := <-ended:
			return err
		default:
		}
		if time.Now().After(end) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

// sink takes what comes, and says so each time that 64 KiB did.
func sink(addr string) error {
	return serveEach(addr, func(c *net.TCPConn) error {
		for n := int64(1); ; n++ {
			if _, err := io.CopyN(io.Discard, c, 1<<16); err != nil {
				return err
			}
			fmt.Println(n, "times 64 KiB")
		}
	})
}
