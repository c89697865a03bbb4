package redirect

import (
	"bytes"
	"net/netip"
	"strings"
	"testing"
)

func TestParsePorts(t *testing.T) {
	got, err := ParsePorts("5432, 8000-8999")
	if err != nil || len(got) != 2 || got[0] != (PortRange{5432, 5432}) || got[1] != (PortRange{8000, 8999}) {
		t.Fatalf("got %v, %v", got, err)
	}
	if got, err := ParsePorts(""); err != nil || got != nil {
		t.Fatalf("nothing gave %v, %v", got, err)
	}
	for _, bad := range []string{"0", "65536", "9-8", "http", "1,,2", "-1", "1-", "+5"} {
		if got, err := ParsePorts(bad); err == nil {
			t.Errorf("%q gave %v", bad, got)
		}
	}
}

func TestParseCIDRs(t *testing.T) {
	got, err := ParseCIDRs("10.0.0.0/8,fd00::/8,192.0.2.1")
	want := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8"), netip.MustParsePrefix("192.0.2.1/32")}
	if err != nil || len(got) != 3 || got[0] != want[0] || got[1] != want[1] || got[2] != want[2] {
		t.Fatalf("got %v, %v", got, err)
	}
	for bad, hint := range map[string]string{
		"10.0.0.1/8":       "is 10.0.0.0/8 meant?",
		"::ffff:10.0.0.1":  "write it as IPv4",
		"db.internal":      "neither an address nor a CIDR",
		"fe80::1%eth0":     "neither an address nor a CIDR",
		"10.0.0.0/33":      "neither an address nor a CIDR",
		"10.0.0.0/8,,::/0": "neither an address nor a CIDR",
	} {
		if _, err := ParseCIDRs(bad); err == nil || !strings.Contains(err.Error(), hint) {
			t.Errorf("%q gave %v, want %q", bad, err, hint)
		}
	}
}

func TestCatches(t *testing.T) {
	o := Options{
		Ports:       []PortRange{{5432, 5432}, {8000, 8999}},
		ExceptPorts: []PortRange{{8080, 8080}},
		CIDRs:       []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")},
		ExceptCIDRs: []netip.Prefix{netip.MustParsePrefix("10.9.0.0/16")},
	}
	for dst, want := range map[string]bool{
		"10.1.2.3:5432": true, "10.1.2.3:8999": true, "10.1.2.3:8080": false, "10.1.2.3:22": false,
		"10.9.2.3:5432": false, "192.0.2.1:5432": false, "[fd00::1]:5432": false,
	} {
		if got := o.catches(netip.MustParseAddrPort(dst)); got != want {
			t.Errorf("%s caught: %v, want %v", dst, got, want)
		}
	}
	if everything := (Options{}); !everything.catches(netip.MustParseAddrPort("[2001:db8::1]:1")) {
		t.Error("without restrictions everything is caught")
	}
}

func TestBadUsage(t *testing.T) {
	for name, test := range map[string]struct {
		args []string
		want string
	}{
		"nothing":           {nil, "say up, down, show or watch"},
		"unknown verb":      {[]string{"on"}, `"on" is none of`},
		"unknown option":    {[]string{"up", "--port", "1"}, "flag provided but not defined: -port"},
		"argument":          {[]string{"up", "5432"}, `"5432" is one argument too many`},
		"argument of watch": {[]string{"watch", "it"}, `"it" is one argument too many`},
		"sidecar's user":    {[]string{"up", "--except-uid", "", "--mark", "1"}, "who may answer on the port"},
		"sidecar loops":     {[]string{"up", "--sidecar-uid", "5"}, "the sidecar's own connections are not exempt"},
		"empty guard":       {[]string{"up", "--guard-inbound", ""}, "it is empty"},
		"empty ports":       {[]string{"up", "--ports="}, "it is empty"},
		"argument of down":  {[]string{"down", "now"}, `"now" is one argument too many`},
		"port":              {[]string{"up", "--to", "0"}, `"0" is no port`},
		"mark":              {[]string{"up", "--mark", "0"}, "is no mark"},
		"user":              {[]string{"up", "--except-uid", "no-such-user"}, `there is no user "no-such-user"`},
		"loop":              {[]string{"up", "--except-uid", ""}, "they would come back to it"},
		"probes alone":      {[]string{"up", "--probe-sources", "10.0.0.1"}, "without guarded inbound ports"},
		"nothing left":      {[]string{"up", "--ports", "22", "--except-ports", "1-65535"}, "nothing is left to catch"},
	} {
		t.Run(name, func(t *testing.T) {
			var stdout, stderr bytes.Buffer
			if code := Main(test.args, &stdout, &stderr); code != exitUsage {
				t.Errorf("exit code %d", code)
			}
			if !strings.Contains(stderr.String(), test.want) || stdout.Len() > 0 {
				t.Errorf("stdout %q, stderr %q, want %q", &stdout, &stderr, test.want)
			}
		})
	}
}

func TestHelp(t *testing.T) {
	for _, args := range [][]string{{"--help"}, {"help"}, {"up", "-h"}, {"down", "--help"}} {
		var stdout, stderr bytes.Buffer
		if code := Main(args, &stdout, &stderr); code != exitOK || stdout.String() != usage || stderr.Len() > 0 {
			t.Errorf("%v: code %d, stdout %q, stderr %q", args, code, &stdout, &stderr)
		}
	}
}
