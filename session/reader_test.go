package session

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sealane/sealane/session/container"
)

// A capture is what testdata/reader.mjs reads.
type capture struct {
	Transform string              `json:"transform"`
	Cipher    string              `json:"cipher"`
	Padding   int                 `json:"padding"`
	Initiator []byte              `json:"initiator"`
	Responder []byte              `json:"responder"`
	Keys      map[string][]string `json:"keys"`
}

// readerRecord is a line of its output.
type readerRecord struct {
	From       string `json:"from"`
	Generation int    `json:"generation"`
	Number     int    `json:"number"`
	Type       string `json:"type"`
	Body       []byte `json:"body"`
}

// captureLink records a link over which both ends send n bytes, with rekeys on
// the way, and close.
func captureLink(t *testing.T, transform, cipher string, padding, n int) *capture {
	t.Helper()
	c := &capture{Transform: transform, Cipher: cipher, Padding: padding, Keys: map[string][]string{}}
	ic, rc := configs(t)
	var mu sync.Mutex
	for _, cfg := range []*Config{&ic, &rc} {
		cfg.Transform, cfg.Padding = transform, padding
		cfg.preferChaCha = func() bool { return cipher == cipherChaCha }
		cfg.RekeyRecords = 7
	}
	ic.keyLog = func(initiator bool, generation int, key []byte) {
		mu.Lock()
		defer mu.Unlock()
		from := map[bool]string{true: "initiator", false: "responder"}[initiator]
		if generation != len(c.Keys[from]) {
			t.Errorf("key %d of the %s after %d", generation, from, len(c.Keys[from]))
		}
		c.Keys[from] = append(c.Keys[from], hex.EncodeToString(key))
	}
	a, b := memPair()
	ta, tb := &tap{Conn: a}, &tap{Conn: b}
	e := shakeMem(ta, tb, ic, rc, time.Minute)
	if e.iErr != nil || e.rErr != nil {
		t.Fatal(e.iErr, e.rErr)
	}
	exchange(t, e.i, e.r, n)
	c.Initiator, _ = ta.captured()
	c.Responder, _ = tb.captured()
	return c
}

// runReader runs the second reader.
func runReader(t *testing.T, c *capture) (records []readerRecord, err error) {
	t.Helper()
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "capture.json")
	if err := os.WriteFile(path, text, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("node", "testdata/reader.mjs", path)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return nil, fmt.Errorf("%w: %s", err, &stderr)
	}
	for line := range strings.Lines(stdout.String()) {
		var r readerRecord
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatal(err)
		}
		records = append(records, r)
	}
	return records, nil
}

func needNode(t *testing.T) {
	t.Helper()
	if _, err := exec.LookPath("node"); err != nil {
		if os.Getenv("CI") == "true" {
			t.Fatal("node is not installed (Debian: nodejs)")
		}
		t.Skip("node is not installed: the second reader is not run")
	}
}

// TestSecondReader gives links of every transform, cipher and padding to
// another implementation and wants every byte back.
func TestSecondReader(t *testing.T) {
	needNode(t)
	const n = 400_000
	for _, transform := range []string{TransformJSON, TransformPacked, TransformGzip} {
		for _, cipher := range []string{cipherAES, cipherChaCha} {
			for _, padding := range []int{0, paddingBlock} {
				t.Run(fmt.Sprintf("%s/%s/%d", transform, cipher, padding), func(t *testing.T) {
					t.Parallel()
					records, err := runReader(t, captureLink(t, transform, cipher, padding, n))
					if err != nil {
						t.Fatal(err)
					}
					data := map[string][]byte{}
					kinds := map[string]int{}
					for _, r := range records {
						kinds[r.From+" "+r.Type]++
						if r.Type == "data" {
							data[r.From] = append(data[r.From], r.Body...)
						}
					}
					if !bytes.Equal(data["initiator"], randomBytes(1, n)) || !bytes.Equal(data["responder"], randomBytes(2, n)) {
						t.Error("the data differs")
					}
					if kinds["initiator control"] != 0 || kinds["responder control"] != 1 || kinds["initiator close"] != 1 ||
						kinds["responder close"] != 1 || kinds["initiator rekey"] == 0 || kinds["responder rekey"] == 0 {
						t.Errorf("records: %v", kinds)
					}
				})
			}
		}
	}
}

// TestSecondReaderAndDecoys: what a stranger gets looks to the other
// implementation like what a peer gets whose message 3 is spoiled.
func TestSecondReaderAndDecoys(t *testing.T) {
	needNode(t)
	ic, rc := configs(t)
	stranger := forgeInitiator(t, ic, newKey(t).Public()).honest1(t)
	honest := forgeInitiator(t, ic, rc.Key.Public()).honest1(t)
	for name, one := range map[string][]byte{"a decoy": stranger, "a real message 2": honest} {
		three := container.AppendSealed(nil, new([container.IVLen]byte), randomBytes(3, message3Len))
		answer, conn, err := respondTo(rc, one, three)
		if conn != nil || ruleOf(err) != RuleSeal {
			t.Fatalf("%s: %v", name, err)
		}
		c := &capture{Transform: TransformJSON, Cipher: cipherAES, Initiator: append(one, three...), Responder: answer}
		if records, err := runReader(t, c); err != nil || len(records) != 0 {
			t.Errorf("%s: %d records, %v", name, len(records), err)
		}
		c.Initiator = append(one, container.AppendSealed(nil, new([container.IVLen]byte), randomBytes(3, 64))...)
		if _, err := runReader(t, c); err == nil {
			t.Errorf("%s: a message 3 of 64 bytes was taken", name)
		}
	}
}

// TestSecondReaderRefuses: it does not take what does not belong either.
func TestSecondReaderRefuses(t *testing.T) {
	needNode(t)
	good := captureLink(t, TransformJSON, cipherAES, 0, 1000)
	for name, change := range map[string]func(wire []byte) []byte{
		"a space": func(w []byte) []byte { return append([]byte(" "), w...) },
		"an extra key": func(w []byte) []byte {
			return bytes.Replace(w, []byte(`"recipients":[]`), []byte(`"recipients":[],"a":1`), 1)
		},
		"another key":   func(w []byte) []byte { return bytes.Replace(w, []byte(`"payload":"`), []byte(`"payload":"AAAA`), 1) },
		"a lost record": func(w []byte) []byte { return w[:bytes.LastIndex(w, []byte(`{"sdmp"`))] },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			bad := *good
			bad.Responder = change(bytes.Clone(good.Responder))
			if _, err := runReader(t, &bad); err == nil {
				t.Error("accepted")
			}
		})
	}
}
