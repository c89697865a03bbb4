package proxy

import (
	"net/netip"
	"strings"
	"testing"
)

func mustMatch(t testing.TB, s string) Match {
	t.Helper()
	m, err := ParseMatch(s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func mustDestination(t testing.TB, s string) Destination {
	t.Helper()
	d, err := ParseDestination(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func TestMatch(t *testing.T) {
	for _, tt := range []struct {
		pattern, destination string
		want                 bool
	}{
		{"*:*", "db.internal:5432", true},
		{"*:*", "10.0.0.1:1", true},
		{"*:*", "[2001:db8::1]:65535", true},
		{"*:443", "db.internal:5432", false},
		{"*.db.internal:5432", "a.db.internal:5432", true},
		{"*.db.internal:5432", "a.b.db.internal:5432", true},
		{"*.db.internal:5432", "A.DB.Internal:5432", true},
		{"*.db.internal:5432", "db.internal:5432", false},
		{"*.db.internal:5432", "a.db.internal:5433", false},
		{"*.db.internal:5432", "a.db.internal.evil.com:5432", false},
		{"*.DB.internal:5432", "a.db.internal:5432", true},
		{"db-*.internal:*", "db-1.internal:1", true},
		{"db-*.internal:*", "db-.internal:1", true},
		{"a*b*c.x:*", "aXbYbZc.x:1", true},
		{"a*b*c.x:*", "aXbYbZ.x:1", false},
		{"db.internal:5432", "db.internal:5432", true},
		{"db.internal:5432", "DB.INTERNAL:5432", true},
		{"db.internal:5432", "db.internal.:5432", true}, // one final dot says nothing
		{"db.internal.:5432", "db.internal:5432", true},
		{"*.internal.:5432", "db.internal.:5432", true},
		{"db.internal:5432", "db.internal..:5432", false},
		{"db.internal:5432", "xdb.internal:5432", false},
		{"10.1.0.0/16:*", "10.1.255.1:80", true},
		{"10.1.0.0/16:*", "10.2.0.1:80", false},
		{"10.1.0.0/16:*", "[::ffff:10.1.2.3]:80", true},
		{"10.1.0.0/16:*", "host:80", false},
		{"[::ffff:10.1.0.0/112]:*", "10.1.0.9:80", true},
		{"[::ffff:10.1.0.7]:*", "10.1.0.7:80", true},
		{"10.1.2.3:8000-8999", "10.1.2.3:8000", true},
		{"10.1.2.3:8000-8999", "10.1.2.3:8999", true},
		{"10.1.2.3:8000-8999", "10.1.2.3:9000", false},
		{"10.1.2.3:8000-8999", "10.1.2.3:7999", false},
		{"0.0.0.0/0:*", "[2001:db8::1]:80", false},
		{"[::/0]:*", "10.1.2.3:80", false},
		{"[::/0]:*", "[2001:db8::1]:80", true},
		{"[::1]:80", "[::1]:80", true},
		{"[::1]:80", "[0:0:0:0:0:0:0:1]:80", true},
		{"[fd00::/8]:443", "[fd12::1]:443", true},
	} {
		m := mustMatch(t, tt.pattern)
		d, err := ParseDestination(tt.destination)
		if got := err == nil && m.Matches(d); got != tt.want {
			t.Errorf("%q matches %q: %v, want %v", tt.pattern, tt.destination, got, tt.want)
		}
	}
	if (Match{}).Matches(mustDestination(t, "a:1")) {
		t.Error("the zero Match matches")
	}
}

func TestParseMatchErrors(t *testing.T) {
	for pattern, want := range map[string]string{
		"":                      "is empty",
		"db.internal":           "has no port",
		"[fd00::/8]":            "has no port",
		":80":                   "write * to match every host",
		"fd00::/8:443":          "in brackets",
		"[fd00::/8:443":         "never closed",
		"*:":                    "is no port",
		"*:0":                   "is no port",
		"*:65536":               "is no port",
		"*:+80":                 "is no port",
		"*:080":                 "is no port",
		"*:http":                "is no port",
		"*:9-8":                 "write 8-9",
		"*:1-":                  "is no port",
		"*:*-8":                 "is no port",
		"10.1.2.3/16:*":         "write 10.1.0.0/16",
		"10.1.2.3/33:*":         "is no CIDR",
		"[10.0.0.0/8]:*":        "without brackets",
		"[10.0.0.1]:*":          "without brackets",
		"[db.internal]:*":       "names stand without brackets",
		"[fe80::1%eth0]:*":      "without %eth0",
		"[::ffff:0.0.0.0/90]:*": "bits set after",
		"10.1.*:80":             "write a CIDR",
		"**:80":                 "write one",
		"*..a:80":               "empty label",
		".a:80":                 "empty label",
		"*.a..:80":              "empty label",
		"a?:80":                 "cannot stand in a host name",
		"*.a b:80":              "cannot stand in a host pattern",
		"127.1:80":              "in disguise",
		"0x7f.1:80":             "in disguise",
		"2130706433:80":         "in disguise",
		"127.0.0.01:80":         "in disguise",
	} {
		_, err := ParseMatch(pattern)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("ParseMatch(%q): %v, want an error with %q", pattern, err, want)
		}
	}
}

func TestParseDestination(t *testing.T) {
	for in, want := range map[string]string{
		"db.internal:5432":                  "db.internal:5432",
		"DB.internal:5432":                  "db.internal:5432",
		"_srv.a-b:1":                        "_srv.a-b:1",
		"10.0.0.1:65535":                    "10.0.0.1:65535",
		"[::ffff:10.0.0.1]:1":               "10.0.0.1:1",
		"[2001:DB8:0::1]:443":               "[2001:db8::1]:443",
		"1.example:1":                       "1.example:1",
		"0x7f.example:1":                    "0x7f.example:1",
		"":                                  "",
		"db.internal":                       "",
		"db.internal:":                      "",
		"db.internal:0":                     "",
		"db.internal:65536":                 "",
		"db.internal:-1":                    "",
		"db.internal:080":                   "",
		":80":                               "",
		"::1:80":                            "",
		"[db.internal]:80":                  "",
		"[10.0.0.1]:80":                     "",
		"[fe80::1%25eth0]:80":               "",
		"[fe80::1%eth0]:80":                 "",
		"a..b:80":                           "",
		".a:80":                             "",
		"a.:80":                             "a:80",
		"a.b.:80":                           "a.b:80",
		"a..:80":                            "",
		".:80":                              "",
		"10.0.0.1.:80":                      "",
		"a b:80":                            "",
		"a\x00b:80":                         "",
		"a\nb:80":                           "",
		"a/b:80":                            "",
		"a%b:80":                            "",
		"bücher.example:80":                 "",
		"127.1:80":                          "",
		"127.0.0.1.5:80":                    "",
		"0177.0.0.1:80":                     "",
		"0x7f000001:80":                     "",
		"0x:80":                             "",
		"2130706433:80":                     "",
		"host.0X7F:80":                      "",
		strings.Repeat("a", 64) + ":80":     "",
		strings.Repeat("a.", 127) + "aa:80": "",
		strings.Repeat("a.", 126) + "a:80":  strings.Repeat("a.", 126) + "a:80",
		"user@host:80":                      "",
		"[::1]]:80":                         "",
		"host:80:90":                        "",
	} {
		d, err := ParseDestination(in)
		switch {
		case want == "" && err == nil:
			t.Errorf("ParseDestination(%q) = %v, want an error", in, d)
		case want != "" && err != nil:
			t.Error(err)
		case want != "" && d.String() != want:
			t.Errorf("ParseDestination(%q) = %q, want %q", in, d, want)
		}
	}
}

func TestParseEndpoint(t *testing.T) {
	for in, want := range map[string]string{
		"127.0.0.1:5432":                    "127.0.0.1:5432",
		"localhost:5432":                    "localhost:5432",
		"unix:/run/x.sock":                  "unix:/run/x.sock",
		"unix:x.sock":                       "unix:/etc/sealane/x.sock",
		"unix:@abstract":                    "unix:@abstract",
		"unix:":                             "",
		"unix:a\x00b":                       "",
		"unix:/" + strings.Repeat("x", 108): "",
		"systemd:x":                         "",
		"127.0.0.1:0":                       "",
		"127.1:80":                          "",
		"127.0.0.1":                         "",
	} {
		e, err := ParseEndpoint(in)
		if got := e.RelativeTo("/etc/sealane").String(); (err == nil) != (want != "") || err == nil && got != want {
			t.Errorf("ParseEndpoint(%q) = %q, %v, want %q", in, got, err, want)
		}
	}
	for in, want := range map[string]string{
		":1080":            ":1080",
		"127.0.0.1:0":      "127.0.0.1:0",
		"[::1]:1080":       "[::1]:1080",
		"localhost:1080":   "localhost:1080",
		"unix:/run/x.sock": "unix:/run/x.sock",
		"systemd:socks":    "systemd:socks",
		"systemd:":         "",
		"systemd:a b":      "",
		"127.0.0.1":        "",
		"1080":             "",
		"a..b:80":          "",
		"127.0.0.1:http":   "",
		"127.0.0.1:65536":  "",
	} {
		e, err := ParseListen(in)
		if (err == nil) != (want != "") || err == nil && e.String() != want {
			t.Errorf("ParseListen(%q) = %q, %v, want %q", in, e, err, want)
		}
	}
}

func FuzzParseMatch(f *testing.F) {
	for _, s := range []string{"*:*", "*.db.internal:5432", "10.1.0.0/16:*", "[fd00::/8]:443", "[::1]:80-90", "db:1", "127.1:1", "[::ffff:1.2.3.4/120]:*"} {
		f.Add(s, "db.internal:5432")
		f.Add(s, "[::ffff:10.1.2.3]:443")
	}
	f.Fuzz(func(t *testing.T, pattern, destination string) {
		m, err := ParseMatch(pattern)
		if err != nil {
			if m.Matches(Destination{Name: "a", Port: 1}) {
				t.Errorf("refused pattern %q matches", pattern)
			}
			return
		}
		if again := mustMatch(t, m.String()); again != m {
			t.Errorf("%q reads differently a second time", pattern)
		}
		d, err := ParseDestination(destination)
		if err != nil {
			return
		}
		if m.Matches(d) && (d.Port < m.lo || d.Port > m.hi) {
			t.Errorf("%q matches %v outside its ports", pattern, d)
		}
		if m.Matches(d) && m.kind == matchPrefix && d.Name != "" || m.Matches(d) && m.kind == matchGlob && d.Name == "" {
			t.Errorf("%q matches %v across kinds", pattern, d)
		}
	})
}

func FuzzParseDestination(f *testing.F) {
	for _, s := range []string{"db.internal:5432", "[::1]:80", "127.1:80", "0x7f.0.0.1:1", "[::ffff:127.0.0.1]:80", "a\x00:1"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		d, err := ParseDestination(s)
		if err != nil {
			return
		}
		if (d.Name == "") == (d.Addr == netip.Addr{}) || d.Port == 0 {
			t.Errorf("%q gives %#v", s, d)
		}
		if d.Addr.Is4In6() || d.Addr.Zone() != "" {
			t.Errorf("%q gives the address %v", s, d.Addr)
		}
		if again, err := ParseDestination(d.String()); err != nil || again != d {
			t.Errorf("%q gives %v, which reads as %v, %v", s, d, again, err)
		}
	})
}
