//go:build linux

package slowlink

import (
	"bytes"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sealane/sealane/k8s/netlab"
	"github.com/sealane/sealane/lab"
)

var (
	check     = flag.Bool("check", false, "measure a few cells, which must keep their targets with a margin of 2")
	all       = flag.Bool("all", false, "measure the whole table; nothing is asserted")
	rates     = flag.String("rates", "4,8,50,1000", "with -all: rates of the link in Mbit/s")
	counts    = flag.String("counts", "1,4,16,64", "with -all: how many bulk transfers there are")
	ways      = flag.String("ways", "up,down", "with -all: which way they go")
	algorithm = flag.String("congestion", "", "TCP's congestion control (default: the kernel's)")
	transform = flag.String("transform", "json", "sealane's transform")
	beside    = flag.Duration("beside", 10*time.Second, "with -all: how long each cell is measured")
)

func TestMain(m *testing.M) {
	var err error
	switch os.Getenv("SLOWLINK_AS") {
	case "target":
		err = new(target).serve(os.Args[1], os.Args[2])
	case "load":
		var l load
		if err = json.Unmarshal([]byte(os.Args[1]), &l); err == nil {
			err = l.run()
		}
	default:
		lab.Main(m)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// A cell is one line of the table.
type cell struct {
	rate, count int // of the link in Mbit/s, of bulk transfers
	down        bool
}

func (c cell) String() string {
	way := "up"
	if c.down {
		way = "down"
	}
	return fmt.Sprintf("%d Mbit/s, %d %s", c.rate, c.count, way)
}

// TestBulk measures what bulk leaves for others.
func TestBulk(t *testing.T) {
	if !*check && !*all {
		t.Skip("a measurement, which takes a minute: -args -check, or -all")
	}
	netlab.Need(t, "ip", "tc")
	cells := []cell{{8, 4, false}, {8, 16, false}, {8, 4, true}}
	l := load{Warm: 3 * time.Second, Alone: 3 * time.Second, Beside: 4 * time.Second}
	if *all {
		cells, l.Beside, l.Alone = chosen(t), *beside, *beside
	}
	var table bytes.Buffer
	fmt.Fprintln(&table, heading)
	for _, c := range cells {
		row := line{cell: c}
		t.Run(fmt.Sprint(c, " plain"), func(t *testing.T) { row.plain = c.measure(t, l, false) })
		t.Run(fmt.Sprint(c, " sealane"), func(t *testing.T) { row.sealane = c.measure(t, l, true) })
		if t.Failed() {
			break
		}
		fmt.Fprintln(os.Stderr, row) // as it comes: the whole table takes long
		fmt.Fprintln(&table, row)
		if !*all {
			row.check(t)
		}
	}
	t.Logf("\n%s", &table)
}

func chosen(t *testing.T) (cells []cell) {
	numbers := func(s string) (list []int) {
		for f := range strings.SplitSeq(s, ",") {
			n, err := strconv.Atoi(f)
			if err != nil {
				t.Fatal(err)
			}
			list = append(list, n)
		}
		return list
	}
	for way := range strings.SplitSeq(*ways, ",") {
		for _, rate := range numbers(*rates) {
			for _, count := range numbers(*counts) {
				cells = append(cells, cell{rate, count, way == "down"})
			}
		}
	}
	return cells
}

// measure makes two hosts for the cell, and has apps on one talk to a target on
// the other.
func (c cell) measure(t *testing.T, l load, sealed bool) *result {
	t.Helper()
	near, far := c.hosts(t)
	dir := lab.TempDir(t, "")
	l.Address, l.Counter = "10.77.0.2:7000", filepath.Join(dir, "counter")
	l.Count, l.Down = c.count, c.down
	far.Start(as(t, "target", ":7000", l.Counter)...).Expect("listening", patience)
	if sealed {
		l.Address = sidecars(t, dir, near, far)
	}
	text, err := json.Marshal(l)
	if err != nil {
		t.Fatal(err)
	}
	p := near.Start(as(t, "load", string(text))...)
	if err := p.Wait(l.Warm + l.Alone + l.Beside + 4*patience); err != nil {
		t.Fatalf("%v: %s", err, p.Output())
	}
	r := new(result)
	if err := json.Unmarshal([]byte(p.Output()), r); err != nil {
		t.Fatalf("%v: %s", err, p.Output())
	}
	if n := len(r.Failed); n > 0 {
		t.Logf("%v: %d failed, the first: %s", c, n, r.Failed[0])
	}
	return r
}

func (c cell) hosts(t *testing.T) (near, far *netlab.Host) {
	near, far = netlab.NewHost(t), netlab.NewHost(t)
	netlab.Join(near, "out", []string{"10.77.0.1/24"}, far, "in", []string{"10.77.0.2/24"})
	for h, name := range map[*netlab.Host]string{near: "out", far: "in"} {
		h.Run("tc", "qdisc", "add", "dev", name, "root", "tbf", "rate", fmt.Sprintf("%dmbit", c.rate), "burst", "32k", "latency", "50ms")
		if *algorithm != "" {
			h.Run("sysctl", "-qw", "net.ipv4.tcp_congestion_control="+*algorithm)
		}
	}
	return near, far
}

// sidecars starts one on each host, and returns where apps on the near one
// reach the target.
func sidecars(t *testing.T, dir string, near, far *netlab.Host) string {
	nearKey, farKey := lab.Key(t, filepath.Join(dir, "near.key")), lab.Key(t, filepath.Join(dir, "far.key"))
	run := func(h *netlab.Host, name, config string) {
		file := filepath.Join(dir, name+".yaml")
		config = fmt.Sprintf("identity: %s.key\nlog: {level: error}\ntransform: %s\n%s", name, *transform, config)
		if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
			t.Fatal(err)
		}
		h.Start(lab.Build(t), "run", "-c", file)
	}
	run(far, "far", fmt.Sprintf(`listen: "10.77.0.2:7001"
peers: [{name: near, keys: ["%s"]}]
services: [{name: bulk, address: "127.0.0.1:7000", allow: [near]}]
`, nearKey))
	run(near, "near", fmt.Sprintf(`peers: [{name: far, keys: ["%s"], address: ["10.77.0.2:7001"]}]
listeners: [{forward: "127.0.0.1:7002", to: {peer: far, service: bulk}}]
`, farKey))
	return "127.0.0.1:7002"
}

// as makes the arguments of this test binary in one of its parts.
func as(t *testing.T, part string, args ...string) []string {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return append([]string{"env", "SLOWLINK_AS=" + part, self}, args...)
}

// A line is a cell's figures.
type line struct {
	cell
	plain, sealane *result
}

const heading = `                    connect ms: plain  sealane  ratio      round trip ms: plain  sealane  ratio      Mbit/s: plain  sealane alone  beside  lost`

func (l line) String() string {
	times := func(p, s []time.Duration) string {
		return fmt.Sprintf("%9.1f (%5.0f) %9.1f (%5.0f) %6.2f", middle(p), last(p), middle(s), last(s), middle(s)/middle(p))
	}
	return fmt.Sprintf("%-20v %s   %s %10.2f %10.2f %10.2f %5.1f %%", l.cell,
		times(l.plain.Connects, l.sealane.Connects), times(l.plain.Trips, l.sealane.Trips),
		l.plain.Beside, l.sealane.Alone, l.sealane.Beside, 100*(1-l.sealane.Beside/l.sealane.Alone))
}

func middle(d []time.Duration) float64 { return milliseconds(d[len(d)/2]) }

func last(d []time.Duration) float64 { return milliseconds(d[len(d)-1]) }

func milliseconds(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

// The targets, and how far a loaded machine may miss them.
const (
	connectRatio = 3.0
	connectMore  = 20.0 // milliseconds
	tripRatio    = 2.0
	margin       = 2.0
)

func (l line) check(t *testing.T) {
	t.Helper()
	for _, r := range []*result{l.plain, l.sealane} {
		if len(r.Failed) > 0 {
			t.Errorf("%v: failed: %v", l.cell, r.Failed)
		}
	}
	plain, sealane := middle(l.plain.Connects), middle(l.sealane.Connects)
	if limit := margin * max(connectRatio*plain, plain+connectMore); sealane > limit {
		t.Errorf("%v: a new connection takes %.1f ms, more than %.1f", l.cell, sealane, limit)
	}
	plain, sealane = middle(l.plain.Trips), middle(l.sealane.Trips)
	if limit := margin * tripRatio * plain; sealane > limit {
		t.Errorf("%v: a round trip takes %.1f ms, more than %.1f", l.cell, sealane, limit)
	}
	if l.sealane.Beside*2 < l.sealane.Alone {
		t.Errorf("%v: bulk falls from %.2f to %.2f Mbit/s beside small things", l.cell, l.sealane.Alone, l.sealane.Beside)
	}
}
