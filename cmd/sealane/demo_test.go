package main

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
)

// TestDemoWire runs the demo and reads the captured link as an observer would.
func TestDemoWire(t *testing.T) {
	d, err := startDemo(zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	defer d.close()
	forwardAddress := d.near.listenerAddress(0)
	forward, err := d.fetchForward(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	socks, err := d.fetchSOCKS5(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(socks.body), demoName) {
		t.Errorf("the app was asked for another host: %s", socks.body)
	}
	d.near.close() // ends the link properly, so that its last text is whole
	out, in := d.capture.wire()
	checkTexts(t, "to the app's sidecar", out)
	checkTexts(t, "to the client's sidecar", in)

	needles := map[string][]byte{
		"service name":     []byte(demoService),
		"peer name near":   []byte("client-side"),
		"peer name far":    []byte("app-side"),
		"destination name": []byte(demoName),
		"destination":      []byte(net.JoinHostPort(demoName, d.appPort)),
		"app address":      []byte(net.JoinHostPort("127.0.0.1", d.appPort)),
		"forward address":  []byte(forwardAddress),
		"request line":     []byte("GET /by-"),
		"request":          forward.request,
		"request 2":        socks.request,
		"host header":      []byte("Host: "),
		"response":         forward.response,
		"body":             forward.body[:20],
		"body 2":           socks.body,
		"software":         []byte("sealane"),
		"version":          []byte(versionName()),
		"via":              []byte("forward"),
		"via 2":            []byte("socks5"),
	}
	for name, n := range map[string]*node{"near": d.near, "far": d.far} {
		public := n.cfg.Key.Public()
		needles[name+" public key"] = public[:]
		needles[name+" public name"] = []byte(public.String())
		needles[name+" SPKI"] = public.SPKI()
		needles[name+" fingerprint"] = []byte(public.Fingerprint())
		digest, err := base64.RawURLEncoding.DecodeString(public.Fingerprint())
		if err != nil {
			t.Fatal(err)
		}
		needles[name+" fingerprint bytes"] = digest
		block := bytes.Split(n.cfg.Key.PEM(), []byte("\n"))
		needles[name+" private key"] = block[1]
	}
	for _, wire := range [][]byte{out, in} {
		haystack := append(wire, decoded(t, wire)...)
		for name, needle := range needles {
			if encoding := find(haystack, needle); encoding != "" {
				t.Errorf("the %s %q is on the wire, %s", name, needle, encoding)
			}
		}
	}
}

// checkTexts checks that the wire is one shared_key text and then only
// encrypted ones, each in the one form of SPEC section 2.
func checkTexts(t *testing.T, name string, wire []byte) {
	t.Helper()
	texts := containers(wire)
	if len(texts) < 4 {
		t.Fatalf("%s: only %d texts", name, len(texts))
	}
	shared := regexp.MustCompile(`^\{"sdmp":\{"version":"0\.13","schemas":\["shared_key"\]\},"shared_key":\{"group":"X25519MLKEM768","share":"[A-Za-z0-9_-]+"\}\}$`)
	encrypted := regexp.MustCompile(`^\{"sdmp":\{"version":"0\.13","schemas":\["encrypted"\]\},"encrypted":\{"iv":"[A-Za-z0-9_-]{16}","payload":"[A-Za-z0-9_-]+","recipients":\[\]\}\}$`)
	for i, text := range texts {
		form := encrypted
		if i == 0 {
			form = shared
		}
		if !form.MatchString(text) || i == 0 && len(text) != 2898 {
			t.Errorf("%s: text %d is %.200q", name, i, text)
		}
		if !json.Valid([]byte(text)) {
			t.Errorf("%s: text %d is not JSON", name, i)
		}
	}
}

// decoded is what the base64 on the wire stands for.
func decoded(t *testing.T, wire []byte) []byte {
	t.Helper()
	var out []byte
	for _, m := range regexp.MustCompile(`"(?:share|payload|iv)":"([^"]*)"`).FindAllSubmatch(wire, -1) {
		b, err := base64.RawURLEncoding.DecodeString(string(m[1]))
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, b...)
	}
	return out
}

// find says in which encoding the needle is in the haystack; "" if in none.
func find(haystack, needle []byte) string {
	if bytes.Contains(haystack, needle) {
		return "raw"
	}
	lower := bytes.ToLower(haystack)
	if bytes.Contains(lower, []byte(hex.EncodeToString(needle))) {
		return "in hex"
	}
	if len(needle) < 6 {
		return "" // too short for its base64 to mean anything
	}
	for name, encoding := range map[string]*base64.Encoding{"base64": base64.RawStdEncoding, "base64url": base64.RawURLEncoding} {
		for offset := range 3 {
			// The characters that do not depend on what is around the needle.
			text := encoding.EncodeToString(append(make([]byte, offset), needle...))
			text = text[(offset*8+5)/6:]
			text = text[:len(needle)*8/6-1]
			if bytes.Contains(haystack, []byte(text)) {
				return fmt.Sprintf("in %s at offset %d", name, offset)
			}
		}
	}
	return ""
}

// TestFind proves that the search above finds what is there.
func TestFind(t *testing.T) {
	needle := []byte("the secret")
	for offset := range 3 {
		around := append(append(bytes.Repeat([]byte("x"), offset), needle...), "yz"...)
		for name, text := range map[string]string{
			"raw": string(around), "hex": strings.ToUpper(hex.EncodeToString(around)),
			"base64": base64.StdEncoding.EncodeToString(around), "base64url": base64.URLEncoding.EncodeToString(around),
		} {
			if find([]byte("{"+text+"}"), needle) == "" {
				t.Errorf("%s at offset %d is not found", name, offset)
			}
		}
	}
	if got := find([]byte("nothing here"), needle); got != "" {
		t.Errorf("found %s where nothing is", got)
	}
}

// TestDemoCommand runs the command as a person does.
func TestDemoCommand(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	command := exec.CommandContext(ctx, "sealane", "demo", "--once")
	var stderr bytes.Buffer
	command.Stderr = &stderr
	stdout, err := command.Output()
	if err != nil || stderr.Len() > 0 {
		t.Fatalf("%v\n%s", err, stderr.Bytes())
	}
	text := string(stdout)
	for _, want := range []string{"Fetched through the forward: 200 OK", "Fetched through SOCKS5: 200 OK", "curl --socks5-hostname 127.0.0.1:", "GET /by-forward HTTP/1.1"} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in:\n%s", want, text)
		}
	}
	shown := 0
	for line := range strings.Lines(text) {
		if strings.HasPrefix(line, `{"sdmp":{"version":"0.13","schemas":["`) && len(line) == wireShown+1 {
			shown++
		}
	}
	if shown < 4 || strings.Contains(text, "\x1b") {
		t.Errorf("%d containers shown in:\n%s", shown, text)
	}
}

// TestDemoEndsOnInterrupt starts the demo without --once and interrupts it.
func TestDemoEndsOnInterrupt(t *testing.T) {
	command := exec.Command("sealane", "demo")
	stdout, err := command.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	defer time.AfterFunc(time.Minute, func() { command.Process.Kill() }).Stop()
	waitForLine(t, stdout, "Ctrl-C ends the demo")
	if err := command.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := command.Wait(); err != nil {
		t.Error(err)
	}
}
