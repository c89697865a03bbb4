package sim

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/cryptotest"
	"testing/synctest"
	"time"
)

var (
	seed     = flag.Int64("seed", -1, "run the world of this seed alone")
	times    = flag.Int("times", 1, "run that world so often, and count how often it fails")
	first    = flag.Int64("first", 1, "the first seed")
	seeds    = flag.Int64("seeds", 40, "how many seeds")
	duration = flag.Duration("duration", 0, "run seeds for so long, however many")
	shards   = flag.Int("shards", runtime.NumCPU(), "processes that run seeds")
	shrinks  = flag.Bool("shrink", true, "make a failing world smaller")
	planFile = flag.String("plan", "", "run the plan in this file alone")
	survey   = flag.Bool("survey", false, "run all seeds, whatever fails, and count the failures")
	here     = flag.Bool("here", false, "run in this process, for a coverage profile or a debugger; the first failure ends it")
)

// childEnv tells TestWorld what to run: the name of a plan's file, or the first
// seed and how many.
const childEnv = "SEALANE_SIM_WORLDS"

// TestSim runs worlds. Those of a failing seed are run again, smaller and
// smaller, and the smallest that still fails is told.
func TestSim(t *testing.T) {
	switch {
	case os.Getenv(childEnv) != "":
		t.Skip("is a child")
	case *planFile != "":
		judge(t, readPlan(t, *planFile))
	case *seed >= 0:
		judge(t, Generate(uint64(*seed)))
	case *here:
		for s := *first; s < *first+*seeds; s++ {
			runHere(t, Generate(uint64(s)))
		}
	default:
		runMany(t)
	}
}

// judge runs one plan and tells its story if it fails.
func judge(t *testing.T, p *Plan) {
	if *here {
		runHere(t, p)
		return
	}
	var last *Failure
	failed := 0
	for range *times {
		if f := runPlan(t, p); f != nil {
			failed++
			last = f
		}
	}
	if *times > 1 {
		t.Logf("failed %d times of %d", failed, *times)
	}
	if last != nil {
		tell(t, p, last)
	}
}

// tell reports a failure, of the smallest world that has it.
func tell(t *testing.T, p *Plan, f *Failure) {
	t.Errorf("seed %d: %s: %s\n\nits story:\n%s\n%s", f.Seed, f.Kind, f.Text, f.Story, f.Stack)
	if !*shrinks {
		return
	}
	small, f := shrink(p, f, func(p *Plan) *Failure { return runPlan(t, p) })
	file := filepath.Join(os.TempDir(), fmt.Sprintf("sealane-sim-%d.json", p.Seed))
	if err := os.WriteFile(file, []byte(small.String()+"\n"), 0o600); err != nil {
		t.Error(err)
	}
	t.Errorf("the smallest world like it, which `go test ./test/sim -run Sim -plan %s` runs:\n%s\n%s: %s\n\nits story:\n%s",
		file, small, f.Kind, f.Text, f.Story)
}

// A range is seeds that a child runs.
type seedRange struct{ from, to int64 }

const perChild = 25

// runMany runs seeds in several processes, each of which has one processor.
func runMany(t *testing.T) {
	begun := time.Now()
	stop := make(chan struct{})
	next := ranges(begun, stop)
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failures []*Failure
	done := int64(0)
	end := sync.OnceFunc(func() { close(stop) })
	for range *shards {
		wg.Go(func() {
			for r := range next {
				for r.from < r.to {
					ran, f := runChild(t, fmt.Sprintf("%d %d", r.from, r.to))
					mu.Lock()
					done += ran
					r.from += max(ran, 1)
					if f != nil {
						failures = append(failures, f)
					}
					mu.Unlock()
					if f != nil && !*survey {
						end()
						return
					}
				}
			}
		})
	}
	wg.Wait()
	t.Logf("%d worlds in %v", done, time.Since(begun).Round(time.Second))
	switch {
	case *survey:
		count(t, failures)
	case len(failures) > 0:
		tell(t, Generate(failures[0].Seed), failures[0])
	}
}

// ranges gives the seeds to run until stop.
func ranges(begun time.Time, stop <-chan struct{}) <-chan seedRange {
	next := make(chan seedRange)
	go func() {
		defer close(next)
		for s := *first; *duration > 0 && time.Since(begun) < *duration || *duration == 0 && s < *first+*seeds; s += perChild {
			to := s + perChild
			if *duration == 0 {
				to = min(to, *first+*seeds)
			}
			select {
			case next <- seedRange{s, to}:
			case <-stop:
				return
			}
		}
	}()
	return next
}

// count tells how often each kind of failure came, and at which seeds.
func count(t *testing.T, failures []*Failure) {
	kinds := make(map[string][]*Failure)
	for _, f := range failures {
		kinds[f.Kind] = append(kinds[f.Kind], f)
	}
	for kind, list := range kinds {
		slices.SortFunc(list, func(a, b *Failure) int { return cmp.Compare(a.Seed, b.Seed) })
		t.Errorf("%d of %q", len(list), kind)
		for _, f := range list[:min(len(list), 12)] {
			text, _, _ := strings.Cut(f.Text, "\n")
			t.Logf("    seed %d: %s", f.Seed, text)
		}
	}
}

// runPlan runs one plan in a process of its own.
func runPlan(t *testing.T, p *Plan) *Failure {
	file := filepath.Join(t.TempDir(), "plan.json")
	if err := os.WriteFile(file, []byte(p.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	_, f := runChild(t, file)
	if f != nil {
		f.Seed = p.Seed
	}
	return f
}

const (
	markSeed = "WORLD "
	markFail = "FAILURE "
)

// runChild runs worlds in a process of its own, as what has gone wrong in a
// bubble may never end.
func runChild(t *testing.T, what string) (ran int64, f *Failure) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self, "-test.run=^TestWorlds$", "-test.timeout=0")
	cmd.Env = append(os.Environ(), childEnv+"="+what, "GOMAXPROCS=1", "GOGC=off", "GOMEMLIMIT=1500MiB", "GODEBUG=asyncpreemptoff=1", "CI=")
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err = cmd.Run()
	var current uint64
	lines := bufio.NewReader(&out)
	var rest strings.Builder
	for {
		line, rerr := lines.ReadString('\n')
		switch {
		case strings.HasPrefix(line, markSeed):
			fmt.Sscanf(line, markSeed+"%d", &current)
			ran++
			rest.Reset()
		case strings.HasPrefix(line, markFail):
			f = new(Failure)
			if err := json.Unmarshal([]byte(strings.TrimPrefix(line, markFail)), f); err != nil {
				t.Fatal(err)
			}
			return ran, f
		default:
			rest.WriteString(line)
		}
		if rerr != nil {
			break
		}
	}
	if err == nil {
		return ran, nil
	}
	return ran, &Failure{Seed: current, Kind: "crash", Text: fmt.Sprintf("%v: %s", err, rest.String())}
}

// TestWorlds is what a child runs.
func TestWorlds(t *testing.T) {
	what := os.Getenv(childEnv)
	if what == "" {
		t.Skip("runs as a child of TestSim")
	}
	var from, to uint64
	if n, _ := fmt.Sscanf(what, "%d %d", &from, &to); n < 2 {
		runHere(t, readPlan(t, what))
		return
	}
	for s := from; s < to; s++ {
		runHere(t, Generate(s))
	}
}

// TestCases runs worlds that have found something, each of which says what.
// Those in testdata/known find something that is not mended yet.
func TestCases(t *testing.T) {
	if os.Getenv(childEnv) != "" {
		t.Skip("is a child")
	}
	for _, kind := range []string{"cases", "known"} {
		files, err := filepath.Glob(filepath.Join("testdata", kind, "*.json"))
		if err != nil {
			t.Fatal(err)
		}
		if kind == "cases" && len(files) == 0 {
			t.Error("there are no cases")
		}
		for _, file := range files {
			t.Run(file, func(t *testing.T) {
				p := readPlan(t, file)
				if p.Note == "" {
					t.Error("does not say what it found")
				}
				switch f := runPlan(t, p); {
				case f != nil && kind == "known":
					t.Skipf("known: %s: %s", f.Kind, f.Text)
				case f != nil:
					t.Errorf("%s: %s\n\nits story:\n%s", f.Kind, f.Text, f.Story)
				case kind == "known":
					t.Log("does not fail any more? If it is mended, it belongs to the cases")
				}
			})
		}
	}
}

func readPlan(t *testing.T, file string) *Plan {
	t.Helper()
	b, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	p := new(Plan)
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(p); err != nil {
		t.Fatal(err)
	}
	return p
}

// stuckAfter is how long a world may take of real time.
const stuckAfter = 10 * time.Minute

// runHere runs a plan in this process, which ends with its first failure.
func runHere(t *testing.T, p *Plan) {
	if err := durableMutexes(); err != nil {
		t.Fatal(err)
	}
	fmt.Printf("%s%d\n", markSeed, p.Seed)
	// yamux keeps timers in a sync.Pool, and those of one bubble are not to be
	// used in another.
	runtime.GC()
	runtime.GC()
	cryptotest.SetGlobalRandom(t, p.Seed)
	stuck := time.AfterFunc(stuckAfter, func() {
		buf := make([]byte, 1<<20)
		die(Failure{Seed: p.Seed, Kind: "stuck", Text: "does not end in real time", Stack: string(buf[:runtime.Stack(buf, true)])})
	})
	defer stuck.Stop()
	var hash uint64
	synctest.Test(t, func(t *testing.T) { hash = Run(p, die) })
	if os.Getenv("SEALANE_SIM_HASH") != "" {
		fmt.Fprintf(os.Stderr, "seed %d: %016x\n", p.Seed, hash)
	}
}

// die ends the process with a failure.
func die(f Failure) {
	b, err := json.Marshal(f)
	if err != nil {
		b = []byte(err.Error())
	}
	if os.Getenv(childEnv) != "" {
		fmt.Printf("%s%s\n", markFail, b)
	} else {
		fmt.Printf("seed %d: %s: %s\n\nits story:\n%s\n%s\n", f.Seed, f.Kind, f.Text, f.Story, f.Stack)
	}
	os.Exit(3)
}
