package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"slices"
	"strings"
)

// pairSpec says how to start a client-side and a server-side proxy. Everything in it may hold placeholders:
//
//	{entry}   where the load client connects
//	{link}    where the server-side proxy listens
//	{peer}    what the client-side proxy dials: {link}, or a delaying forwarder before it
//	{target}  what the server-side proxy connects to
//	{dir}     a folder with ca.pem, cert.pem, key.pem, both.pem (cert and key) and secret (32 random bytes)
//	{NAME}    what the step of that name printed
//
// The first four are 127.0.0.1:PORT; {entry_port} and so on are the ports alone.
type pairSpec struct {
	Name     string            `json:"name"`
	Needs    []string          `json:"needs"`    // programs without which the pair is left out
	Steps    []step            `json:"steps"`    // run to their end, in order, before the files are written
	Files    map[string]string `json:"files"`    // written into {dir}
	Commands [][]string        `json:"commands"` // the proxies, in the foreground, the server side first
	Mux      bool              `json:"mux"`      // all connections share a link, so that one process can hold 18,000

	// Foreign pairs can't fail the run: what they can't do is shown in the table.
	foreign bool
}

type step struct {
	Name string   `json:"name"`
	Run  []string `json:"run"`
}

// direct is no pair: the load client connects to the target.
const direct = "direct"

// relayPair is what the other pairs are compared with.
const relayPair = "plain"

// builtinPairs returns the pairs that need no config file.
func builtinPairs(self, sealane string) []pairSpec {
	pairs := []pairSpec{
		{Name: direct},
		{Name: relayPair, Commands: [][]string{
			{self, "relay", "-listen", "{link}", "-to", "{target}"},
			{self, "relay", "-listen", "{entry}", "-to", "{peer}"},
		}},
	}
	for _, transform := range []string{"json", "packed", "gzip"} {
		pairs = append(pairs, sealanePair(sealane, transform))
	}
	return append(pairs, stunnelPair(), haproxyPair(), spipedPair())
}

func sealanePair(binary, transform string) pairSpec {
	const common = "log: {level: warn}\ntransform: "
	return pairSpec{
		Name: "sealane-" + transform,
		Mux:  true,
		Steps: []step{
			{"client_key", []string{binary, "keygen", "-o", "{dir}/client.key"}},
			{"server_key", []string{binary, "keygen", "-o", "{dir}/server.key"}},
		},
		Files: map[string]string{
			"server.yaml": common + transform + `
identity: server.key
listen: {link}
peers:
  - name: client
    keys: ["{client_key}"]
services:
  - name: target
    address: {target}
    allow: [client]
limits: {streams_per_peer: 20000}
`,
			"client.yaml": common + transform + `
identity: client.key
peers:
  - name: server
    keys: ["{server_key}"]
    address: {peer}
listeners:
  - forward: {entry}
    to: {peer: server, service: target}
limits: {streams_per_peer: 20000}
`,
		},
		Commands: [][]string{
			{binary, "run", "-c", "{dir}/server.yaml"},
			{binary, "run", "-c", "{dir}/client.yaml"},
		},
	}
}

func stunnelPair() pairSpec {
	const common = `foreground = yes
pid =
debug = 3
socket = l:TCP_NODELAY=1
socket = r:TCP_NODELAY=1
cert = {dir}/cert.pem
key = {dir}/key.pem
CAfile = {dir}/ca.pem
verifyChain = yes
`
	return pairSpec{
		Name: "stunnel", Needs: []string{"stunnel4"}, foreign: true,
		Files: map[string]string{
			"server.conf": common + "[s]\naccept = {link}\nconnect = {target}\n",
			"client.conf": common + "[c]\nclient = yes\naccept = {entry}\nconnect = {peer}\n",
		},
		Commands: [][]string{{"stunnel4", "{dir}/server.conf"}, {"stunnel4", "{dir}/client.conf"}},
	}
}

func haproxyPair() pairSpec {
	const common = `global
  maxconn 9000
defaults
  mode tcp
  timeout connect 10s
  timeout client 1h
  timeout server 1h
`
	const tls = " ssl crt {dir}/both.pem ca-file {dir}/ca.pem verify required\n"
	return pairSpec{
		Name: "haproxy", Needs: []string{"haproxy"}, foreign: true,
		Files: map[string]string{
			"server.cfg": common + "listen s\n  bind {link}" + tls + "  server t {target}\n",
			"client.cfg": common + "listen c\n  bind {entry}\n  server p {peer}" + tls,
		},
		Commands: [][]string{
			{"haproxy", "-db", "-f", "{dir}/server.cfg"},
			{"haproxy", "-db", "-f", "{dir}/client.cfg"},
		},
	}
}

func spipedPair() pairSpec {
	side := func(way, from, to string) []string {
		return []string{"spiped", way, "-F", "-n", "9000", "-k", "{dir}/secret", "-p", "{dir}/spiped" + way + ".pid",
			"-s", "[127.0.0.1]:" + from, "-t", "[127.0.0.1]:" + to}
	}
	return pairSpec{
		Name: "spiped", Needs: []string{"spiped"}, foreign: true,
		Commands: [][]string{side("-d", "{link_port}", "{target_port}"), side("-e", "{entry_port}", "{peer_port}")},
	}
}

// readPairs reads further pairs from a JSON file: {"pairs": [pairSpec, ...]}.
func readPairs(name string) ([]pairSpec, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, fmt.Errorf("read pairs: %w", err)
	}
	defer f.Close() // only read
	var file struct {
		Pairs []pairSpec `json:"pairs"`
	}
	dec := json.NewDecoder(f)
	dec.DisallowUnknownFields()
	if err := dec.Decode(&file); err != nil {
		return nil, fmt.Errorf("read pairs: %s: %w", name, err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, fmt.Errorf("read pairs: %s: more than one JSON value", name)
	}
	for i := range file.Pairs {
		p := &file.Pairs[i]
		p.foreign = true
		empty := func(command []string) bool { return len(command) == 0 }
		if p.Name == "" || len(p.Commands) == 0 || slices.ContainsFunc(p.Commands, empty) {
			return nil, fmt.Errorf("read pairs: %s: pair %d needs a name and commands", name, i+1)
		}
		for _, s := range p.Steps {
			if s.Name == "" || len(s.Run) == 0 {
				return nil, fmt.Errorf("read pairs: %s: pair %d: a step needs a name and a command", name, i+1)
			}
		}
	}
	return file.Pairs, nil
}

// choosePairs returns the pairs that names lists. If it's empty: in the short form those that are this project's,
// else all but sealane-gzip, which is slow by nature. A pair whose programs aren't installed is left out, and named in missing.
func choosePairs(all []pairSpec, names string, short bool) (chosen []pairSpec, missing []string, err error) {
	byName := make(map[string]pairSpec)
	var wanted []string
	for _, p := range all {
		if _, twice := byName[p.Name]; twice {
			return nil, nil, fmt.Errorf("two pairs are named %q", p.Name)
		}
		byName[p.Name] = p
		if short && !p.foreign || !short && p.Name != "sealane-gzip" {
			wanted = append(wanted, p.Name)
		}
	}
	if names != "" {
		wanted = strings.Split(names, ",")
	}
	for i, name := range wanted {
		p, ok := byName[name]
		switch {
		case !ok:
			return nil, nil, fmt.Errorf("no pair %q; there are %s", name, strings.Join(slices.Sorted(maps.Keys(byName)), ", "))
		case slices.Contains(wanted[:i], name):
			return nil, nil, fmt.Errorf("pair %q is named twice", name)
		case !installed(p):
			missing = append(missing, name)
		default:
			chosen = append(chosen, p)
		}
	}
	return chosen, missing, nil
}

func installed(p pairSpec) bool {
	return !slices.ContainsFunc(p.Needs, func(program string) bool {
		_, err := exec.LookPath(program)
		return err != nil
	})
}
