// Package page looks at the status page with a browser while traffic flows. It
// is a module of its own so that the product does not depend on the driver.
package page

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
)

// build makes the binary once.
var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "sealane")
	if err != nil {
		return "", err
	}
	binary := filepath.Join(dir, "sealane")
	command := exec.Command("go", "build", "-o", binary, "./cmd/sealane")
	command.Dir = filepath.Join("..", "..")
	out, err := command.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return binary, nil
})

func TestMain(m *testing.M) {
	code := m.Run()
	if binary, err := build(); err == nil {
		os.RemoveAll(filepath.Dir(binary))
	}
	os.Exit(code)
}

// keygen makes a key file and returns the public key.
func keygen(t *testing.T, file string) string {
	t.Helper()
	binary, err := build()
	if err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(binary, "keygen", "-o", file).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}

// A sidecar is a process, with what its log said of its addresses.
type sidecar struct {
	command       *exec.Cmd
	listen, admin string
	bound         []string // its listeners
}

// start runs a sidecar and waits until it listens.
func start(t *testing.T, dir, config string, listeners int) *sidecar {
	t.Helper()
	binary, err := build()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "sealane.yaml")
	if err := os.WriteFile(file, []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	s := &sidecar{command: exec.Command(binary, "run", "-c", file)}
	stderr, err := s.command.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := s.command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		s.command.Process.Kill()
		s.command.Wait()
	})
	lines := bufio.NewScanner(stderr)
	for (s.listen == "" && s.admin == "" || len(s.bound) < listeners) && lines.Scan() {
		var fields struct {
			Message, Listen, Admin string
			Address                any
		}
		if err := json.Unmarshal(lines.Bytes(), &fields); err != nil {
			t.Fatalf("%v: %s", err, lines.Text())
		}
		switch fields.Message {
		case "started":
			s.listen, s.admin = fields.Listen, fields.Admin
		case "listening":
			s.bound = append(s.bound, fields.Address.([]any)[0].(string))
		case "could not start":
			t.Fatal(lines.Text())
		}
	}
	go io.Copy(io.Discard, stderr)
	return s
}

// echo answers each connection with what it says.
func echo(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
	return l.Addr().String()
}

// traffic sends data through a connection until it ends.
func traffic(t *testing.T, address string) {
	t.Helper()
	c, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	go io.Copy(io.Discard, c)
	go func() {
		data := make([]byte, 16<<10)
		for {
			if _, err := c.Write(data); err != nil {
				return
			}
			time.Sleep(5 * time.Millisecond) // a pace that leaves the browser room
		}
	}()
}

// browser starts headless Chromium, whose console must stay silent.
func browser(t *testing.T) context.Context {
	t.Helper()
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.NoSandbox)
	allocator, cancelAllocator := chromedp.NewExecAllocator(t.Context(), options...)
	ctx, cancel := chromedp.NewContext(allocator)
	t.Cleanup(func() {
		cancel()
		cancelAllocator()
	})
	chromedp.ListenTarget(ctx, func(event any) {
		switch e := event.(type) {
		case *runtime.EventExceptionThrown:
			t.Errorf("script error: %v", e.ExceptionDetails)
		case *log.EventEntryAdded:
			if !strings.Contains(e.Entry.URL, "favicon") && !strings.Contains(e.Entry.Text, "ERR_CONNECTION") {
				t.Errorf("browser log: %s (%s)", e.Entry.Text, e.Entry.URL)
			}
		}
	})
	ctx, cancelTime := context.WithTimeout(ctx, 3*time.Minute)
	t.Cleanup(cancelTime)
	return ctx
}

// text reads an element's text.
func text(t *testing.T, ctx context.Context, selector string) string {
	t.Helper()
	var s string
	if err := chromedp.Run(ctx, chromedp.Text(selector, &s, chromedp.ByQuery)); err != nil {
		t.Fatal(err)
	}
	return s
}

// eventually waits until an element's text holds what is wanted.
func eventually(t *testing.T, ctx context.Context, selector, want string) {
	t.Helper()
	for ctx.Err() == nil {
		if strings.Contains(text(t, ctx, selector), want) {
			return
		}
		time.Sleep(100 * time.Millisecond) // between looks at the page
	}
	t.Fatalf("%s is %q, without %q", selector, text(t, ctx, selector), want)
}

// views are the sizes and colours to look at.
var views = []struct {
	name          string
	width, height int64
	phone         bool
	scheme        string
}{
	{"desktop-light", 1280, 900, false, "light"},
	{"desktop-dark", 1280, 900, false, "dark"},
	{"phone-light", 375, 812, true, "light"},
	{"phone-dark", 375, 812, true, "dark"},
}

// look takes a picture of each view, in the folder of the variable SCREENSHOTS,
// and checks that no view is wider than its screen.
func look(t *testing.T, ctx context.Context, moment string) {
	t.Helper()
	for _, v := range views {
		var wide bool
		var picture []byte
		err := chromedp.Run(ctx,
			emulation.SetDeviceMetricsOverride(v.width, v.height, 1, v.phone),
			emulation.SetEmulatedMedia().WithFeatures([]*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: v.scheme}}),
			chromedp.Evaluate("dispatchEvent(new Event('resize')); document.documentElement.scrollWidth > innerWidth", &wide),
			chromedp.FullScreenshot(&picture, 100),
		)
		if err != nil {
			t.Fatal(err)
		}
		if wide {
			t.Errorf("%s: the page is wider than the screen", v.name)
		}
		if dir := os.Getenv("SCREENSHOTS"); dir != "" {
			if err := os.WriteFile(filepath.Join(dir, moment+"-"+v.name+".png"), picture, 0o644); err != nil {
				t.Fatal(err)
			}
		}
	}
}

func TestPage(t *testing.T) {
	nearDir, farDir := t.TempDir(), t.TempDir()
	nearKey, farKey := keygen(t, filepath.Join(nearDir, "node.key")), keygen(t, filepath.Join(farDir, "node.key"))
	otherKey := keygen(t, filepath.Join(t.TempDir(), "node.key"))
	far := start(t, farDir, fmt.Sprintf(`
identity: node.key
listen: 127.0.0.1:0
peers: [{name: web, keys: [%q]}]
services: [{name: echo, address: %q, allow: [web]}]
`, nearKey, echo(t)), 0)
	near := start(t, nearDir, fmt.Sprintf(`
identity: node.key
listen: 127.0.0.1:0
admin: 127.0.0.1:0
peers:
  - {name: db, keys: [%q], address: %q}
  - {name: batch, keys: [%q]}
listeners:
  - forward: 127.0.0.1:0
    to: {peer: db, service: echo}
  - forward: 127.0.0.1:0
    to: {peer: db, service: no-such-service}
  - socks5: 127.0.0.1:0
services: [{name: metrics, address: "127.0.0.1:9100", allow: [batch, db]}]
`, farKey, far.listen, otherKey), 3)

	ctx := browser(t)
	if err := chromedp.Run(ctx, log.Enable(), chromedp.Navigate("http://"+near.admin+"/")); err != nil {
		t.Fatal(err)
	}
	eventually(t, ctx, "#state", "Ready.")
	eventually(t, ctx, "#picture", "up")
	eventually(t, ctx, "#picture", "not connected")

	// Numbers change while traffic flows.
	before := text(t, ctx, "#now-in")
	traffic(t, near.bound[0])
	traffic(t, near.bound[0])
	eventually(t, ctx, "#now-streams", "2")
	eventually(t, ctx, "#now-in", "MB/s")
	if after := text(t, ctx, "#now-in"); after == before {
		t.Errorf("throughput stays %q", after)
	}

	// A refusal shows with its reason.
	if c, err := net.Dial("tcp", near.bound[1]); err == nil {
		io.ReadAll(c)
		c.Close()
	}
	eventually(t, ctx, "#events", "refusal")
	if os.Getenv("SCREENSHOTS") != "" {
		time.Sleep(10 * time.Second) // for plots with something in them
	}
	look(t, ctx, "up")

	// A screen reader hears the same.
	var label string
	if err := chromedp.Run(ctx, chromedp.AttributeValue("#picture svg", "aria-label", &label, nil, chromedp.ByQuery)); err != nil {
		t.Fatal(err)
	}
	if want := "3 listeners, this sidecar, and its peers: batch is not connected, db is up"; label != want {
		t.Errorf("the picture is read as %q, want %q", label, want)
	}

	// A killed link shows.
	if err := far.command.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, ctx, "#picture", "down")
	eventually(t, ctx, "#events", "a link went down")
	eventually(t, ctx, "#peers", "no address of the peer can be connected to")
	look(t, ctx, "down")

	// So does the end of the node itself.
	if err := near.command.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	eventually(t, ctx, "#state", "does not answer")
}
