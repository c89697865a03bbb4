package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// stage is where one measurement happens: a target, perhaps a forwarder, and a
// pair of proxies, started for it alone and ended with it.
type stage struct {
	entry   string
	dir     string
	target  *process
	helpers []*process // target and forwarder
	proxies []*process
}

// openStage starts everything and returns once a byte comes back through it. With a flight that isn't 0, a
// forwarder between the proxies delays what they send, with so many bytes under way at most.
func openStage(ctx context.Context, dir, self string, spec pairSpec, flight int) (*stage, error) {
	dir, err := os.MkdirTemp(dir, spec.Name+"-")
	if err != nil {
		return nil, err
	}
	s := &stage{dir: dir}
	if err := s.start(ctx, self, spec, flight); err != nil {
		return nil, errors.Join(fmt.Errorf("start %s: %w", spec.Name, err), s.close())
	}
	return s, nil
}

func (s *stage) start(ctx context.Context, self string, spec pairSpec, flight int) error {
	if err := writeSecrets(s.dir); err != nil {
		return err
	}
	addr, err := freeAddrs("target", "link", "peer", "entry")
	if err != nil {
		return err
	}
	target, err := start(s.dir, []string{self, "target", "-listen", addr["target"]})
	if err != nil {
		return err
	}
	s.target = target
	s.helpers = append(s.helpers, target)
	if len(spec.Commands) == 0 {
		s.entry = addr["target"]
		return s.ready(ctx)
	}
	s.entry = addr["entry"]
	if flight == 0 {
		addr["peer"] = addr["link"]
	} else {
		forwarder, err := start(s.dir, []string{self, "delay", "-listen", addr["peer"], "-to", addr["link"],
			"-delay", oneWay.String(), "-flight", strconv.Itoa(flight)})
		if err != nil {
			return err
		}
		s.helpers = append(s.helpers, forwarder)
	}
	if err := s.startPair(ctx, spec, addr); err != nil {
		return err
	}
	return s.ready(ctx)
}

// startPair fills in the placeholders of spec and starts its proxies.
func (s *stage) startPair(ctx context.Context, spec pairSpec, addr map[string]string) error {
	values := []string{"{dir}", s.dir}
	for name, a := range addr {
		_, port, err := net.SplitHostPort(a)
		if err != nil {
			return err
		}
		values = append(values, "{"+name+"}", a, "{"+name+"_port}", port)
	}
	fill := func(args []string) []string {
		r := strings.NewReplacer(values...)
		filled := make([]string, len(args))
		for i, a := range args {
			filled[i] = r.Replace(a)
		}
		return filled
	}
	for _, step := range spec.Steps {
		out, err := output(ctx, s.dir, fill(step.Run))
		if err != nil {
			return err
		}
		values = append(values, "{"+step.Name+"}", out)
	}
	for name, text := range spec.Files {
		content := fill([]string{text})[0]
		if err := os.WriteFile(filepath.Join(s.dir, name), []byte(content), 0o600); err != nil {
			return err
		}
	}
	for _, command := range spec.Commands {
		p, err := start(s.dir, fill(command))
		if err != nil {
			return err
		}
		s.proxies = append(s.proxies, p)
	}
	return nil
}

// ready waits until the target answers through the pair.
func (s *stage) ready(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for {
		probe := func() error {
			ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
			defer cancel()
			c, err := dial(ctx, s.entry, 0)
			if err != nil {
				return err
			}
			defer c.Close() // has served its purpose
			return c.startEcho(64)
		}
		err := probe()
		if err == nil {
			return nil
		}
		if ended := s.ended(); ended != nil {
			return errors.Join(ended, s.lastWords())
		}
		select {
		case <-ctx.Done():
			return errors.Join(fmt.Errorf("not ready: %w", err), s.lastWords())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// ended tells which of the processes isn't running any more.
func (s *stage) ended() error {
	for _, p := range s.all() {
		if err := p.ended(); err != nil {
			return err
		}
	}
	return nil
}

// lastWords is what the proxies have printed, to explain a failure.
func (s *stage) lastWords() error {
	var all []error
	for _, p := range s.proxies {
		if words := p.lastWords(); words != "" {
			all = append(all, fmt.Errorf("%s says: %s", p.name, words))
		}
	}
	return errors.Join(all...)
}

// complaints is what the target found wrong.
func (s *stage) complaints() error {
	b, err := os.ReadFile(s.target.log)
	if err != nil {
		return err
	}
	if len(b) == 0 {
		return nil
	}
	first, _, _ := strings.Cut(string(b), "\n")
	return fmt.Errorf("target: %s", first)
}

func (s *stage) all() []*process {
	return append(s.helpers[:len(s.helpers):len(s.helpers)], s.proxies...)
}

func (s *stage) close() error {
	stopAll(s.all())
	return os.RemoveAll(s.dir)
}

// freeAddrs finds an address for each name, all different.
func freeAddrs(names ...string) (map[string]string, error) {
	addr := make(map[string]string)
	for _, name := range names {
		l, err := listenFree()
		if err != nil {
			return nil, err
		}
		defer l.Close() // once all are found
		addr[name] = l.Addr().String()
	}
	return addr, nil
}

// listenFree listens on a port below those that the kernel gives to outgoing connections and package lab's tests use.
// Another program could take it once it is closed: the stage then does not start, and is tried again.
func listenFree() (net.Listener, error) {
	var last error
	for range 100 {
		l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(10240+rand.IntN(15000-10240))))
		if err == nil {
			return l, nil
		}
		last = err
	}
	return nil, fmt.Errorf("find a free port: %w", last)
}
