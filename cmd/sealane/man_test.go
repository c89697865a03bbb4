package main

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var updateManual = flag.Bool("update-manual", false, "write packaging/sealane.1 anew")

// TestManual keeps the manual page the same as what --help says. After a
// change of the help: go test ./cmd/sealane -run TestManual -update-manual
func TestManual(t *testing.T) {
	file := filepath.Join("..", "..", "packaging", "sealane.1")
	want := manual(commands())
	if *updateManual {
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(have) != want {
		t.Error("packaging/sealane.1 is not what --help says; run: go test ./cmd/sealane -run TestManual -update-manual")
	}
}

// manual is the page in the macros of man(7): the help of every command
// between texts about what they share.
func manual(commands []*command) string {
	var b strings.Builder
	b.WriteString(manualHead)
	for _, c := range commands {
		b.WriteString(".SS sealane " + c.name + "\n" + roff(c.help()))
	}
	b.WriteString(manualTail)
	return b.String()
}

const manualHead = `.\" Made from the texts of --help by TestManual in cmd/sealane.
.TH SEALANE 1 "" sealane "User Commands"
.SH NAME
sealane \- carry an app's TCP connections to another host inside sealed containers
.SH SYNOPSIS
.B sealane
.I COMMAND
.RI [ OPTIONS ]
.SH DESCRIPTION
Sealane runs beside a program that speaks plaintext TCP. It takes the program's connections on loopback, carries them over
a sealed link to the sealane beside the other end, and that one connects to the real target. What peers may reach is
listed in its config; by default it is nothing. All keys of the config are explained in the README.
.SH COMMANDS
`

const manualTail = `.SH SIGNALS
.TP
.BR TERM ", " INT
Drain: take nothing new, let running connections finish until
.BR timeouts.drain ,
then end. A second one cuts what is left.
.TP
.B HUP
Read the config and all files that it names again. A bad config changes nothing.
.TP
.B USR1
Make peers open nothing new here, and go on with all else.
.B sealane leave
sends it.
.SH ENVIRONMENT
.TP
.B SEALANE_CONFIG
The config file, where
.B \-c
is not given.
.TP
.BR SEALANE_IDENTITY ", " SEALANE_LISTEN ", " SEALANE_ADMIN ", " SEALANE_LOG_LEVEL
Take the place of
.BR identity ", " listen ", " admin " and " log.level
of the config.
.SH FILES
.TP
.I /etc/sealane/sealane.yaml
The config of the service
.BR sealane.service .
.TP
.I /etc/sealane\-NAME/sealane.yaml
That of
.BR sealane@NAME.service .
.SH EXIT STATUS
0: clean. 1: runtime error, or a drain that had to cut connections. 64: bad usage. 78: bad config.
.SH EXAMPLES
Make a key; its public name goes to the peers:
.PP
.EX
sealane keygen \-o node.key
.EE
.PP
A config that leads a local port to the service postgres of the peer db:
.PP
.EX
identity: node.key
peers:
  \- name: db
    keys: ["Ui6\-OT0mwMt1EqM\-AkKZxLS0Lt\-iHUhUDY6qUcUtzh4"]
    address: db.internal:7423
listeners:
  \- forward: 127.0.0.1:5432
    to: {peer: db, service: postgres}
.EE
.PP
Check it, then run it:
.PP
.EX
sealane check \-c sealane.yaml && sealane run \-c sealane.yaml
.EE
`

// roff sets a help text: options as a list, other indented lines as they are.
func roff(help string) string {
	var b strings.Builder
	asIs := false
	for line := range strings.Lines(help) {
		line = strings.TrimSuffix(line, "\n")
		line = strings.TrimPrefix(line, "Usage: sealane")
		usage := strings.HasPrefix(line, " ") && !strings.HasPrefix(line, "  ")
		option := helpLine.FindStringSubmatch(line)
		indented := strings.HasPrefix(line, "  ") && option == nil
		if indented != asIs {
			b.WriteString(map[bool]string{true: ".PP\n.EX\n", false: ".EE\n"}[indented])
			asIs = indented
		}
		switch {
		case usage:
			b.WriteString(".EX\nsealane" + roffText(line) + "\n.EE\n")
		case option != nil:
			b.WriteString(".TP\n\\fB" + roffText(option[1]) + "\\fR")
			if option[2] != "" {
				b.WriteString(" \\fI" + option[2][1:] + "\\fR")
			}
			b.WriteString("\n" + roffText(option[3]) + "\n")
		case line == "":
			b.WriteString(".PP\n")
		default:
			b.WriteString(roffText(line) + "\n")
		}
	}
	if asIs {
		b.WriteString(".EE\n")
	}
	return b.String()
}

func roffText(s string) string {
	s = strings.NewReplacer(`\`, `\e`, `-`, `\-`).Replace(s)
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = `\&` + s
	}
	return s
}

// TestSuggestionsKnowEveryOption keeps the shells from missing an option.
func TestSuggestionsKnowEveryOption(t *testing.T) {
	for _, c := range commands() {
		offered := make(map[string]string)
		for _, s := range c.suggestions() {
			offered[s.word] = s.value
		}
		for _, o := range c.options {
			word, _, _ := strings.Cut(o.usage(), " ")
			if value, ok := offered[word]; !ok || value != o.value {
				t.Errorf("%s: %s %s is not suggested; suggestions are %q", c.name, word, o.value, offered)
			}
		}
	}
}

func TestHelpOfEveryCommand(t *testing.T) {
	for _, c := range commands() {
		var out, errs bytes.Buffer
		p := &process{args: []string{c.name, "--help"}, stdout: &out, stderr: &errs, getenv: func(string) string { return "" }}
		if code := execute(p); code != exitOK || errs.Len() > 0 || !strings.HasPrefix(out.String(), "Usage:") {
			t.Errorf("sealane %s --help: exit code %d, standard error %q, output %q", c.name, code, &errs, &out)
		}
	}
}
