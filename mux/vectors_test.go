package mux

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sealane/sealane/session/container"
)

// TestFrameVectors reads the published vectors of kind frames; their format is
// in session/testdata/vectors/README.md. Each frame rule must be among them.
func TestFrameVectors(t *testing.T) {
	paths, err := filepath.Glob("../session/testdata/vectors/frames-*.txt")
	if err != nil || len(paths) == 0 {
		t.Fatalf("no vectors: %v", err)
	}
	triggered := map[container.Rule]bool{}
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		head, body, _ := strings.Cut(string(text), "\n\n")
		fields := map[string]string{}
		for line := range strings.Lines(head) {
			name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), ": ")
			fields[name] = value
		}
		wire, err := base64.StdEncoding.DecodeString(strings.ReplaceAll(body, "\n", ""))
		if err != nil {
			t.Fatalf("%s: %v", path, err)
		}
		data, how, err := readFrames(bytes.NewReader(wire), fields["from"] == "accepter")
		rule := ruleOf(err)
		triggered[rule] = true
		expect := map[bool]string{true: "accept", false: "violation"}[err == nil]
		sum := fmt.Sprintf("%x", sha256.Sum256(data))
		if expect != fields["expect"] || string(rule) != fields["rule"] || how != fields["ends"] || sum != fields["data-sha256"] {
			t.Errorf("%s: %q, %v after %q", fields["name"], how, err, data[:min(len(data), 99)])
		}
	}
	for _, rule := range Rules() {
		if strings.HasPrefix(string(rule), "frame-") && !triggered[rule] {
			t.Errorf("no vector triggers %s", rule)
		}
	}
}

// readFrames reads one direction of a stream as Stream does, without a stream.
func readFrames(src io.Reader, accepter bool) (data []byte, how string, err error) {
	order := frameOrder{accepter: accepter}
	ended := "truncated"
	for {
		var header [frameHeaderLen]byte
		if _, err := io.ReadFull(src, header[:]); err != nil {
			return data, ended, nil
		}
		kind, length, err := parseFrameHeader(header)
		if err == nil {
			err = order.next(kind, length)
		}
		if err != nil {
			return data, "", err
		}
		body, err := io.ReadAll(io.LimitReader(src, int64(length)))
		if err != nil {
			return data, "", err
		}
		if kind == frameData {
			data = append(data, body...)
		}
		if len(body) < length {
			return data, "truncated", nil
		}
		switch kind {
		case frameOpen:
			_, err = parseOpen(body)
		case frameOpened:
			var status Status
			if status, _, err = parseOpened(body); err == nil && status != StatusOK {
				return data, fmt.Sprintf("refused %d", status), nil
			}
		case frameEnd:
			err = order.end(body)
			ended = "end"
		case frameReset:
			return data, fmt.Sprintf("reset %d", parseReset(body[0])), nil
		}
		if err != nil {
			return data, "", err
		}
	}
}
