package main

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// The test binary is also what the benchmark starts as target, relay and forwarder.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && isHidden(os.Args[1]) {
		if err := runHidden(os.Args[1], os.Args[2:], os.Stderr); err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// TestShortRun runs every row, with and without relays, as CI does.
func TestShortRun(t *testing.T) {
	dir := t.TempDir()
	jsonFile, svgFile := filepath.Join(dir, "out.json"), filepath.Join(dir, "out.svg")
	var stdout, stderr bytes.Buffer
	args := []string{"-short", "-pairs", "direct,plain", "-json", jsonFile, "-svg", svgFile}
	if err := runBench(t.Context(), args, &stdout, &stderr); err != nil {
		t.Fatalf("%v\n%s\n%s", err, &stdout, &stderr)
	}
	var rep report
	b, err := os.ReadFile(jsonFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(b, &rep); err != nil {
		t.Fatal(err)
	}
	measured := make(map[string]bool)
	for _, res := range rep.Results {
		if res.Pair == relayPair && res.Value != nil {
			measured[res.Metric] = true
		}
	}
	for _, r := range allRows(shortSettings(), tcpWindow) {
		for _, m := range r.metrics {
			if r.id != "hold" && !measured[m.id] {
				t.Errorf("no value for %s", m.id)
			}
			if r.id != "hold" && !strings.Contains(stdout.String(), m.name) {
				t.Errorf("the table lacks %q", m.name)
			}
		}
	}
	svg, err := os.ReadFile(svgFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := wellFormed(svg); err != nil {
		t.Errorf("svg: %v", err)
	}
}

func wellFormed(doc []byte) error {
	for dec := xml.NewDecoder(bytes.NewReader(doc)); ; {
		if _, err := dec.Token(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
	}
}

// TestConfiguredPair starts a pair from a config file, with every kind of placeholder.
func TestConfiguredPair(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	config := filepath.Join(t.TempDir(), "pairs.json")
	spec := pairSpec{
		Name: "mine", Needs: []string{"sh"},
		Steps: []step{{"word", []string{"sh", "-c", "test -s {dir}/both.pem && echo relay"}}},
		Files: map[string]string{"run.sh": `exec "$0" {word} -listen {link} -to 127.0.0.1:{target_port}`},
		Commands: [][]string{
			{"sh", "-c", ". {dir}/run.sh", self},
			{self, "{word}", "-listen", "{entry}", "-to", "{peer}"},
		},
	}
	b, err := json.Marshal(map[string][]pairSpec{"pairs": {spec}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(config, b, 0o600); err != nil {
		t.Fatal(err)
	}
	var stdout, stderr bytes.Buffer
	args := []string{"-short", "-config", config, "-pairs", "plain,mine", "-rows", "up1,farup,rr1"}
	if err := runBench(t.Context(), args, &stdout, &stderr); err != nil {
		t.Fatal(err)
	}
	if out := stdout.String(); strings.Contains(out, "failed") || strings.Count(out, "mine") < 4 {
		t.Errorf("table:\n%s", out)
	}
}

func TestBadConfig(t *testing.T) {
	for name, text := range map[string]string{
		"unknown key": `{"pairs": [{"name": "a", "commands": [["a"]], "colour": 1}]}`,
		"no name":     `{"pairs": [{"commands": [["a"]]}]}`,
		"no commands": `{"pairs": [{"name": "a"}]}`,
		"empty":       `{"pairs": [{"name": "a", "commands": [[]]}]}`,
		"two values":  `{"pairs": []} {}`,
		"no JSON":     `pairs`,
	} {
		t.Run(name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "pairs.json")
			if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := readPairs(file); err == nil {
				t.Error("accepted")
			}
		})
	}
}

func TestBadUsage(t *testing.T) {
	for _, args := range [][]string{
		{"-rows", "up1,nothing", "-list"}, {"-pairs", "nobody", "-list"}, {"-rounds", "-1"}, {"-time", "0s"},
		{"-flight", "0"}, {"-config", "/nonexistent"}, {"-pairs", "plain,plain", "-list"}, {"-rows", "up1,up1", "-list"}, {"surplus"},
	} {
		if err := runBench(t.Context(), args, io.Discard, io.Discard); err == nil {
			t.Errorf("%q: accepted", args)
		}
	}
}

// TestFailure runs pairs of which a proxy ends at once, the second with another that answers alone: that fails the
// run, unless the pair is a foreign one.
func TestFailure(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dies := []string{"sh", "-c", "echo no luck; exit 3"}
	answers := []string{self, "relay", "-listen", "{entry}", "-to", "{target}"}
	for _, commands := range [][][]string{{dies}, {dies, answers}} {
		testFailure(t, self, commands, false)
		testFailure(t, self, commands, true)
	}
}

func testFailure(t *testing.T, self string, commands [][]string, foreign bool) {
	set := shortSettings()
	rows, err := chooseRows(allRows(set, tcpWindow), "rr1")
	if err != nil {
		t.Fatal(err)
	}
	b := &bench{
		self: self, dir: t.TempDir(), set: set, rows: rows, rounds: 2, limit: 1000, progress: io.Discard,
		pairs: []pairSpec{{Name: "broken", Commands: commands, foreign: foreign}},
	}
	samples := b.run(t.Context())
	if n := len(samples[key{"rr1", "broken"}]); n != 1 {
		t.Errorf("tried in %d rounds, want 1", n)
	}
	rep := b.report(samples)
	if rep.Failed == foreign {
		t.Errorf("foreign %v: failed %v", foreign, rep.Failed)
	}
	var table strings.Builder
	if err := rep.writeTable(&table); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(table.String(), "no luck") {
		t.Errorf("the table does not say why:\n%s", &table)
	}
	if left, err := os.ReadDir(b.dir); err != nil || len(left) != 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
