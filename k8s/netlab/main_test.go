//go:build linux

package netlab_test

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/dns/dnsmessage"

	"github.com/sealane/sealane/k8s/netlab"
)

// The programs under test are the real binary and Debian's clients and servers. The few that no package has are this
// test binary itself, told by its environment what to be.
func TestMain(m *testing.M) {
	switch os.Getenv("NETLAB_AS") {
	case "http":
		must(serveHTTP(os.Args[1], os.Args[2]))
	case "dns":
		must(serveDNS(os.Args[1], os.Args[2]))
	case "echo":
		must(serveEach(os.Args[1], func(c *net.TCPConn) error { _, err := io.Copy(c, c); return err }))
	case "converse":
		must(converse(os.Args[1]))
	case "late-answer":
		must(lateAnswer(os.Args[1]))
	case "ask-and-wait":
		must(askAndWait(os.Args[1]))
	case "early-end":
		must(earlyEnd(os.Args[1]))
	case "hear-and-wait":
		must(hearAndWait(os.Args[1], os.Args[2]))
	case "sink":
		must(sink(os.Args[1]))
	case "upload":
		must(upload(os.Args[1], os.Args[2]))
	default:
		os.Exit(runTests(m))
	}
}

func must(err error) {
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
}

// bin is a folder of programs that every user may run: the sealane binary and this test binary.
var bin string

func runTests(m *testing.M) (code int) {
	if netlab.Unable() == "" {
		dir, err := os.MkdirTemp("", "netlab-")
		must(err)
		defer os.RemoveAll(dir)
		must(os.Chmod(dir, 0o755))
		bin = dir
		self, err := os.ReadFile("/proc/self/exe")
		must(err)
		must(os.WriteFile(filepath.Join(bin, "helper"), self, 0o755))
		build := exec.Command("go", "build", "-o", filepath.Join(bin, "sealane"), "github.com/sealane/sealane/cmd/sealane")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			must(fmt.Errorf("building sealane: %w\n%s", err, out))
		}
	}
	// The tests wait, in namespaces of their own, and hardly work. -parallel on the command line still counts: it is read
	// later.
	must(flag.Set("test.parallel", "8"))
	if code = m.Run(); code == 0 {
		if err := goleak.Find(); err != nil {
			fmt.Println(err)
			return 1
		}
	}
	return code
}

// helper makes the arguments of this test binary in one of its parts.
func helper(part string, args ...string) []string {
	return append([]string{"env", "NETLAB_AS=" + part, filepath.Join(bin, "helper")}, args...)
}

// serveHTTP answers every request with text.
func serveHTTP(addr, text string) error {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	fmt.Println("listening")
	return http.Serve(ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, text) }))
}

// serveDNS answers questions for addresses over UDP by a file that it reads each time: lines of a name with its final dot
// and an IPv4 address, or one line with an error: SERVFAIL, NXDOMAIN or SILENCE.
func serveDNS(addr, file string) error {
	c, err := net.ListenPacket("udp", addr)
	if err != nil {
		return err
	}
	fmt.Println("listening")
	buf := make([]byte, 1500)
	for {
		n, from, err := c.ReadFrom(buf)
		if err != nil {
			return err
		}
		zone, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		if answer := answerDNS(buf[:n], strings.Fields(string(zone))); answer != nil {
			c.WriteTo(answer, from)
		}
	}
}

func answerDNS(question []byte, zone []string) []byte {
	var m dnsmessage.Message
	if m.Unpack(question) != nil || len(m.Questions) != 1 || zone[0] == "SILENCE" {
		return nil
	}
	q := m.Questions[0]
	fmt.Println("asked for", q.Name, q.Type)
	m.Response, m.RecursionAvailable, m.RCode, m.Additionals = true, true, dnsmessage.RCodeNameError, nil
	if zone[0] == "SERVFAIL" {
		m.RCode = dnsmessage.RCodeServerFailure
	}
	for i := 0; i+1 < len(zone); i += 2 {
		if zone[i] != q.Name.String() {
			continue
		}
		m.RCode = dnsmessage.RCodeSuccess
		if q.Type == dnsmessage.TypeA {
			m.Answers = append(m.Answers, dnsmessage.Resource{
				Header: dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class, TTL: 1},
				Body:   &dnsmessage.AResource{A: netip.MustParseAddr(zone[i+1]).As4()},
			})
		}
	}
	answer, err := m.Pack()
	must(err)
	return answer
}

// converse sends its input line by line and prints what comes back. It goes on sending after the other end's end.
func converse(addr string) error {
	c, err := dialTCP(addr)
	if err != nil {
		return err
	}
	sent := make(chan error, 1)
	go func() {
		_, err := io.Copy(c, os.Stdin)
		sent <- err
	}()
	if _, err := io.Copy(os.Stdout, c); err != nil {
		return err
	}
	return <-sent
}

// lateAnswer reads to the client's half-close, says nothing for as long as the client asked, and then answers.
func lateAnswer(addr string) error {
	return serveEach(addr, func(c *net.TCPConn) error {
		asked, err := io.ReadAll(c)
		if err != nil {
			return err
		}
		wait, err := time.ParseDuration(strings.TrimSpace(string(asked)))
		if err != nil {
			return err
		}
		time.Sleep(wait)
		_, err = fmt.Fprintln(c, "the late answer")
		return errors.Join(err, c.Close())
	})
}

// askAndWait is lateAnswer's client: its wait is the first line of its input.
func askAndWait(addr string) error {
	c, err := dialTCP(addr)
	if err != nil {
		return err
	}
	if _, err := io.Copy(c, os.Stdin); err != nil {
		return err
	}
	if err := c.CloseWrite(); err != nil {
		return err
	}
	answer, err := io.ReadAll(c)
	fmt.Printf("answered %q\n", answer)
	return err
}

// earlyEnd says hello and half-closes at once, then prints what the client says and how it ends.
func earlyEnd(addr string) error {
	return serveEach(addr, func(c *net.TCPConn) error {
		fmt.Fprintln(c, "hello")
		if err := c.CloseWrite(); err != nil {
			return err
		}
		heard, err := io.ReadAll(c)
		fmt.Printf("heard %q, then %v\n", heard, err)
		return errors.Join(err, c.Close())
	})
}

// hearAndWait is earlyEnd's client: it speaks a long time after the server's end has come.
func hearAndWait(addr, wait string) error {
	d, err := time.ParseDuration(wait)
	if err != nil {
		return err
	}
	c, err := dialTCP(addr)
	if err != nil {
		return err
	}
	heard, err := io.ReadAll(c)
	fmt.Printf("heard %q, then %v\n", heard, err)
	if err != nil {
		return err
	}
	time.Sleep(d)
	_, err = fmt.Fprintln(c, "the late word")
	return errors.Join(err, c.Close())
}

func dialTCP(addr string) (*net.TCPConn, error) {
	c, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

func serveEach(addr string, serve func(*net.TCPConn) error) error {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return err
	}
	fmt.Println("listening")
	for {
		c, err := ln.Accept()
		if err != nil {
			return err
		}
		go func() {
			if err := serve(c.(*net.TCPConn)); err != nil {
				fmt.Println("error:", err)
			}
		}()
	}
}
