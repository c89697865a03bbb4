package session

import (
	"bytes"
	"crypto/ecdh"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/sealane/sealane/session/container"
)

// The published vectors: session/testdata/vectors, whose README.md is their
// format. vectors_make_test.go makes them.

var update = flag.Bool("update", false, "write the vectors in testdata")

const vectorsDir = "testdata/vectors"

// A vector is one file.
type vector struct {
	name   string
	fields []field
	wire   []byte
}

type field struct{ name, value string }

func (v *vector) get(name string) string {
	for _, f := range v.fields {
		if f.name == name {
			return f.value
		}
	}
	return ""
}

func (v *vector) set(name, value string) {
	v.fields = append(v.fields, field{name, value})
}

// encode is the file.
func (v *vector) encode() []byte {
	var b bytes.Buffer
	for _, f := range v.fields {
		fmt.Fprintf(&b, "%s: %s\n", f.name, f.value)
	}
	b.WriteByte('\n')
	for text := base64.StdEncoding.EncodeToString(v.wire); text != ""; {
		n := min(len(text), 76)
		fmt.Fprintf(&b, "%s\n", text[:n])
		text = text[n:]
	}
	return b.Bytes()
}

// readVectors reads all files of testdata/vectors.
func readVectors(t testing.TB) map[string]*vector {
	t.Helper()
	paths, err := filepath.Glob(vectorsDir + "/*.txt")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no vectors in %s: %v", vectorsDir, err)
	}
	all := make(map[string]*vector)
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		v, err := parseVector(strings.TrimSuffix(filepath.Base(path), ".txt"), string(text))
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		all[v.name] = v
	}
	return all
}

func parseVector(name, text string) (*vector, error) {
	head, body, ok := strings.Cut(text, "\n\n")
	if !ok {
		return nil, errors.New("no blank line")
	}
	v := &vector{name: name}
	for line := range strings.Lines(head) {
		key, value, ok := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
		if !ok {
			return nil, fmt.Errorf("not a header line: %q", line)
		}
		v.set(key, value)
	}
	var err error
	v.wire, err = base64.StdEncoding.DecodeString(strings.ReplaceAll(body, "\n", ""))
	return v, err
}

// bytes is a field in hex.
func (v *vector) bytes(name string) []byte {
	b, err := hex.DecodeString(v.get(name))
	if err != nil {
		panic(v.name + ": " + name + ": " + err.Error())
	}
	return b
}

func (v *vector) number(name string) uint64 {
	if v.get(name) == "" {
		return 0
	}
	n, err := strconv.ParseUint(v.get(name), 10, 64)
	if err != nil {
		panic(v.name + ": " + name + ": " + err.Error())
	}
	return n
}

// An observation is what an implementation did with a vector's bytes: expect
// and rule, and the fields that depend on it.
type observation map[string]string

// observe runs a vector, whatever it expects. Vectors of kind frames are
// package mux's.
func (v *vector) observe() observation {
	switch v.get("kind") {
	case "container":
		return v.observeContainer()
	case "responder":
		return v.observeResponder()
	case "initiator":
		return v.observeInitiator()
	case "records":
		return v.observeRecords()
	}
	panic(v.name + ": unknown kind " + v.get("kind"))
}

// verdict names how reading ended.
func verdict(err error) observation {
	var unknown *UnknownKeyError
	switch {
	case err == nil:
		return observation{"expect": "accept"}
	case ruleOf(err) != "":
		return observation{"expect": "violation", "rule": string(ruleOf(err))}
	case errors.Is(err, ErrRejected):
		return observation{"expect": "rejected"}
	case errors.Is(err, ErrUnopened):
		return observation{"expect": "unopened"}
	case errors.Is(err, ErrNoRoom):
		return observation{"expect": "no-room"}
	case errors.Is(err, ErrNotFound), errors.As(err, &unknown):
		return observation{"expect": "not-found"}
	case errors.Is(err, ErrTruncated), errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return observation{"expect": "truncated"}
	}
	return observation{"expect": err.Error()}
}

// sends names the texts that a node has sent in a handshake.
func sends(wire []byte) string {
	var texts []string
	for len(wire) > 0 {
		name, n := "records", len(wire)
		switch third := container.SealedTextLen(message3Len); {
		case bytes.HasPrefix(wire, []byte(`{"sdmp":{"version":"0.13","schemas":["shared_key"]`)):
			name, n = "share", container.ShareTextLen
		case bytes.HasPrefix(wire, []byte(container.BadRequest)):
			name, n = "response", len(container.BadRequest)
		case len(texts) == 1 && n >= third && bytes.Contains(wire[:third], []byte(`"iv":"AAAAAAAAAAAAAAAA"`)) && wire[third-1] == '}':
			name, n = "message-3", third
		}
		texts, wire = append(texts, name), wire[n:]
	}
	return strings.Join(texts, " ")
}

func hexSHA256(b []byte) string { return fmt.Sprintf("%x", sha256.Sum256(b)) }

func (v *vector) observeContainer() observation {
	r := container.NewReader(bytes.NewReader(v.wire))
	var iv [container.IVLen]byte
	var field []byte
	var err error
	buf := make([]byte, container.MaxPayload)
	switch reads := v.get("reads"); reads {
	case "share":
		field, err = r.Share(buf)
	case "message-3":
		field, err = r.Sealed(&iv, buf, 0, container.MaxMessage3, true)
	case "record", "first-record":
		field, err = r.Sealed(&iv, buf, container.MinPayload, container.MaxPayload, reads == "first-record")
	default:
		panic(v.name + ": reads " + reads)
	}
	o := verdict(err)
	if err == nil {
		o["field-sha256"] = hexSHA256(field)
		if v.get("reads") != "share" {
			o["iv"] = hex.EncodeToString(iv[:])
		}
	}
	return o
}

func (v *vector) privateKey(name string) *PrivateKey {
	key, err := ecdh.X25519().NewPrivateKey(v.bytes(name))
	if err != nil {
		panic(err)
	}
	return &PrivateKey{key}
}

// config is what the vector says of the node under test.
func (v *vector) config(o observation) Config {
	return Config{
		Key: v.privateKey("private-key"), Transform: v.get("offers-transform"), Padding: int(v.number("wants-padding")),
		preferChaCha: func() bool { return v.get("prefers-cipher") == cipherChaCha },
		keyLog: func(initiator bool, n int, key []byte) {
			from := map[bool]string{true: "initiator", false: "responder"}[initiator]
			o[fmt.Sprintf("%s-key-%d", from, n)] = hex.EncodeToString(key)
		},
	}
}

// agreed adds what a handshake that succeeded came to.
func (o observation) agreed(c *Conn) {
	o["cipher"], o["transform"], o["padding"] = c.Cipher(), c.Transform(), strconv.Itoa(c.Padding())
	c.Abort(nil)
}

// add merges verdict and observed fields; keys of a session that never came
// to be are of no interest.
func (o observation) add(v observation) observation {
	if v["expect"] != "accept" {
		return v
	}
	maps.Copy(o, v)
	return o
}

// responder is the node under test of a vector for the responding role.
func (v *vector) responder(o observation) Config {
	rc := v.config(o)
	known := PublicKey(v.bytes("initiator-public-key"))
	rc.Authorize = func(k PublicKey) bool { return k == known }
	rc.Replay = NewReplayCache()
	if seen := v.bytes("seen-ephemeral"); len(seen) > 0 {
		rc.Replay.add(seen)
	}
	rc.entropy = bytes.NewReader(v.bytes("ephemeral"))
	rc.encapsulate = seededEncapsulation(v.bytes("encapsulation"))
	return rc
}

func (v *vector) observeResponder() observation {
	o := observation{}
	answer, c, err := respondTo(v.responder(o), v.wire)
	if c != nil {
		o.agreed(c)
	}
	if len(answer) >= container.ShareTextLen {
		o["message-2-sha256"] = hexSHA256(answer[:container.ShareTextLen])
	}
	o = o.add(verdict(err))
	o["sends"] = sends(answer)
	return o
}

// initiator is the node under test of a vector for the initiating role.
func (v *vector) initiator(o observation) Config {
	ic := v.config(o)
	ic.entropy = bytes.NewReader(append(v.bytes("kem-seed"), v.bytes("ephemeral")...))
	return ic
}

func (v *vector) observeInitiator() observation {
	o := observation{}
	sent, c, err := initiateWith(v.initiator(o), PublicKey(v.bytes("responder-public-key")), v.wire)
	if c != nil {
		o.agreed(c)
		message3 := sent[container.ShareTextLen:][:container.SealedTextLen(message3Len)]
		o["message-1-sha256"] = hexSHA256(sent[:container.ShareTextLen])
		o["message-3-sha256"] = hexSHA256(message3)
	}
	o = o.add(verdict(err))
	o["sends"] = sends(sent)
	return o
}

func (v *vector) observeRecords() observation {
	x := reading{
		transform: v.get("transform"), cipher: v.get("cipher"), padding: int(v.number("padding")),
		secret: [32]byte(v.bytes("secret")), number: v.number("first-number"), verdict: v.get("from") == "responder",
	}
	data, err := x.open(v.wire)
	if err == io.EOF {
		err = nil // a sealed close
	}
	o := verdict(err)
	o["data-length"], o["data-sha256"] = strconv.Itoa(len(data)), hexSHA256(data)
	return o
}

// TestVectors runs every file. It does not need what made them.
func TestVectors(t *testing.T) {
	if *update {
		writeVectors(t, makeVectors(t))
	}
	all := readVectors(t)
	kinds := map[string]int{}
	for name, v := range all {
		kind := v.get("kind")
		kinds[kind]++
		if kind == "frames" {
			continue
		}
		o := v.observe()
		for key, got := range o {
			if want := v.get(key); got != want {
				t.Errorf("%s: %s is %q, the vector says %q", name, key, got, want)
			}
		}
		if v.get("rule") != "" && o["rule"] == "" {
			t.Errorf("%s: %v, the vector says %s", name, o, v.get("rule"))
		}
	}
	if len(all) < 150 {
		t.Errorf("%d vectors, want 150", len(all))
	}
	fmt.Printf("vectors: %d files %v\n", len(all), kinds)
}

// TestVectorsAreReproducible makes them all again: not a byte differs, and no
// file is left over.
func TestVectorsAreReproducible(t *testing.T) {
	made := map[string][]byte{}
	for _, v := range makeVectors(t) {
		if made[v.name] != nil {
			t.Errorf("two vectors are called %s", v.name)
		}
		made[v.name] = v.encode()
	}
	for name := range readVectors(t) {
		if made[name] == nil {
			t.Errorf("%s is made by nothing", name)
		}
	}
	for _, name := range slices.Sorted(maps.Keys(made)) {
		text, err := os.ReadFile(filepath.Join(vectorsDir, name+".txt"))
		if err != nil || !bytes.Equal(text, made[name]) {
			t.Errorf("%s differs (go test ./session -run TestVectors -update makes them again): %v", name, err)
		}
	}
}

func writeVectors(t *testing.T, all []*vector) {
	t.Helper()
	old, err := filepath.Glob(vectorsDir + "/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range old {
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
	}
	for _, v := range all {
		if err := os.WriteFile(filepath.Join(vectorsDir, v.name+".txt"), v.encode(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

// TestEveryRuleHasAVector: what TestVectors has run triggers each rule of this
// package and of container, and no vector names another, but for those of
// frames.
func TestEveryRuleHasAVector(t *testing.T) {
	want := map[Rule]bool{}
	for _, rule := range append(container.Rules(), Rules()...) {
		if want[rule] {
			t.Errorf("%s is listed twice", rule)
		}
		want[rule] = true
	}
	got := map[Rule]bool{}
	for name, v := range readVectors(t) {
		rule := Rule(v.get("rule"))
		if rule == "" || v.get("kind") == "frames" {
			continue
		}
		if !want[rule] {
			t.Errorf("%s names %s, which is no rule", name, rule)
		}
		got[rule] = true
	}
	for rule := range want {
		if !got[rule] {
			t.Errorf("no vector triggers %s", rule)
		}
	}
}
