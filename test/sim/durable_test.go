package sim

import (
	"bytes"
	"debug/elf"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
	"unsafe"
)

// A bubble's time stands still while a goroutine waits for a mutex: synctest
// takes it for granted that who holds one will soon let it go. This project
// holds some while it waits for the network (session: a whole Queue; mux: a
// stream's Write), so that a world would stop as soon as two goroutines meet
// at one. The runtime has a table of the waits that count as durable;
// durableMutexes adds those for mutexes, in this process. Who holds the mutex is
// in the bubble as well: if it runs, time stands still because of it, and if it
// waits, time may pass.
var durableMutexes = sync.OnceValue(func() error {
	want, mutexes, err := waitTable()
	if err != nil {
		return err
	}
	table, err := findTable(want)
	if err != nil {
		return err
	}
	for _, i := range mutexes {
		table[i] = 1
	}
	return nil
})

// waitTable reads the runtime's table out of its source: what it holds, and the
// places of the waits for mutexes.
func waitTable() (table []byte, mutexes []int, err error) {
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return nil, nil, fmt.Errorf("go env GOROOT: %w", err)
	}
	file := filepath.Join(strings.TrimSpace(string(root)), "src", "runtime", "runtime2.go")
	parsed, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		return nil, nil, err
	}
	places := make(map[string]int)
	var durable []string
	ast.Inspect(parsed, func(n ast.Node) bool {
		spec, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		name := spec.Names[0].Name
		switch {
		case strings.HasPrefix(name, "waitReason") && name != "waitReasonStrings":
			places[name] = len(places)
		case name == "isIdleInSynctest":
			for _, e := range spec.Values[0].(*ast.CompositeLit).Elts {
				durable = append(durable, e.(*ast.KeyValueExpr).Key.(*ast.Ident).Name)
			}
		}
		return true
	})
	table = make([]byte, len(places))
	for _, name := range durable {
		table[places[name]] = 1
	}
	for _, name := range []string{"waitReasonSyncMutexLock", "waitReasonSyncRWMutexRLock", "waitReasonSyncRWMutexLock"} {
		i, ok := places[name]
		if !ok || len(durable) == 0 {
			return nil, nil, errors.New("this Go's runtime has another table")
		}
		mutexes = append(mutexes, i)
	}
	return table, mutexes, nil
}

// findTable finds a table in this process's data.
func findTable(want []byte) ([]byte, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	f, err := elf.Open(self)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	section := f.Section(".noptrdata")
	if f.Type != elf.ET_EXEC || section == nil {
		return nil, errors.New("not an executable at a fixed address")
	}
	addr := uintptr(section.Addr)
	data := unsafe.Slice((*byte)(*(*unsafe.Pointer)(unsafe.Pointer(&addr))), section.Size)
	at := bytes.Index(data, want)
	if at < 0 || bytes.Contains(data[at+1:], want) {
		return nil, errors.New("the runtime's table of waits is not there, or not alone")
	}
	return data[at : at+len(want)], nil
}

// TestDurableMutexes: time passes although a goroutine waits for a mutex.
func TestDurableMutexes(t *testing.T) {
	if err := durableMutexes(); err != nil {
		t.Fatal(err)
	}
	stuck := time.AfterFunc(time.Minute, func() { panic("time stands still") })
	defer stuck.Stop()
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		var rw sync.RWMutex
		mu.Lock()
		rw.Lock()
		passed, read := 0, 0
		var all sync.WaitGroup
		all.Go(func() { mu.Lock(); passed++; mu.Unlock() })
		all.Go(func() { rw.Lock(); read++; rw.Unlock() })
		time.Sleep(time.Hour)
		rw.Unlock()
		mu.Unlock()
		all.Wait()
		if passed != 1 || read != 1 {
			t.Error("who waited did not pass")
		}
	})
}
