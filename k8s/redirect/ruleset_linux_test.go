package redirect

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// everyOption uses every option once and has sets that overlap, touch and reach the last key.
var everyOption = []string{
	"--to", "15001", "--ports", "5432,8000-8999,8500-9001,9002,65535", "--cidrs", "10.0.0.0/8,10.1.0.0/16,192.0.2.0/25,192.0.2.128/26,224.0.0.0/3,fd00::/8,ff00::/8",
	"--except-ports", "22", "--except-cidrs", "10.9.0.5,fd00::5", "--except-uid", "7423,100", "--sidecar-uid", "7423", "--mark", "0x1d00",
	"--guard-inbound", "5432,6379", "--probe-sources", "10.9.0.254,fd09::fe",
}

func TestDryRun(t *testing.T) {
	for name, args := range map[string][]string{"default": nil, "every-option": everyOption} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			if code := Main(append([]string{"up", "--dry-run"}, args...), &stdout, &stderr); code != exitOK {
				t.Fatalf("code %d: %s", code, &stderr)
			}
			want, err := os.ReadFile(filepath.Join("testdata", name+".nft"))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(stdout.Bytes(), want) {
				t.Errorf("got\n%s\nwant\n%s", &stdout, want)
			}
		})
	}
}

func TestIntervalsSurviveTheKernelsForm(t *testing.T) {
	for _, cidrs := range []string{"", "0.0.0.0/0", "::/0", "10.0.0.0/8,12.0.0.0/8", "255.255.255.255", "0.0.0.0,0.0.0.2"} {
		prefixes, err := ParseCIDRs(cidrs)
		if err != nil {
			t.Fatal(err)
		}
		v4, v6 := split(prefixes)
		merged := mergeIntervals(append(v4, v6...))
		els := elements(merged)
		slices.Reverse(els)
		if got := intervalsOf(els); fmt.Sprint(got) != fmt.Sprint(merged) {
			t.Errorf("%s: %v came back as %v", cidrs, merged, got)
		}
	}
}

func TestMergeIntervals(t *testing.T) {
	ports, err := ParsePorts("8500-9001,8000-8999,9002,5432,1-65535")
	if err != nil {
		t.Fatal(err)
	}
	for n, want := range map[int]string{
		2: "8000-9001", 3: "8000-9002", 4: "5432, 8000-9002", 5: "1-65535",
	} {
		s := set{nft: dportSet, intervals: mergeIntervals(portIntervals(ports[:n]))}
		if got := renderIntervals(s); got != want {
			t.Errorf("%v merged to %s, want %s", ports[:n], got, want)
		}
	}
}

var dportSet = build(Options{To: 1, Ports: []PortRange{{1, 1}}}, nil).sets[2].nft

func TestParseSockets(t *testing.T) {
	const tcp = `  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:3A9E 00000000:0000 0A 00000000:00000000 00:00000000 00000000  7423        0 4711 1 0000000000000000 100 0 0 10 0
   1: 0100007F:3A9E 0100090A:C350 03 00000000:00000000 01:00000063 00000000     0        0 0 2 0000000000000000
`
	got, err := parseSockets([]byte(tcp))
	if err != nil || len(got) != 2 {
		t.Fatalf("got %v, %v", got, err)
	}
	if l := got[0]; l.local.String() != "127.0.0.1:15006" || l.state != stateListen || l.uid != 7423 {
		t.Errorf("listener read as %+v", l)
	}
	if c := got[1]; c.remote != netip.MustParseAddrPort("10.9.0.1:50000") {
		t.Errorf("connection read as %+v", c)
	}
	const tcp6 = "heading\n0: 00000000000000000000000001000000:3A9E 000009FD000000000000000001000000:C350 03 0:0 0:0 0 0 0 0\n"
	got, err = parseSockets([]byte(tcp6))
	if err != nil || got[0].local.String() != "[::1]:15006" || got[0].remote.String() != "[fd09::1]:50000" {
		t.Errorf("got %v, %v", got, err)
	}
	for _, bad := range []string{"heading\n0: 1\n", "heading\n0: 01:1 01:1 0A a b c 1\n", "heading\n0: xx:1 01000000:1 0A a b c 1\n"} {
		if got, err := parseSockets([]byte(bad)); err == nil {
			t.Errorf("%q gave %v", bad, got)
		}
	}
}
