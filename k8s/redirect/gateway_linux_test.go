package redirect

import (
	"encoding/binary"
	"net/netip"
	"strings"
	"testing"
)

func TestParseGateways(t *testing.T) {
	gateway := "0100F40A" // 10.244.0.1 as a little-endian machine prints it
	if binary.NativeEndian.Uint16([]byte{1, 0}) != 1 {
		gateway = "0AF40001"
	}
	for row, want := range map[string]string{
		"eth0 00000000 " + gateway + " 0003 0 0 0 00000000 0 0 0": "10.244.0.1",
		"eth0 00000000 00000000 0001 0 0 0 00000000 0 0 0":        "invalid IP",
		"eth0 0000F40A 00000000 0001 0 0 0 00FFFFFF 0 0 0":        "invalid IP",
		"Iface Destination Gateway Flags RefCnt Use Metric Mask":  "invalid IP",
	} {
		if got, err := parseGateway4(strings.Fields(row)); err != nil || got.String() != want {
			t.Errorf("%s: %v, %v, want %s", row, got, err, want)
		}
	}
	zero := strings.Repeat("0", 32)
	next := "fd000000000000000000000000000001"
	for row, want := range map[string]string{
		zero + " 00 " + zero + " 00 " + next + " 00000400 1 0 00000003 eth0": "fd00::1",
		zero + " 00 " + zero + " 00 " + zero + " ffffffff 1 0 00200200 lo":   "invalid IP",
		next + " 80 " + zero + " 00 " + zero + " 00000000 2 0 80200001 lo":   "invalid IP",
	} {
		if got, err := parseGateway6(strings.Fields(row)); err != nil || got.String() != want {
			t.Errorf("%s: %v, %v, want %s", row, got, err, want)
		}
	}
	if _, err := parseGateway4([]string{"eth0"}); err == nil {
		t.Error("a short row was read")
	}
}

// This machine's own routes can be read, whatever they are.
func TestGatewaysOfThisMachine(t *testing.T) {
	found, err := gateways()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range found {
		if !p.IsSingleIP() || p.Addr().IsUnspecified() {
			t.Errorf("gateway %v", p)
		}
	}
}

func TestProbeSources(t *testing.T) {
	got, err := parseSources("192.0.2.1,10.0.0.0/8", func() ([]netip.Prefix, error) { t.Error("gateways were asked for"); return nil, nil })
	if err != nil || len(got) != 2 {
		t.Errorf("%v, %v", got, err)
	}
	node := netip.MustParsePrefix("10.244.0.1/32")
	got, err = parseSources("192.0.2.1,gateway", func() ([]netip.Prefix, error) { return []netip.Prefix{node}, nil })
	if err != nil || len(got) != 2 || got[1] != node {
		t.Errorf("%v, %v", got, err)
	}
	if _, err := parseSources("gatewy", nil); err == nil {
		t.Error("a misspelt word was read")
	}
}
