package mux

import (
	"bytes"
	"errors"
	"strings"
	"testing"

	"github.com/sealane/sealane/session/container"
)

// ruleOf returns the rule that err is a violation of, "" if of none.
func ruleOf(err error) container.Rule {
	var v *container.Violation
	if errors.As(err, &v) {
		return v.Rule
	}
	return ""
}

func TestOpenHasOneForm(t *testing.T) {
	host := strings.Repeat("a", 254)
	for _, o := range []Open{
		{"postgres", "10.0.0.1:5", "forward"},
		{"a", "", "socks5"},
		{"0-9", "[::1]:65535", "connect"},
		{"db.internal:5432", "", "transparent"},
		{"_srv.X-y:1", "", "forward"},
		{"[fd00::1]:443", "", "forward"},
		{"10.0.0.1:80", "", "forward"},
		{host + ":80", "", "forward"},
	} {
		frame, err := appendOpen(nil, o)
		if err != nil {
			t.Fatalf("%+v: %v", o, err)
		}
		kind, length, err := parseFrameHeader([4]byte(frame))
		if err != nil || kind != frameOpen || length != len(frame)-4 {
			t.Fatalf("%+v: header %d %d %v", o, kind, length, err)
		}
		got, err := parseOpen(frame[4:])
		if err != nil || got != o {
			t.Fatalf("%s: %+v, %v", frame[4:], got, err)
		}
	}
	want := `{"to":"db:1","from":"[::1]:2","via":"socks5"}`
	if frame, _ := appendOpen(nil, Open{"db:1", "[::1]:2", "socks5"}); string(frame[4:]) != want {
		t.Fatalf("%s", frame[4:])
	}
	for _, body := range []string{
		``, `{}`, `null`, `[]`, `"a"`, `{"to":"a","from":"","via":"forward"`,
		`{"to":"a","from":"","via":"forward"} `, ` {"to":"a","from":"","via":"forward"}`,
		`{"to":"a","from":"","via":"forward"}{}`, `{"to":"a", "from":"","via":"forward"}`,
		`{"from":"","to":"a","via":"forward"}`, `{"to":"a","via":"forward"}`,
		`{"to":"a","to":"a","from":"","via":"forward"}`, `{"To":"a","from":"","via":"forward"}`,
		`{"to":"a","from":"","via":"forward","x":1}`, `{"to":"\u0061","from":"","via":"forward"}`,
		`{"to":"a","from":"","via":"Forward"}`, `{"to":"a","from":"","via":""}`,
		`{"to":"","from":"","via":"forward"}`, `{"to":"A","from":"","via":"forward"}`,
		`{"to":"-a","from":"","via":"forward"}`, `{"to":"a-","from":"","via":"forward"}`,
		`{"to":"` + strings.Repeat("a", 64) + `","from":"","via":"forward"}`,
		`{"to":"` + host + `a:80","from":"","via":"forward"}`,
		`{"to":"a:0","from":"","via":"forward"}`, `{"to":"a:65536","from":"","via":"forward"}`,
		`{"to":"a:01","from":"","via":"forward"}`, `{"to":"a:+1","from":"","via":"forward"}`,
		`{"to":"a:","from":"","via":"forward"}`, `{"to":":80","from":"","via":"forward"}`,
		`{"to":"::1:80","from":"","via":"forward"}`, `{"to":"[::1%lo]:80","from":"","via":"forward"}`,
		`{"to":"[1.2.3.4]:80","from":"","via":"forward"}`, `{"to":"[::1:80","from":"","via":"forward"}`,
		`{"to":"a b:80","from":"","via":"forward"}`, `{"to":"` + "\u00fc" + `:80","from":"","via":"forward"}`,
		`{"to":"a","from":"a:1","via":"forward"}`, `{"to":"a","from":"1.2.3.4","via":"forward"}`,
		`{"to":"a","from":"[fe80::1%eth0]:1","via":"forward"}`, `{"to":"a","from":"1.2.3.4:01","via":"forward"}`,
	} {
		if _, err := parseOpen([]byte(body)); ruleOf(err) != RuleFrameOpen {
			t.Errorf("%s: %v", body, err)
		}
	}
	if _, err := appendOpen(nil, Open{To: `a"b:80`, Via: "forward"}); err == nil {
		t.Error("wrote a value that needs an escape")
	}
}

func TestOpened(t *testing.T) {
	frame := appendOpened(nil, StatusRefused, "no\nway \x80 "+strings.Repeat("x", 400))
	if _, n, err := parseFrameHeader([4]byte(frame)); err != nil || n != 257 {
		t.Fatal(n, err)
	}
	status, text, err := parseOpened(frame[4:])
	if err != nil || status != StatusRefused || !strings.HasPrefix(text, "no?way ? xxx") {
		t.Fatal(status, text, err)
	}
	for _, body := range []string{"\x08", "\xff", "\x00\n", "\x01a\x7f", "\x01\x80"} {
		if _, _, err := parseOpened([]byte(body)); ruleOf(err) != RuleFrameOpened {
			t.Errorf("%q: %v", body, err)
		}
	}
}

func TestFrameHeaderBounds(t *testing.T) {
	for _, c := range []struct {
		kind   byte
		length int
		rule   container.Rule
	}{
		{0, 1, RuleFrameType}, {6, 1, RuleFrameType}, {255, 1, RuleFrameType},
		{1, 1, RuleFrameLength}, {1, 2, ""}, {1, 4096, ""}, {1, 4097, RuleFrameLength},
		{2, 0, RuleFrameLength}, {2, 1, ""}, {2, 257, ""}, {2, 258, RuleFrameLength},
		{3, 0, RuleFrameLength}, {3, 1, ""}, {3, 65535, ""}, {3, 65536, RuleFrameLength}, {3, 1<<24 - 1, RuleFrameLength},
		{4, 7, RuleFrameLength}, {4, 8, ""}, {4, 9, RuleFrameLength},
		{5, 0, RuleFrameLength}, {5, 1, ""}, {5, 2, RuleFrameLength},
	} {
		h := [4]byte{c.kind}
		putLength(h[:], c.length)
		if _, _, err := parseFrameHeader(h); ruleOf(err) != c.rule {
			t.Errorf("type %d, length %d: %v", c.kind, c.length, err)
		}
	}
}

func TestFrameOrder(t *testing.T) {
	const o, d, data, e, r = frameOpen, frameOpened, frameData, frameEnd, frameReset
	for _, c := range []struct {
		accepter bool
		kinds    []byte
		legal    int // how many of them are
	}{
		{false, []byte{o, data, data, e, r}, 5}, {true, []byte{d, data, e, r}, 4},
		{false, []byte{o, r, r}, 2}, {false, []byte{o, r, data}, 2}, {false, []byte{o, e, e}, 2},
		{false, []byte{o, e, data}, 2}, {false, []byte{o, o}, 1}, {false, []byte{o, d}, 1},
		{false, []byte{d}, 0}, {false, []byte{data}, 0}, {false, []byte{e}, 0}, {false, []byte{r}, 0},
		{true, []byte{o}, 0}, {true, []byte{data}, 0}, {true, []byte{r}, 0}, {true, []byte{d, d}, 1},
		{true, []byte{d, o}, 1},
	} {
		order := frameOrder{accepter: c.accepter}
		for i, kind := range c.kinds {
			err := order.next(kind, 1)
			if i < c.legal && err != nil || i >= c.legal && ruleOf(err) != RuleFrameOrder {
				t.Errorf("accepter %t, %v: frame %d: %v", c.accepter, c.kinds, i, err)
			}
		}
	}
}

func TestEndCounts(t *testing.T) {
	order := frameOrder{}
	order.next(frameOpen, 50)
	for range 1000 {
		order.next(frameData, 65535)
	}
	order.next(frameEnd, 8)
	if err := order.end(appendEnd(nil, 65535000)[4:]); err != nil {
		t.Fatal(err)
	}
	for _, n := range []uint64{0, 65534999, 65535001, 65535000 + 1<<32} {
		if err := order.end(appendEnd(nil, n)[4:]); ruleOf(err) != RuleFrameCount {
			t.Errorf("%d: %v", n, err)
		}
	}
}

// FuzzOpen: what is accepted is what would have been written.
func FuzzOpen(f *testing.F) {
	f.Add([]byte(`{"to":"a","from":"","via":"forward"}`))
	f.Add([]byte(`{"to":"[::1]:80","from":"1.2.3.4:5","via":"socks5"}`))
	f.Add([]byte(`{"to":"a\u0062","from":"","via":"forward"}`))
	f.Fuzz(func(t *testing.T, body []byte) {
		o, err := parseOpen(body)
		if err != nil {
			if ruleOf(err) != RuleFrameOpen {
				t.Fatal(err)
			}
			return
		}
		frame, err := appendOpen(nil, o)
		if err != nil || !bytes.Equal(frame[4:], body) {
			t.Fatalf("%q: %v", frame, err)
		}
	})
}
