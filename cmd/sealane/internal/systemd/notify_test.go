package systemd

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func environment(pairs ...string) func(string) string {
	return func(name string) string {
		for i := 0; i < len(pairs); i += 2 {
			if pairs[i] == name {
				return pairs[i+1]
			}
		}
		return ""
	}
}

func TestMessages(t *testing.T) {
	dir, err := os.MkdirTemp("", "notify") // a socket's path must be short
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "s")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Net: "unixgram", Name: path})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	m, err := Connect(environment("NOTIFY_SOCKET", path), os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()

	for _, step := range []struct {
		err  error
		want string
	}{
		{m.Ready("2 peers\nREADY=0"), `^READY=1\nSTATUS=2 peers READY=0$`},
		{m.Reloading(), `^RELOADING=1\nMONOTONIC_USEC=[1-9][0-9]*$`},
		{m.Status("bad config"), `^STATUS=bad config$`},
		{m.Stopping("draining", 0), `^STOPPING=1\nSTATUS=draining$`},
		{m.Stopping("draining", time.Minute), `^STOPPING=1\nSTATUS=draining\nEXTEND_TIMEOUT_USEC=70000000$`},
	} {
		if step.err != nil {
			t.Fatal(step.err)
		}
		b := make([]byte, 1024)
		n, err := l.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		if !regexp.MustCompile(step.want).Match(b[:n]) {
			t.Errorf("systemd was told %q, want %s", b[:n], step.want)
		}
	}
}

func TestNoManager(t *testing.T) {
	m, err := Connect(environment(), os.Getpid())
	if m != nil || err != nil {
		t.Fatalf("Connect gave %v, %v without NOTIFY_SOCKET", m, err)
	}
	for _, err := range []error{m.Ready(""), m.Reloading(), m.Stopping("", 0), m.Status(""), m.Watch(t.Context(), nil), m.Close()} {
		if err != nil {
			t.Error(err)
		}
	}
}

func TestBadEnvironment(t *testing.T) {
	for _, env := range [][]string{
		{"NOTIFY_SOCKET", "vsock:2:1234"},
		{"NOTIFY_SOCKET", "/nonexistent/socket"},
		{"NOTIFY_SOCKET", "/nonexistent/socket", "WATCHDOG_USEC", "soon"},
	} {
		if m, err := Connect(environment(env...), 1); err == nil || m != nil {
			t.Errorf("Connect with %q gave %v, %v", env, m, err)
		}
	}
}

func TestWatchdogInterval(t *testing.T) {
	for _, c := range []struct {
		usec, pid string
		want      time.Duration
	}{
		{"", "", 0},
		{"30000000", "", 30 * time.Second},
		{"30000000", "42", 30 * time.Second},
		{"30000000", "41", 0}, // meant for another process
	} {
		got, err := watchdogInterval(environment("WATCHDOG_USEC", c.usec, "WATCHDOG_PID", c.pid), 42)
		if err != nil || got != c.want {
			t.Errorf("%+v gave %v, %v", c, got, err)
		}
	}
	for _, bad := range []string{"0", "-1", "x", strconv.FormatInt(1<<62, 10)} {
		if _, err := watchdogInterval(environment("WATCHDOG_USEC", bad), 42); err == nil {
			t.Errorf("WATCHDOG_USEC=%s was taken", bad)
		}
	}
}

func TestWatch(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var signs []time.Duration
		start := time.Now()
		m := &Manager{watchdog: 10 * time.Second, send: func(string) error {
			signs = append(signs, time.Since(start))
			return nil
		}}
		ctx, cancel := context.WithCancel(t.Context())
		stuck := make(chan struct{})
		done := make(chan error)
		go func() {
			done <- m.Watch(ctx, func() {
				if time.Since(start) >= 20*time.Second {
					<-stuck
				}
			})
		}()
		time.Sleep(time.Minute)
		synctest.Wait()
		if len(signs) != 4 || signs[3] != 15*time.Second {
			t.Errorf("signs of life at %v, want every 5 s up to the hang at 20 s", signs)
		}
		close(stuck)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
